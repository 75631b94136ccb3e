"""Read the bundled blood cells."""

import json
from importlib import resources

import numpy as np
from PIL import Image

from twoviews.data.arrays import OWN_IMAGES, Arrays

SIDE, COLUMNS = 32, 120  # pixels of an image; images side by side in the stored picture


def read(data_dir: str | None) -> Arrays:
    """Return 10,000 training and 2,000 test images of single blood cells, 8 classes (Acevedo et al. 2020, CC BY 4.0).

    `scripts/make_blood_cells.py` wrote them as one JPEG of 100 x 120 tiles, ordered by split and class; its comment has the counts.

    Args:
        data_dir: must be None, because the data are in the package.

    Raises:
        ValueError: if `data_dir` is not None.
    """
    if data_dir is not None:
        raise ValueError(f"blood_cells is in the package: leave data_dir out, got {data_dir}; {OWN_IMAGES}")
    with resources.files("twoviews").joinpath("assets/blood_cells.jpg").open("rb") as file, Image.open(file) as picture:
        pixels, note = np.asarray(picture), json.loads(picture.info["comment"])
    tiles = pixels.reshape(-1, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 4, 1, 3)  # (row, column, C, H, W)
    images = np.ascontiguousarray(tiles).reshape(-1, 3, SIDE, SIDE)
    train, test = (np.repeat(np.arange(len(note["classes"])), note[name]) for name in ("train", "test"))
    return Arrays("Blood cells", images[: len(train)], train, images[len(train) :], test, tuple(note["classes"]))
