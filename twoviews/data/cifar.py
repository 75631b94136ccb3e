"""CIFAR-10 from an image tree `train/<class>/*`, `test/<class>/*` (cifar2png's, Kaggle's and fast.ai's layout)."""

from __future__ import annotations

from pathlib import Path

from twoviews.data.arrays import Arrays
from twoviews.data.folder import read_tree

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read(data_dir: str | None) -> Arrays:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.

    Args:
        data_dir: an image tree.

    Raises:
        ValueError: if there is no tree there, or it does not hold CIFAR-10's classes.
    """
    root = Path(data_dir) if data_dir else None
    if root is None or not (root / "train").is_dir() or not (root / "test").is_dir():
        found = "no data_dir" if root is None else f"{root}, which has no folders train/ and test/"
        raise ValueError(f"cifar10: expected data_dir=<image tree with train/<class>/* and test/<class>/*>, got {found}")
    arrays = read_tree(root, title="CIFAR-10")
    if arrays.classes != CLASSES or arrays.train_images.shape[1:] != (3, 32, 32):
        raise ValueError(
            f"cifar10: {root} holds {len(arrays.classes)} classes of {arrays.train_images.shape[1:]}: not CIFAR-10's ten of (3, 32, 32)"
        )
    return arrays
