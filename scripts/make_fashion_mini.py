"""Write `twoviews/assets/fashion_mini.npz.xz`: the first 1,200 training and 200 test images of each Fashion-MNIST class.

    python scripts/make_fashion_mini.py [folder with the four IDX files]

Fashion-MNIST is Zalando's, under the MIT licence, whose text is in `fashion_mini.LICENSE`.
"""

from __future__ import annotations

import io
import lzma
import sys
from pathlib import Path

import numpy as np

from twoviews.data.idx import read
from twoviews.runs.files import write_atomic

TARGET = Path(__file__).parent.parent / "twoviews/assets/fashion_mini.npz.xz"


def first_of_each_class(images: np.ndarray, labels: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `each` images of every class and their labels, in the order of the whole set."""
    rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in np.unique(labels)]))
    return images[rows, 0], labels[rows].astype(np.uint8)


if __name__ == "__main__":
    full = read(sys.argv[1] if len(sys.argv) > 1 else None)
    train = first_of_each_class(full.train_images, full.train_labels, 1200)
    test = first_of_each_class(full.test_images, full.test_labels, 200)
    buffer = io.BytesIO()
    np.savez(buffer, train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1])
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 24}]
    write_atomic(TARGET, lzma.compress(buffer.getvalue(), filters=filters))
    print(f"{TARGET}: {TARGET.stat().st_size / 2**20:.2f} MiB")
