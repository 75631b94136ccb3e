"""The result of every reader: labelled images of the two official splits, as numpy arrays."""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from twoviews.images.names import escaped

# Ends a reader's error about a folder that holds something else.
OWN_IMAGES = "for images of your own give dataset=folder (evaluate: transfer=folder)"


@dataclass(frozen=True)
class Arrays:
    """A data set as its source provides it.

    Args:
        title: its name in tables, which also says where the pixels are not the official ones.
        train_images, test_images: (N, C, H, W) uint8.
        train_labels, test_labels: (N,) int64 in [0, len(classes)).
        classes: their names, each once.
        skipped: files that were left out, each with the reason.
        unlabelled_images: (M, C, H, W) uint8, images that only train, or None.
        description: what was read, one line each; the first names the source. Empty: one line of counts is enough.
        train_names, test_names: file names of the images, or empty.

    Raises:
        ValueError: if an array has another form, with the name of the array, or a class has no printable name of its own.
    """

    title: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    unlabelled_images: np.ndarray | None = None
    description: tuple[str, ...] = ()
    train_names: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split, images, labels in (("train", self.train_images, self.train_labels), ("test", self.test_images, self.test_labels)):
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
                raise ValueError(
                    f"{self.title}, {split} images: expected uint8 of shape (N, C, H, W), C 1 or 3, got {images.dtype} {images.shape}"
                )
            if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(f"{self.title}, {split} labels: expected {len(images)} integers, got {labels.dtype} {labels.shape}")
            if len(labels) and (labels.min() < 0 or labels.max() >= len(self.classes)):
                raise ValueError(
                    f"{self.title}, {split} labels: expected 0 to {len(self.classes) - 1}, got {labels.min()} to {labels.max()}"
                )
        if not len(self.train_images):
            raise ValueError(f"{self.title}, train images: expected at least one, got none")
        for split, others in (("test", self.test_images), ("unlabelled", self.unlabelled_images)):
            if others is not None and (others.dtype != np.uint8 or others.shape[1:] != self.train_images.shape[1:]):
                raise ValueError(
                    f"{self.title}, {split} images: expected uint8 of (C, H, W) as in the train images, {self.train_images.shape[1:]}, "
                    f"got {others.dtype} {others.shape[1:]}"
                )
        if wrong := [name for name, count in Counter(self.classes).items() if count > 1 or name != escaped(name)]:
            raise ValueError(f"{self.title}, classes: expected a printable name for each, different from all others, got {wrong[0]!a}")

    def digest(self) -> str:
        """Return the SHA-256 of pixels and labels in hexadecimal: it identifies the data set of a run."""
        sha = hashlib.sha256()
        unlabelled = () if self.unlabelled_images is None else (self.unlabelled_images,)
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels, *unlabelled):
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()
