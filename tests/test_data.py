"""Data sets: readers that refuse what is not whole, splits that are fixed, and orders that are functions of the seed."""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import arrays, idx_bytes, mini, write_idx

from twoviews import data as package
from twoviews.data import cifar, dataset, folder, idx
from twoviews.data.arrays import Arrays
from twoviews.data.folder import read_tree

ASSETS = Path(package.__file__).parent.parent / "assets"


# ---- splits ----


@pytest.fixture(scope="module")
def loaded() -> dataset.Dataset:
    return dataset.load("fashion_mini", None)


def test_val_is_a_fixed_stratified_tenth_and_train_is_the_rest(loaded: dataset.Dataset) -> None:
    val = loaded.val_rows
    assert len(val) == len(set(val.tolist())) == 1200
    assert torch.equal(val, val.sort().values)
    assert torch.bincount(loaded.labels[val]).tolist() == [120] * 10
    again = dataset.load("fashion_mini", None)
    assert torch.equal(val, again.val_rows)
    rest = torch.tensor(sorted(set(range(12_000)) - set(val.tolist())))
    images, labels = loaded.split("train")
    assert torch.equal(images, loaded.images[rest])
    assert torch.equal(labels, loaded.labels[rest])
    assert torch.equal(loaded.split("val")[0], loaded.images[val])
    assert torch.equal(loaded.split("val")[1], loaded.labels[val])


