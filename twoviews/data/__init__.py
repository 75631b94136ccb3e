"""Data sets by name. A reader is one function from `data_dir` to `Arrays`; adding one is one function and one line here.

`folder` has a reader of its own kind: it is told a size and what to do about bad files.
"""

from __future__ import annotations

from collections.abc import Callable

from twoviews.data import cifar, idx
from twoviews.data.arrays import Arrays

READERS: dict[str, Callable[[str | None], Arrays]] = {
    "cifar10": cifar.read,
    "cifar100": cifar.read100,
    "fashion_mnist": idx.read,
    "fashion_mini": idx.read_mini,
}
