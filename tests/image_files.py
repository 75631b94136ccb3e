"""Folders of images made of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twoviews.data import cifar
from twoviews.images import decoding, pixels

SPLITS = {"train": 3, "test": 2}  # images per class of `write_cifar_tree`


def write_cifar_tree(root: Path, suffix: str = ".png", classes: tuple[str, ...] = cifar.CLASSES) -> np.ndarray:
    """Write noise to `root/<split>/<class>/` and return the pixels in the order of the reader: (N, 3, 32, 32)."""
    random = np.random.default_rng(0)
    images = []
    for split, each in SPLITS.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                images.append(random.integers(0, 256, (32, 32, 3), np.uint8))
                Image.fromarray(images[-1]).save(root / split / name / f"{i:04}{suffix}")
    return np.stack(images).transpose(0, 3, 1, 2)


def write_tree(root: Path, *folders: str, each: int = 12, size: int = 16) -> Path:
    """Write `each` different images of noise to every folder below `root`, which is returned."""
    random = np.random.default_rng(len(folders))
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8)).save(root / name / f"{i:03}.png")
    return root


def count_decodings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """Return a list that gets (number of files, image size) at every decoding from now on."""
    calls: list[tuple[int, int | None]] = []
    decode = decoding._decode

    def counted(paths: list[Path], title: str, reading: pixels.Reading) -> Any:
        calls.append((len(paths), reading.size))
        return decode(paths, title, reading)

    monkeypatch.setattr(decoding, "_decode", counted)
    return calls