def test_val_of_fifty_thousand_images_is_five_thousand() -> None:
    labels = np.arange(50_000) % 10
    whole = Arrays("a", np.zeros((50_000, 1, 2, 2), np.uint8), labels, np.zeros((10, 1, 2, 2), np.uint8), labels[:10], tuple("abcdefghij"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(package.READERS, "a", lambda data_dir: whole)
        rows = dataset.load("a", None).val_rows
    assert len(rows) == 5000
    assert np.bincount(labels[rows.numpy()]).tolist() == [500] * 10


def test_the_other_splits_are_what_they_are_called(loaded: dataset.Dataset) -> None:
    assert loaded.split("train+val") == (loaded.images, loaded.labels)
    assert loaded.split("test") == (loaded.test_images, loaded.test_labels)
    images, labels = loaded.split("train+val+test")
    assert torch.equal(images, torch.cat([loaded.images, loaded.test_images]))
    assert torch.equal(labels, torch.cat([loaded.labels, torch.full_like(loaded.test_labels, -1)])), "no label of a test image"
    images, labels = loaded.split("unlabelled")
    assert images is loaded.images
    assert set(labels.tolist()) == {-1}
    with pytest.raises(ValueError, match=r"expected one of train, val, train\+val, test, unlabelled, train\+val\+test, got 'valid'"):
        loaded.split("valid")
    with pytest.raises(ValueError, match=r"dataset: expected one of .*fashion_mini.*, got 'mnist'"):
        dataset.load("mnist", None)


@pytest.mark.parametrize("size", [0, 1, 7, 100, 333, 1000])
def test_stratified_gives_each_class_its_share(size: int) -> None:
    labels = np.random.default_rng(0).choice(4, 1000, p=[0.55, 0.3, 0.1, 0.05])
    rows = dataset.stratified(labels, size, seed=3)
    assert rows.shape == (size,)
    assert len(set(rows.tolist())) == size
    assert np.all(np.diff(rows) > 0)
    share = np.bincount(labels, minlength=4) * size / 1000
    assert np.all(np.abs(np.bincount(labels[rows], minlength=4) - share) < 1)
    assert np.array_equal(rows, dataset.stratified(labels, size, seed=3))
    if 0 < size < 1000:
        assert not np.array_equal(rows, dataset.stratified(labels, size, seed=4))


def test_stratified_refuses_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="a subset of 3 from 2 rows"):
        dataset.stratified(np.array([0, 1]), 3, seed=0)


# ---- order ----


@pytest.mark.parametrize("n", [1, 2, 3, 320, 50_000])
def test_an_epoch_visits_every_image_once(n: int) -> None:
    assert torch.equal(dataset.epoch_order(0, 0, n).sort().values, torch.arange(n))


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    first = dataset.epoch_order(5, 2, 1000)
    np.random.seed(1)  # noqa: NPY002 - a state that must not matter
    torch.manual_seed(1)
    assert torch.equal(dataset.epoch_order(5, 2, 1000), first)
    orders = {tuple(dataset.epoch_order(seed, epoch, 1000).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_is_that_of_the_first_release() -> None:
    assert dataset.epoch_order(0, 0, 8).tolist() == np.argsort(np.random.Philox(key=[0, 0], counter=[0] * 4).random_raw(8)).tolist()
    assert dataset.epoch_order(3, 1, 10).tolist() == [9, 7, 8, 3, 5, 6, 4, 0, 2, 1]


def test_batches_are_the_epochs_order_cut_in_pieces_the_short_one_dropped() -> None:
    n, batch = 23, 5
    for step in (9, 0, 4, 3, 8, 12):  # not in turn, so that a cache of orders that forgets its key is seen
        epoch, place = divmod(step, 4)
        expected = dataset.epoch_order(7, epoch, n)[place * batch : (place + 1) * batch]
        assert torch.equal(dataset.batch_rows(7, step, n, batch, drop_last=True), expected)
    seen = torch.cat([dataset.batch_rows(7, step, n, batch, drop_last=True) for step in range(4)])
    assert len(set(seen.tolist())) == 20
    assert not torch.equal(dataset.batch_rows(7, 0, n, batch, drop_last=True), dataset.batch_rows(8, 0, n, batch, drop_last=True))
    assert not torch.equal(dataset.batch_rows(7, 0, n, batch, drop_last=True), dataset.batch_rows(7, 0, 24, batch, drop_last=True))


def test_the_last_short_batch_is_kept_where_the_recipe_says_so() -> None:
    assert [dataset.steps_per_epoch(n, 5, drop_last=False) for n in (5, 9, 10, 11)] == [1, 2, 2, 3]
    assert [dataset.steps_per_epoch(n, 5, drop_last=True) for n in (5, 9, 10, 11)] == [1, 1, 2, 2]
    for epoch in range(2):
        seen = torch.cat([dataset.batch_rows(7, 5 * epoch + i, 23, 5, drop_last=False) for i in range(5)])
        assert torch.equal(seen, dataset.epoch_order(7, epoch, 23))
    assert len(dataset.batch_rows(7, 9, 23, 5, drop_last=False)) == 3


# ---- moments, arrays ----


def test_mean_and_std_are_those_of_all_training_pixels(loaded: dataset.Dataset) -> None:
    pixels = loaded.images.double() / 255
    assert loaded.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-9)
    assert loaded.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-9)
    colours = np.random.default_rng(0).integers(0, 256, (50, 3, 8, 8), np.uint8)
    colours[:, 2] = 9  # a channel that does not vary must not divide by zero
    mean, std = dataset._moments(colours)
    assert mean == pytest.approx((colours / 255).mean((0, 2, 3)), rel=1e-9)
    assert std[:2] == pytest.approx((colours / 255).std((0, 2, 3))[:2], rel=1e-9)
    assert std[2] == 1e-3


GOOD = Arrays("a", np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 1, 0, 1]), np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1]), ("x", "y"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"train_images": np.zeros((4, 1, 2, 2), np.float32)}, "a, train images: expected uint8 of shape .*, got float32"),
        ({"train_images": np.zeros((4, 2, 2), np.uint8)}, r"train images: .*got uint8 \(4, 2, 2\)"),
        ({"test_images": np.zeros((2, 2), np.uint8)}, "test images"),
        ({"train_labels": np.array([0, 1, 0])}, "train labels: expected 4 integers"),
        ({"train_labels": np.array([0.0, 1, 0, 1])}, "train labels: expected 4 integers, got float64"),
        ({"train_labels": np.array([[0], [1], [0], [1]])}, "train labels"),
        ({"train_labels": np.array([0, 1, 2, 1])}, "train labels: expected 0 to 1, got 0 to 2"),
        ({"test_labels": np.array([-1, 1])}, "test labels: expected 0 to 1, got -1 to 1"),
        ({"train_images": np.zeros((4, 2, 2, 1), np.uint8)}, r"train images: .*\(N, C, H, W\), C 1 or 3, got uint8 \(4, 2, 2, 1\)"),
        ({"train_images": np.zeros((4, 2, 2, 2), np.uint8)}, "train images: .*C 1 or 3"),
        ({"test_images": np.zeros((2, 4, 2, 2), np.uint8)}, "test images: .*C 1 or 3"),
        ({"train_images": np.full((4, 1, 2, 2), 255.0)}, "train images: expected uint8 .*got float64"),
        ({"train_images": np.full((4, 1, 2, 2), np.nan)}, "train images: expected uint8 .*got float64"),
        ({"train_images": np.zeros((4, 1, 2, 2), np.int16)}, "train images: expected uint8 .*got int16"),
        ({"test_images": np.zeros((2, 1, 2, 2), bool)}, "test images: expected uint8 .*got bool"),
        ({"train_images": np.zeros((0, 1, 2, 2), np.uint8), "train_labels": np.zeros(0, int)}, "train images: expected one at least"),
        ({"test_images": np.zeros((2, 1, 3, 3), np.uint8)}, r"test images: expected .*\(1, 2, 2\), got \(1, 3, 3\)"),
        ({"test_images": np.zeros((2, 3, 2, 2), np.uint8)}, r"test images: expected .*\(1, 2, 2\), got \(3, 2, 2\)"),
        ({"train_labels": np.zeros(0, int)}, r"train labels: expected 4 integers, got int64 \(0,\)"),
        ({"train_labels": np.array(["x", "y", "x", "y"])}, "train labels: expected 4 integers"),
        ({"test_labels": np.array([0, np.nan])}, "test labels: expected 2 integers, got float64"),
    ],
)
def test_d3_arrays_of_another_form_are_refused_by_name(changed: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(GOOD, **changed)


def test_the_digest_is_of_pixels_and_labels() -> None:
    assert GOOD.digest() == dataclasses.replace(GOOD, title="b").digest()
    others = [
        dataclasses.replace(GOOD, train_labels=np.array([0, 1, 1, 0])),
        dataclasses.replace(GOOD, test_labels=np.array([1, 0])),
        dataclasses.replace(GOOD, train_images=GOOD.train_images + np.uint8(1)),
        dataclasses.replace(GOOD, test_images=GOOD.test_images + np.uint8(1)),
    ]
    assert len({GOOD.digest(), *(other.digest() for other in others)}) == 5


# ---- fashion_mini ----


def test_the_embedded_data_are_balanced_small_and_licensed() -> None:
    full = mini()
    assert full.train_images.shape == (12_000, 1, 28, 28)
    assert full.test_images.shape == (2_000, 1, 28, 28)
    assert np.bincount(full.train_labels).tolist() == [1200] * 10
    assert np.bincount(full.test_labels).tolist() == [200] * 10
    assert (ASSETS / "fashion_mini.npz.xz").stat().st_size <= 6 * 2**20
    licence = (ASSETS / "fashion_mini.LICENSE").read_text()
    for part in ("MIT", "Zalando", "Permission is hereby granted, free of charge", 'THE SOFTWARE IS PROVIDED "AS IS"', "github.com"):
        assert part in licence, part
    with pytest.raises(ValueError, match="fashion_mini is in the package: leave data_dir out"):
        idx.read_mini("somewhere")


# ---- IDX files ----


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_idx_files_are_read_zipped_or_not(tmp_path: Path, zipped: bool) -> None:
    parts = arrays()
    write_idx(tmp_path, parts)
    if zipped:
        for path in list(tmp_path.iterdir()):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    read = idx.read(str(tmp_path))
    assert read.title == "Fashion-MNIST"
    assert len(read.classes) == 10
    for found, expected in zip((read.train_images[:, 0], read.train_labels, read.test_images[:, 0], read.test_labels), parts, strict=True):
        assert np.array_equal(found, expected)
    assert read.train_labels.dtype == np.int64


WHOLE = idx_bytes(np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (WHOLE[:-1], "cut short"),
        (WHOLE + b"\0", "do not hold"),
        (WHOLE[:9], "not an IDX file"),
        (b"", "not an IDX file"),
        (b"<!doctype html><title>404</title>", "not an IDX file"),
        (b"\0\0\x0d" + WHOLE[3:], "not an IDX file of bytes"),  # floats
        (gzip.compress(WHOLE)[:-12], "damaged gzip file"),
        (gzip.compress(WHOLE)[:-8] + bytes(8), "damaged gzip file"),
        (gzip.compress(WHOLE)[:10] + b"\xff" * 20, "damaged gzip file"),
        (gzip.compress(b"<html>"), "not an IDX file"),
    ],
    ids=["truncated", "longer", "head cut", "empty", "HTML", "floats", "gzip cut", "gzip checksum", "gzip noise", "zipped HTML"],
)
def test_d3_a_damaged_idx_file_is_refused_by_name(tmp_path: Path, blob: bytes, says: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(blob)
    with pytest.raises(ValueError, match=f"{path}: .*{says}"):
        idx.read_idx(path)


def test_a_whole_idx_file_is_read() -> None:
    assert WHOLE[4:16] == bytes([0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4])


def test_d3_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "LARGEST", 2**20)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="holds more than 1 MiB"):
        idx.read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_d3_a_missing_or_swapped_idx_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays())
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz in .*data_dir="):
        idx.read(str(tmp_path))
    shutil.copy(tmp_path / "train-labels-idx1-ubyte", tmp_path / "t10k-labels-idx1-ubyte")
    with pytest.raises(ValueError, match="test labels: expected 100 integers"):
        idx.read(str(tmp_path))
    shutil.copy(tmp_path / "train-labels-idx1-ubyte", tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(ValueError, match="expected images of shape"):
        idx.read(str(tmp_path))


# ---- image trees ----

EACH = {"train": 3, "test": 2}


def make_tree(root: Path, suffix: str = ".png", classes: tuple[str, ...] = cifar.CLASSES) -> np.ndarray:
    """A tree of noise, its images in the order of the reader: (N, 3, 32, 32)."""
    random = np.random.default_rng(0)
    made = []
    for split, each in EACH.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                made.append(random.integers(0, 256, (32, 32, 3), np.uint8))
                Image.fromarray(made[-1]).save(root / split / name / f"{i:04}{suffix}")
    return np.stack(made).transpose(0, 3, 1, 2)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A cache of its own, and how many files were decoded at each decoding."""
    counts: list[int] = []
    real = folder._decode

    def counted(paths: list[Path], title: str, size: int | None) -> tuple[np.ndarray, dict[int, str]]:
        counts.append(len(paths))
        return real(paths, title, size)

    monkeypatch.setattr(folder, "_decode", counted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return counts


def test_a_tree_of_png_is_cifar10_pixel_for_pixel(tmp_path: Path, decodes: list[int]) -> None:
    expected = make_tree(tmp_path / "tree")
    (tmp_path / "tree/train/cat/.hidden.png").write_text("not an image")
    (tmp_path / "tree/train/cat/notes.txt").write_text("not an image")
    read = cifar.read(str(tmp_path / "tree"))
    assert read.title == "CIFAR-10"
    assert read.classes == cifar.CLASSES
    assert np.array_equal(np.concatenate([read.train_images, read.test_images]), expected)
    assert read.train_labels.tolist() == [c for c in range(10) for _ in range(3)]
    assert read.test_labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert decodes == [50]


def test_a_lossy_tree_is_called_a_copy(tmp_path: Path, decodes: list[int]) -> None:
    make_tree(tmp_path / "jpg", ".jpg")
    assert cifar.read(str(tmp_path / "jpg")).title == "CIFAR-10 (JPEG copy)"
    make_tree(tmp_path / "mixed")
    one = tmp_path / "mixed/test/dog/0001.png"
    Image.open(one).save(one.with_suffix(".JPEG"), format="JPEG")
    one.unlink()
    assert cifar.read(str(tmp_path / "mixed")).title == "CIFAR-10 (JPEG copy)"


def test_a_tree_is_decoded_once(tmp_path: Path, decodes: list[int]) -> None:
    make_tree(tmp_path / "tree")
    first, second = (cifar.read(str(tmp_path / "tree")) for _ in range(2))
    assert decodes == [50]
    assert first.digest() == second.digest()
    assert second.train_images.flags.writeable


def damage(path: Path, at: int) -> None:
    blob = bytearray(path.read_bytes())
    blob[at] ^= 1
    path.write_bytes(blob)


@pytest.mark.parametrize("how", ["pixel", "checksum", "truncated", "empty"])
def test_a_damaged_cache_is_seen_and_made_again(tmp_path: Path, decodes: list[int], capsys: pytest.CaptureFixture[str], how: str) -> None:
    make_tree(tmp_path / "tree")
    first = cifar.read(str(tmp_path / "tree"))
    (cache,) = (tmp_path / "cache/twoviews").iterdir()
    if how in ("pixel", "checksum"):
        damage(cache, -1000 if how == "pixel" else 5)
    else:
        cache.write_bytes(cache.read_bytes()[:5000] if how == "truncated" else b"")
    assert cifar.read(str(tmp_path / "tree")).digest() == first.digest()
    assert decodes == [50, 50]
    assert f"cache {cache} is damaged: decoding again" in capsys.readouterr().out
    assert cifar.read(str(tmp_path / "tree")).digest() == first.digest()
    assert decodes == [50, 50]


CHANGES: dict[str, Callable[[Path], object]] = {
    "other pixels": lambda root: Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(root / "train/cat/0000.png"),
    "one more": lambda root: shutil.copy(root / "train/cat/0000.png", root / "train/cat/0009.png"),
    "one less": lambda root: (root / "test/dog/0001.png").unlink(),
    "another class": lambda root: (root / "train/cat/0000.png").rename(root / "train/dog/0007.png"),
    "another name": lambda root: (root / "train/cat/0000.png").rename(root / "train/cat/0008.png"),
    "another time": lambda root: os.utime(root / "train/cat/0000.png", (1, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tree_is_decoded_again(tmp_path: Path, decodes: list[int], change: str) -> None:
    root = tmp_path / "tree"
    make_tree(root)
    cifar.read(str(root))
    CHANGES[change](root)
    read = cifar.read(str(root))
    assert len(decodes) == 2
    paths = [p for split in EACH for p in sorted((root / split).rglob("*.png"))]
    expected = np.stack([np.asarray(Image.open(p)) for p in paths]).transpose(0, 3, 1, 2)
    assert np.array_equal(np.concatenate([read.train_images, read.test_images]), expected)
    assert read.train_labels.tolist() == [cifar.CLASSES.index(p.parent.name) for p in paths if "train" in p.parts]


def test_a_cache_that_cannot_be_kept_costs_a_line_and_no_more(
    tmp_path: Path, decodes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    make_tree(tmp_path / "tree")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(cifar.read(str(tmp_path / "tree")).train_images) == 30
    assert "not written" in capsys.readouterr().out


def test_bad_files_are_all_found_and_listed(tmp_path: Path, decodes: list[int]) -> None:
    root = tmp_path / "tree"
    make_tree(root)
    good = (root / "train/cat/0000.png").read_bytes()
    bad = {
        root / "train/bird/0000.png": b"",
        root / "train/cat/0000.png": good[: len(good) // 2],
        root / "train/deer/0001.png": b"<html>not found</html>",
        root / "test/ship/0001.png": b"GIF89a" + bytes(40),
    }
    for path, blob in bad.items():
        path.write_bytes(blob)
    Image.new("RGB", (31, 32)).save(root / "test/truck/0000.png")
    with pytest.raises(ValueError, match="5 of 50 files are no images of one size") as refused:
        cifar.read(str(root))
    for path in [*bad, root / "test/truck/0000.png"]:
        assert str(path) in str(refused.value)
    assert "31 x 32 pixels, the first image has 32 x 32" in str(refused.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, decodes: list[int], mode: str) -> None:
    make_tree(tmp_path / "tree")
    other = Image.open(tmp_path / "tree/train/cat/0000.png").convert(mode)
    other.save(tmp_path / "tree/train/cat/0000.png")
    read = cifar.read(str(tmp_path / "tree"))
    assert np.array_equal(read.train_images[3 * 3].transpose(1, 2, 0), np.asarray(other.convert("RGB")))


def test_trees_of_other_shapes_are_refused(tmp_path: Path, decodes: list[int]) -> None:
    (tmp_path / "empty").mkdir()
    for name, says in (("none", "got no such file or folder"), ("empty", "got none of them")):
        with pytest.raises(ValueError, match=says):
            cifar.read(str(tmp_path / name))
    make_tree(tmp_path / "other", classes=("a", "b"))
    with pytest.raises(ValueError, match=r"holds 2 classes of .*: not CIFAR-10's 10"):
        cifar.read(str(tmp_path / "other"))
    make_tree(tmp_path / "names", classes=tuple("abcdefghij"))
    with pytest.raises(ValueError, match=r"holds 10 classes of .*: not CIFAR-10's 10"):
        cifar.read(str(tmp_path / "names"))
    shutil.rmtree(tmp_path / "other/test/b")
    with pytest.raises(ValueError, match="must hold the same class folders"):
        read_tree(tmp_path / "other", title="a")
    shutil.rmtree(tmp_path / "other/test/a")
    (tmp_path / "other/test/a").mkdir()
    (tmp_path / "other/test/b").mkdir()
    with pytest.raises(ValueError, match="no images"):
        read_tree(tmp_path / "other", title="a")


# ---- a part of the training images ----


def test_train_size_keeps_a_stratified_part_that_is_always_the_same_and_says_so(data: Path) -> None:
    whole, part, again = (dataset.load("fashion_mnist", str(data), size) for size in (None, 80, 80))
    assert torch.equal(part.images, again.images)
    assert part.title == "Fashion-MNIST, 80 of 320 training images"
    assert part.labels.bincount().tolist() == [8] * 10
    assert torch.equal(part.test_images, whole.test_images)
    assert len(part.split("val")[0]) == 8
    rows = {image.numpy().tobytes(): int(label) for image, label in zip(whole.images, whole.labels, strict=True)}
    assert all(rows[image.numpy().tobytes()] == int(label) for image, label in zip(part.images, part.labels, strict=True))
    assert dataset.load("fashion_mnist", str(data), 320).labels.bincount().tolist() == whole.labels.bincount().tolist()


def test_a_part_of_a_tree_that_comes_class_by_class_has_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat(np.arange(4), [40, 40, 80, 80])
    images = np.arange(240, dtype=np.uint8).reshape(240, 1, 1, 1)
    sorted_by_class = Arrays("by class", images, labels, images, labels, tuple("abcd"))
    monkeypatch.setitem(package.READERS, "fashion_mini", lambda data_dir: sorted_by_class)
    part = dataset.load("fashion_mini", None, 60)
    assert part.labels.bincount().tolist() == [10, 10, 20, 20]


def test_more_training_images_than_there_are_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match=r"train_size=321: Fashion-MNIST has 320 training images"):
        dataset.load("fashion_mnist", str(data), 321)


def test_a_download_that_fails_says_what_else_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def fails(*args: object, **more: object) -> None:
        raise RuntimeError("Error downloading\ntrain-images")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fails)
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"download failed \(Error downloading train-images\): install .* or give data_dir="):
        dataset.load("fashion_mnist", None, None)


def test_images_for_a_net_of_other_channels(loaded: dataset.Dataset) -> None:
    colour = dataset.with_channels(loaded, 3)
    assert colour.images.shape[1] == colour.test_images.shape[1] == 3
    assert all(torch.equal(colour.images[:, c], loaded.images[:, 0]) for c in range(3))
    assert colour.mean == pytest.approx(loaded.mean * 3)
    gray = dataset.with_channels(colour, 1)
    assert (colour.title, gray.title) == (loaded.title, f"{loaded.title}, gray")
    assert torch.equal(gray.images, loaded.images)
    red = dataclasses.replace(loaded, images=torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4))
    assert dataset.with_channels(red, 1).images.unique().tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]
    assert dataset.with_channels(loaded, 1) is loaded
    with pytest.raises(ValueError, match="has 1 channels, the net takes 4"):
        dataset.with_channels(loaded, 4)
