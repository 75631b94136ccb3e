"""Data sets by name. A reader is a function from `data_dir` to `Arrays`; a new one is a function and a line.

`dataset=folder` is read by `folder.read`, which also needs an image size and a rule for bad files.
"""

from collections.abc import Callable

from twoviews.data import cells, cifar, idx
from twoviews.data.arrays import Arrays

READERS: dict[str, Callable[[str | None], Arrays]] = {
    "cifar10": cifar.read,
    "cifar100": cifar.read100,
    "fashion_mnist": idx.read,
    "fashion_mini": idx.read_mini,
    "blood_cells": cells.read,
}
