"""Data sets in memory: fixed splits, batches in the order of the seed, moments, and channels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from twoviews.data import READERS, dataset
from twoviews.data.arrays import Arrays
from twoviews.rng import permutation


@pytest.fixture(scope="module")
def mini() -> dataset.Dataset:
    return dataset.load("fashion_mini", None)


# ---- splits ----


def test_val_is_a_fixed_stratified_tenth_and_train_is_the_rest(mini: dataset.Dataset) -> None:
    val = mini.val_rows
    assert len(val) == len(set(val.tolist())) == 1200
    assert torch.equal(val, val.sort().values)
    assert torch.bincount(mini.labels[val]).tolist() == [120] * 10
    again = dataset.load("fashion_mini", None)
    assert torch.equal(val, again.val_rows)
    rest = torch.tensor(sorted(set(range(12_000)) - set(val.tolist())))
    images, labels = mini.split("train")
    assert torch.equal(images, mini.images[rest])
    assert torch.equal(labels, mini.labels[rest])
    assert torch.equal(mini.split("val")[0], mini.images[val])
    assert torch.equal(mini.split("val")[1], mini.labels[val])


def test_val_of_fifty_thousand_images_is_five_thousand() -> None:
    labels = np.arange(50_000) % 10
    whole = Arrays("a", np.zeros((50_000, 1, 2, 2), np.uint8), labels, np.zeros((10, 1, 2, 2), np.uint8), labels[:10], tuple("abcdefghij"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(READERS, "a", lambda data_dir: whole)
        rows = dataset.load("a", None).val_rows
    assert len(rows) == 5000
    assert np.bincount(labels[rows.numpy()]).tolist() == [500] * 10


def test_the_other_splits_are_what_their_names_say(mini: dataset.Dataset) -> None:
    assert mini.split("train+val") == (mini.images, mini.labels)
    assert mini.split("test") == (mini.test_images, mini.test_labels)
    images, labels = mini.split("train+val+test")
    assert torch.equal(images, torch.cat([mini.images, mini.test_images]))
    assert torch.equal(labels, torch.cat([mini.labels, torch.full_like(mini.test_labels, -1)])), "a label of a test image is visible"
    images, labels = mini.split("unlabelled")
    assert images is mini.images
    assert set(labels.tolist()) == {-1}
    with pytest.raises(ValueError, match=r"expected one of train, val, train\+val, test, unlabelled, train\+val\+test, got 'valid'"):
        mini.split("valid")
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


def test_a_subset_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="a subset of 3 rows: expected at most 2"):
        dataset.stratified(np.array([0, 1]), 3, seed=0)


@pytest.mark.parametrize("counts", [[50, 50], [2, 2, 2, 50], [1, 3, 40], [1, 1, 1], [2] * 9])
def test_stratified_can_take_one_of_each_class_and_never_all_of_one(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = dataset.stratified(labels, len(labels) // 10, seed=3, every_class=True)
    taken = np.bincount(labels[rows], minlength=len(counts))
    assert all(take < count for take, count in zip(taken, counts, strict=True))
    assert all(take > 0 for take, count in zip(taken, counts, strict=True) if count > 1)
    if min(counts) > 10:
        assert np.array_equal(rows, dataset.stratified(labels, len(labels) // 10, seed=3))


def test_unlabelled_images_train_and_are_in_no_split() -> None:
    images, labels = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1), np.arange(40) % 2
    arrays = Arrays("a", images, labels, images[:4] + np.uint8(100), labels[:4], ("x", "y"), unlabelled_images=images[:3] + np.uint8(200))
    data = dataset.prepare(arrays)
    trained_on, given = data.training("train+val", labelled=False)
    assert trained_on.flatten().tolist() == [*range(40), 200, 201, 202]
    assert given.tolist() == [*labels, -1, -1, -1]
    for name in ("train", "val", "train+val", "test", "train+val+test"):
        assert int(data.split(name)[0].max()) < 200
        assert all(torch.equal(a, b) for a, b in zip(data.training(name, labelled=True), data.split(name), strict=True))
    assert data.mean[0] == pytest.approx(trained_on.double().mean().item() / 255)
    colour = dataset.with_channels(data, 3)
    assert colour.unlabelled_images.shape == (3, 3, 1, 1)
    assert colour.training("train", labelled=False)[0].shape[1] == 3
    assert len(dataset.prepare(dataclasses.replace(arrays, unlabelled_images=None)).unlabelled_images) == 0


def test_arrays_that_cannot_be_written_to_are_copied_without_a_warning() -> None:
    images = np.zeros((30, 1, 2, 2), np.uint8)
    images.flags.writeable = False
    data = dataset.prepare(Arrays("a", images, np.arange(30) % 2, images[:2], np.array([0, 1]), ("x", "y")))
    data.images[0] = 1
    assert not images.any()


def test_a_named_data_set_is_described_in_one_line(mini: dataset.Dataset) -> None:
    assert mini.description == ("Fashion-MNIST mini: train 12,000 images, test 2,000 images, 10 classes",)


# ---- a part of the training images ----


def test_train_size_keeps_a_stratified_part_that_is_always_the_same_and_the_title_says_so(data: Path) -> None:
    whole, part, again = (dataset.load("fashion_mnist", str(data), size) for size in (None, 80, 80))
    assert torch.equal(part.images, again.images)
    assert part.title == "Fashion-MNIST, 80 of 320 training images"
    assert part.labels.bincount().tolist() == [8] * 10
    assert torch.equal(part.test_images, whole.test_images)
    assert len(part.split("val")[0]) == 8
    rows = {image.numpy().tobytes(): int(label) for image, label in zip(whole.images, whole.labels, strict=True)}
    assert all(rows[image.numpy().tobytes()] == int(label) for image, label in zip(part.images, part.labels, strict=True))
    assert dataset.load("fashion_mnist", str(data), 320).labels.bincount().tolist() == whole.labels.bincount().tolist()


def test_a_part_of_data_that_are_sorted_by_class_has_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat(np.arange(4), [40, 40, 80, 80])
    images = np.arange(240, dtype=np.uint8).reshape(240, 1, 1, 1)
    sorted_by_class = Arrays("by class", images, labels, images, labels, tuple("abcd"))
    monkeypatch.setitem(READERS, "fashion_mini", lambda data_dir: sorted_by_class)
    part = dataset.load("fashion_mini", None, 60)
    assert part.labels.bincount().tolist() == [10, 10, 20, 20]


def test_a_train_size_above_the_data_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match=r"train_size=321: Fashion-MNIST has 320 training images"):
        dataset.load("fashion_mnist", str(data), 321)


# ---- batches ----


def test_batches_are_consecutive_parts_of_the_order_without_the_last_smaller_one() -> None:
    n, batch = 23, 5
    for step in (9, 0, 4, 3, 8, 12):  # not in order, so that a cache with a wrong key fails
        epoch, batch_index = divmod(step, 4)
        expected = permutation(7, epoch, n)[batch_index * batch : (batch_index + 1) * batch]
        assert torch.equal(dataset.batch_rows(7, step, n, batch, drop_last=True), expected)
    seen = torch.cat([dataset.batch_rows(7, step, n, batch, drop_last=True) for step in range(4)])
    assert len(set(seen.tolist())) == 20
    assert not torch.equal(dataset.batch_rows(7, 0, n, batch, drop_last=True), dataset.batch_rows(8, 0, n, batch, drop_last=True))
    assert not torch.equal(dataset.batch_rows(7, 0, n, batch, drop_last=True), dataset.batch_rows(7, 0, 24, batch, drop_last=True))


def test_the_last_smaller_batch_is_kept_with_drop_last_false() -> None:
    assert [dataset.steps_per_epoch(n, 5, drop_last=False) for n in (5, 9, 10, 11)] == [1, 2, 2, 3]
    assert [dataset.steps_per_epoch(n, 5, drop_last=True) for n in (5, 9, 10, 11)] == [1, 1, 2, 2]
    for epoch in range(2):
        seen = torch.cat([dataset.batch_rows(7, 5 * epoch + i, 23, 5, drop_last=False) for i in range(5)])
        assert torch.equal(seen, permutation(7, epoch, 23))
    assert len(dataset.batch_rows(7, 9, 23, 5, drop_last=False)) == 3


# ---- moments and channels ----


def test_mean_and_std_are_those_of_all_training_pixels(mini: dataset.Dataset) -> None:
    pixels = mini.images.double() / 255
    assert mini.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-9)
    assert mini.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-9)
    colours = np.random.default_rng(0).integers(0, 256, (50, 3, 8, 8), np.uint8)
    colours[:, 2] = 9  # a constant channel must not give a division by zero
    mean, std = dataset._moments(colours)
    assert mean == pytest.approx((colours / 255).mean((0, 2, 3)), rel=1e-9)
    assert std[:2] == pytest.approx((colours / 255).std((0, 2, 3))[:2], rel=1e-9)
    assert std[2] == 1e-3


def test_the_number_of_channels_can_be_changed_between_1_and_3(data: Path) -> None:
    gray = dataset.load("fashion_mnist", str(data))
    colour = dataset.with_channels(gray, 3)
    assert colour.images.shape[1] == colour.test_images.shape[1] == 3
    assert all(torch.equal(colour.images[:, c], gray.images[:, 0]) for c in range(3))
    assert colour.mean == pytest.approx(gray.mean * 3)
    back = dataset.with_channels(colour, 1)
    assert (colour.title, back.title) == (gray.title, f"{gray.title}, gray")
    assert torch.equal(back.images, gray.images)
    red = dataclasses.replace(gray, images=torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4))
    assert dataset.with_channels(red, 1).images.unique().tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]
    assert dataset.with_channels(gray, 1) is gray
    with pytest.raises(ValueError, match="has 1 channels, the backbone takes 4"):
        dataset.with_channels(gray, 4)
