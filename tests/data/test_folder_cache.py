"""The cache of decoded images: used while nothing changed, and written again after any change or damage."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import SPLITS, write_cifar_tree, write_tree
from PIL import Image

from twoviews.data import cifar, folder
from twoviews.data.arrays import Arrays
from twoviews.images import cache
from twoviews.runs import files

Decodings = list[tuple[int, int | None]]
ONCE = (50, None)  # one decoding of `write_cifar_tree`


def read(root: Path, size: int = 16) -> Arrays:
    return folder.read(str(root), folder.Options(image_size=size))


def test_a_tree_is_decoded_once(tmp_path: Path, decodings: Decodings) -> None:
    write_cifar_tree(tmp_path / "tree")
    first, second = (cifar.read(str(tmp_path / "tree")) for _ in range(2))
    assert decodings == [ONCE]
    assert first.digest() == second.digest()
    assert second.train_images.flags.writeable


def test_a_tree_is_decoded_once_per_size(tmp_path: Path, decodings: Decodings) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    for size in (16, 16, 24, 24, 16):
        assert read(root, size).train_images.shape == (24, 3, size, size)
    assert decodings == [(24, 16), (24, 24)]


def flip_bit(path: Path, at: int) -> None:
    blob = bytearray(path.read_bytes())
    blob[at] ^= 1
    path.write_bytes(blob)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "pixel": lambda cache: flip_bit(cache, -1000),
    "checksum": lambda cache: flip_bit(cache, 5),
    "truncated": lambda cache: cache.write_bytes(cache.read_bytes()[:5000]),
    "empty": lambda cache: cache.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_noticed_and_written_again(
    tmp_path: Path, decodings: Decodings, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    write_cifar_tree(tmp_path / "tree")
    first = cifar.read(str(tmp_path / "tree"))
    (cache,) = (tmp_path / "cache/twoviews").iterdir()
    DAMAGE[damage](cache)
    assert cifar.read(str(tmp_path / "tree")).digest() == first.digest()
    assert decodings == [ONCE, ONCE]
    assert f"cache {cache} is damaged: decoding again" in capsys.readouterr().out
    assert cifar.read(str(tmp_path / "tree")).digest() == first.digest()
    assert decodings == [ONCE, ONCE]


CHANGES: dict[str, Callable[[Path], object]] = {
    "other pixels": lambda root: Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(root / "train/cat/0000.png"),
    "one more": lambda root: shutil.copy(root / "train/cat/0000.png", root / "train/cat/0009.png"),
    "one less": lambda root: (root / "test/dog/0001.png").unlink(),
    "another class": lambda root: (root / "train/cat/0000.png").rename(root / "train/dog/0007.png"),
    "another name": lambda root: (root / "train/cat/0000.png").rename(root / "train/cat/0008.png"),
    "another time": lambda root: os.utime(root / "train/cat/0000.png", (1, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tree_is_decoded_again(tmp_path: Path, decodings: Decodings, change: str) -> None:
    root = tmp_path / "tree"
    write_cifar_tree(root)
    cifar.read(str(root))
    CHANGES[change](root)
    arrays = cifar.read(str(root))
    assert len(decodings) == 2
    paths = [p for split in SPLITS for p in sorted((root / split).rglob("*.png"))]
    expected = np.stack([np.asarray(Image.open(p)) for p in paths]).transpose(0, 3, 1, 2)
    assert np.array_equal(np.concatenate([arrays.train_images, arrays.test_images]), expected)
    assert arrays.train_labels.tolist() == [cifar.CLASSES.index(p.parent.name) for p in paths if "train" in p.parts]


def test_d4_a_broken_link_is_noticed_though_the_tree_is_cached(tmp_path: Path, own_cache: Path) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    read(root)
    (root / "a/dead.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"dead\.png: a broken link"):
        read(root)


def test_two_trees_with_files_of_one_size_and_time_have_separate_caches(tmp_path: Path, own_cache: Path) -> None:
    digests = []
    for name, value in (("one", 1), ("two", 2)):
        for i in range(24):
            path = tmp_path / name / "a" / f"{i:03}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(path)
            os.utime(path, (1e9, 1e9))  # as after unpacking an archive
        digests.append(read(tmp_path / name).digest())
    one, two = sorted((own_cache / "twoviews").iterdir())
    assert digests[0] != digests[1]
    one.write_bytes(two.read_bytes())  # the cache of another tree is refused like a damaged one
    assert [read(tmp_path / name).digest() for name in ("one", "two")] == digests


@pytest.mark.parametrize("change", [{"background": "black"}, {"value_range": (0.0, 9.0)}, {"image_size": 24}])
def test_images_that_are_read_in_another_way_are_decoded_again(tmp_path: Path, decodings: Decodings, change: dict[str, Any]) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    for options in ({}, change, {}, change):
        folder.read(str(root), folder.Options(**{"image_size": 16, **options}))
    assert len(decodings) == 2


def test_bad_files_and_their_reasons_are_cached(tmp_path: Path, decodings: Decodings) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    (root / "a/bad.png").write_text("not an image")
    options = folder.Options(image_size=16, on_bad="skip")
    first, second = (folder.read(str(root), options) for _ in range(2))
    assert len(decodings) == 1
    assert first.digest() == second.digest()
    assert first.skipped == second.skipped != ()
    assert first.description == second.description
    Image.new("RGB", (16, 16), "red").save(root / "a/bad.png")  # repaired
    assert folder.read(str(root), options).skipped == ()


def test_the_mode_of_a_file_is_part_of_the_key(tmp_path: Path, decodings: Decodings) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    (root / "a/000.png").chmod(0o200)  # a file that cannot be read is bad, until it can
    read(root)
    (root / "a/000.png").chmod(0o644)
    read(root)
    assert len(decodings) == 2


def test_the_cache_is_read_and_written_without_another_copy_of_the_images(own_cache: Path) -> None:
    images = np.zeros((100, 3, 256, 256), np.uint8)
    tracemalloc.start()
    cache.write(b"key", images, {})
    extra = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    found = cache.read(b"key")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert np.array_equal(found[0], images)
    assert extra < 0.1 * images.nbytes
    assert peak < 1.1 * images.nbytes


# ---- a cache that cannot be written ----


def test_a_cache_that_cannot_be_written_costs_one_line(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *parts: bytes) -> None:
        raise OSError(30, "Read-only file system")

    write_cifar_tree(tmp_path / "tree")
    monkeypatch.setattr(cache, "write_atomic", refuse)
    assert len(cifar.read(str(tmp_path / "tree")).train_images) == 30
    assert "could not be written" in capsys.readouterr().out


def test_a_full_disk_leaves_no_part_of_a_cache(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    write_cifar_tree(tmp_path / "tree")
    monkeypatch.setattr(files.os, "fsync", full)
    assert len(cifar.read(str(tmp_path / "tree")).train_images) == 30
    assert "No space left on device: 0.1 MB needed" in capsys.readouterr().out
    assert list((own_cache / "twoviews").iterdir()) == []
