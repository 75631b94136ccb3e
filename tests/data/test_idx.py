"""IDX files of Fashion-MNIST, and the bundled subset."""

from __future__ import annotations

import gzip
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tiny import arrays, idx_bytes, mini, write_idx

import twoviews
from twoviews.data import dataset, idx
from twoviews.data.arrays import OWN_IMAGES

ASSETS = Path(twoviews.__file__).parent / "assets"


def test_the_bundled_data_are_balanced_small_and_licensed() -> None:
    full = mini()
    assert full.train_images.shape == (12_000, 1, 28, 28)
    assert full.test_images.shape == (2_000, 1, 28, 28)
    assert np.bincount(full.train_labels).tolist() == [1200] * 10
    assert np.bincount(full.test_labels).tolist() == [200] * 10
    assert (ASSETS / "fashion_mini.npz.xz").stat().st_size <= 6 * 2**20
    licence = (ASSETS / "fashion_mini.LICENSE").read_text()
    for part in ("MIT", "Zalando", "Permission is hereby granted, free of charge", 'THE SOFTWARE IS PROVIDED "AS IS"', "github.com"):
        assert part in licence, part
    with pytest.raises(ValueError, match=rf"leave data_dir out, .*; {re.escape(OWN_IMAGES)}$"):
        idx.read_mini("somewhere")


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_idx_files_are_read_zipped_or_not(tmp_path: Path, zipped: bool) -> None:
    parts = arrays()
    write_idx(tmp_path, parts)
    if zipped:
        for path in list(tmp_path.iterdir()):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    data = idx.read(str(tmp_path))
    assert data.title == "Fashion-MNIST"
    assert len(data.classes) == 10
    for actual, expected in zip((data.train_images[:, 0], data.train_labels, data.test_images[:, 0], data.test_labels), parts, strict=True):
        assert np.array_equal(actual, expected)
    assert data.train_labels.dtype == np.int64


WHOLE = idx_bytes(np.arange(24).reshape(2, 3, 4))


def test_the_idx_file_of_these_tests_has_the_published_format(tmp_path: Path) -> None:
    assert WHOLE[:16] == bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4])
    (tmp_path / "file").write_bytes(WHOLE)
    assert np.array_equal(idx.read_idx(tmp_path / "file"), np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("blob", "error"),
    [
        (WHOLE[:-1], r"39 bytes, expected 40 for an array of shape \(2, 3, 4\)"),
        (WHOLE + b"\0", "41 bytes, expected 40"),
        (WHOLE[:9], "not an IDX file"),
        (b"", "not an IDX file"),
        (b"<!doctype html><title>404</title>", "not an IDX file"),
        (b"\0\0\x0d" + WHOLE[3:], "not an IDX file of bytes"),  # floats
        (gzip.compress(WHOLE)[:-12], "damaged gzip file"),
        (gzip.compress(WHOLE)[:-8] + bytes(8), "damaged gzip file"),
        (gzip.compress(WHOLE)[:10] + b"\xff" * 20, "damaged gzip file"),
        (gzip.compress(b"<html>"), "not an IDX file"),
    ],
    ids=["truncated", "longer", "header cut", "empty", "HTML", "floats", "gzip cut", "gzip checksum", "gzip noise", "zipped HTML"],
)
def test_d3_a_damaged_idx_file_is_refused_with_its_name(tmp_path: Path, blob: bytes, error: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(blob)
    with pytest.raises(ValueError, match=f"{path}: .*{error}"):
        idx.read_idx(path)


def test_d3_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "LARGEST", 2**20)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="unpacks to more than 1 MiB"):
        idx.read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_d3_a_missing_or_swapped_idx_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays())
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        ValueError, match=rf"no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz in .*data_dir=.*; {re.escape(OWN_IMAGES)}$"
    ):
        idx.read(str(tmp_path))
    shutil.copy(tmp_path / "train-labels-idx1-ubyte", tmp_path / "t10k-labels-idx1-ubyte")
    with pytest.raises(ValueError, match="test labels: expected 100 integers"):
        idx.read(str(tmp_path))
    shutil.copy(tmp_path / "train-labels-idx1-ubyte", tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(ValueError, match="expected images of shape"):
        idx.read(str(tmp_path))


def test_the_message_about_a_failed_download_says_what_else_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def fails(*args: object, **more: object) -> None:
        raise RuntimeError("Error downloading\ntrain-images")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fails)
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"download failed \(Error downloading train-images\): install .* or give data_dir="):
        dataset.load("fashion_mnist", None, None)
