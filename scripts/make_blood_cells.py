"""Write `twoviews/assets/blood_cells.jpg`: 10,000 training and 2,000 test images of the blood cells of Acevedo et al. 2020.

    python scripts/make_blood_cells.py <blood-cells-64.tar.xz>

The archive has one folder of images of 64 x 64 pixels per class; its NOTICE.txt says how they were made from the published ones.
The images are under CC BY 4.0; `blood_cells.LICENSE` has the credit and the changes. With Pillow 13.0 the file is the same bit for bit:
SHA-256 da1d69ba0ec7a64936c62672d15e4ab0a8387d1a91c66a96db856cd676100739.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from twoviews.data.cells import COLUMNS, SIDE
from twoviews.data.dataset import stratified
from twoviews.runs.files import write_atomic

TARGET = Path(__file__).parent.parent / "twoviews/assets/blood_cells.jpg"
TRAIN, TEST = 10_000, 2_000
NAMES = {"ig": "immature granulocyte"}  # the archive's abbreviation


def read(archive: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the classes, (N, 32, 32, 3) uint8 images, each pixel the mean of 2 x 2, and (N,) labels, ordered by class and file name."""
    found = []
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if path.suffix == ".jpg":
                image = Image.open(tar.extractfile(member)).resize((SIDE, SIDE), Image.Resampling.BOX)  # type: ignore[arg-type]
                found.append((path.parent.name, path.name, np.asarray(image)))
    found.sort(key=lambda one: one[:2])
    classes = sorted({name for name, _, _ in found})
    return classes, np.stack([pixels for _, _, pixels in found]), np.array([classes.index(name) for name, _, _ in found])


def choose(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the training and of the test images: stratified by class, no image in both."""
    chosen = stratified(labels, TRAIN + TEST, seed=0)
    test = np.zeros(len(chosen), bool)
    test[stratified(labels[chosen], TEST, seed=1)] = True
    return chosen[~test], chosen[test]


if __name__ == "__main__":
    classes, images, labels = read(Path(sys.argv[1]))
    train, test = choose(labels)
    counts = [np.bincount(labels[rows], minlength=len(classes)).tolist() for rows in (train, test)]
    note = {"classes": [NAMES.get(name, name) for name in classes], "train": counts[0], "test": counts[1]}
    tiles = images[np.concatenate([train, test])].reshape(-1, COLUMNS, SIDE, SIDE, 3)
    picture = tiles.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * SIDE, 3)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85, subsampling="4:4:4", optimize=True, comment=json.dumps(note))
    write_atomic(TARGET, buffer.getvalue())
    print(f"{TARGET}: {TARGET.stat().st_size / 1e6:.2f} MB, SHA-256 {hashlib.sha256(buffer.getvalue()).hexdigest()}")
