"""Fixtures of the data tests: files of CIFAR-10, and a cache folder for one test."""

from __future__ import annotations

from pathlib import Path

import cifar_files
import numpy as np
import pytest
from image_files import count_decodings

from twoviews.data import cifar


@pytest.fixture(scope="session")
def cifar10() -> tuple[cifar_files.Files, dict[str, np.ndarray]]:
    """The batch files of a CIFAR-10 of noise, and its arrays."""
    return cifar_files.make_files(cifar.CIFAR10)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> list[tuple[int, int | None]]:
    """Number of files and image size of every decoding so far."""
    return count_decodings(monkeypatch)
