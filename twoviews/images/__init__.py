"""Files of images: which files of a folder are images, how the folder is laid out, and what their pixels mean."""
