"""A data set in memory: images as uint8 tensors, their splits, and their order in each epoch."""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from twoviews.data import READERS, folder
from twoviews.data.arrays import OWN_IMAGES, Arrays
from twoviews.data.describe import describe
from twoviews.data.folder import Options
from twoviews.images.channels import change_channels
from twoviews.images.names import plural, span
from twoviews.rng import permutation

VAL_SIZE = 5000  # images in `val`, or a tenth of the training images if that is less
MOST_HELD_OUT = 0.25  # share of the images; where one of each class is more, there is no test split
SPLITS = ("train", "val", "train+val", "test", "unlabelled", "train+val+test")


@dataclass(frozen=True)
class Dataset:
    """Labelled images and their splits.

    Args:
        title: its name in tables.
        images, labels: the official training images, (N, C, H, W) uint8, and their labels, (N,) int64.
        test_images, test_labels: the official test images and labels.
        classes: their names.
        val_rows: rows of the training images that form `val`, sorted.
        mean, std: of the training pixels in [0, 1], per channel.
        digest: SHA-256 of pixels and labels.
        skipped: files of a folder that were left out, each with the reason.
        unlabelled_images: (M, C, H, W) uint8: images without labels, which only train.
        description: what was read, as it is printed before training.
        names, test_names: file names of the images, or empty.
    """

    title: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    val_rows: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    skipped: tuple[str, ...] = ()
    unlabelled_images: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    description: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()

    def training(self, name: str, *, labelled: bool) -> tuple[Tensor, Tensor]:
        """Return what a method trains on: the images and labels of a split, and the unlabelled images with label -1.

        Args:
            name: of the split.
            labelled: leave the unlabelled images out, for a method that needs labels.
        """
        images, labels = self.split(name)
        if labelled or not len(self.unlabelled_images):
            return images, labels
        return torch.cat([images, self.unlabelled_images]), torch.cat([labels, labels.new_full((len(self.unlabelled_images),), -1)])

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Return images (n, C, H, W) uint8 and labels (n,) int64 of one split.

        Args:
            name: `train` and `val`, the two parts of the official training images; `train+val`, all of them; `test`;
                `unlabelled`, which is `train+val` with labels -1; or `train+val+test`, where test images have label -1.

        Raises:
            ValueError: if there is no such split.
        """
        if name == "test":
            return self.test_images, self.test_labels
        if name == "train+val":
            return self.images, self.labels
        if name == "unlabelled":
            return self.images, torch.full_like(self.labels, -1)
        if name == "train+val+test":
            return torch.cat([self.images, self.test_images]), torch.cat([self.labels, torch.full_like(self.test_labels, -1)])
        if name == "val":
            return self.images[self.val_rows], self.labels[self.val_rows]
        if name == "train":
            rest = torch.ones(len(self.labels), dtype=torch.bool)
            rest[self.val_rows] = False
            return self.images[rest], self.labels[rest]
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {name!r}")


def load(name: str, data_dir: str | None, train_size: int | None = None, *, options: Options | None = None) -> Dataset:
    """Return a data set by name.

    Args:
        name: a key of `data.READERS`, or `folder`.
        data_dir: its location, or None for the reader's own.
        train_size: see `prepare`.
        options: only for `folder`.

    Raises:
        ValueError: from the reader, or if `train_size` is larger than the data set.
    """
    if name == "folder":
        return prepare(folder.read(data_dir, options or Options()), train_size)
    if name not in READERS:
        raise ValueError(f"dataset: expected one of {', '.join(READERS)} or folder, got {name!r}")
    for key in fields(Options):
        value = getattr(options or Options(), key.name)
        if value != key.default:
            reason = f"the images of {name} have a fixed size" if key.name == "image_size" else f"{name} does not use it"
            raise ValueError(f"{key.name}={value}: {reason}: leave it out; {OWN_IMAGES}")
    return prepare(READERS[name](data_dir), train_size)


def prepare(arrays: Arrays, train_size: int | None = None) -> Dataset:
    """Return a data set in memory. If it has no test split, a tenth of its images becomes one.

    Args:
        arrays: from a reader.
        train_size: number of training images to keep, or None for all. The choice is stratified and always the same;
            training and evaluation see only these images, and the title says so.

    Raises:
        ValueError: if `train_size` is larger than the data set.
    """
    made = ""
    if not len(arrays.test_labels):
        arrays, made = _hold_out(arrays)
    if train_size is not None:
        total = len(arrays.train_labels)
        if train_size > total:
            raise ValueError(f"train_size={train_size}: {arrays.title} has {total} training images: choose at most that")
        rows = stratified(arrays.train_labels, train_size, seed=2)  # 0 chooses `val`, 1 a tuning run's val
        arrays = _with_train(replace(arrays, title=f"{arrays.title}, {train_size:,} of {total:,} training images"), rows)
    unlabelled = arrays.train_images[:0] if arrays.unlabelled_images is None else arrays.unlabelled_images
    val_rows = stratified(arrays.train_labels, min(VAL_SIZE, len(arrays.train_labels) // 10), seed=0)
    mean, std = _moments(arrays.train_images, unlabelled)
    return Dataset(
        title=arrays.title,
        images=_tensor(arrays.train_images),
        labels=_tensor(arrays.train_labels),
        test_images=_tensor(arrays.test_images),
        test_labels=_tensor(arrays.test_labels),
        classes=arrays.classes,
        val_rows=torch.from_numpy(val_rows),
        mean=mean,
        std=std,
        digest=arrays.digest(),
        skipped=arrays.skipped,
        unlabelled_images=_tensor(unlabelled),
        description=describe(arrays, made, val_rows),
        names=arrays.train_names,
        test_names=arrays.test_names,
    )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


def _with_train(arrays: Arrays, rows: np.ndarray) -> Arrays:
    """Return the data with some of the training images."""
    names = tuple(arrays.train_names[i] for i in rows) if arrays.train_names else ()
    return replace(arrays, train_images=arrays.train_images[rows], train_labels=arrays.train_labels[rows], train_names=names)


def _hold_out(arrays: Arrays) -> tuple[Arrays, str]:
    """Move a stratified tenth of the training images, always the same ones, to the empty test split.

    Each class with two images or more gets at least one test image. Where that takes too many, nothing is moved.

    Returns:
        The data, and how the test split was made or why there is none.
    """
    labels, total = arrays.train_labels, len(arrays.train_labels)
    rows = stratified(labels, total // 10, seed=3, every_class=True)
    counts = np.bincount(labels)
    present, held_out = int((counts > 0).sum()), len(np.unique(labels[rows]))
    if len(rows) > MOST_HELD_OUT * total or held_out < present / 2:
        sizes = counts[counts > 0]
        few = f"{span(sizes.min(), sizes.max(), 'image')} in each of {plural(present, 'class')}"
        made = f"no test split: {few} are too few for one: evaluation is leave-one-out kNN on the training images"
        return replace(arrays, title=f"{arrays.title}, no test split"), made
    test = _with_train(arrays, rows)
    tenth = len(rows) <= total // 10
    part = "a tenth" if tenth else "at least one image of each class"
    shares = "" if present < 2 else ", each class by its share" if tenth else ", a tenth of large classes"
    made = f"made: test is {part}{' of the images' * tenth}{shares}, chosen at random, always the same images"
    rest = _with_train(arrays, np.setdiff1d(np.arange(total), rows))
    title = f"{arrays.title}, {part} held out as test"
    held = replace(rest, title=title, test_images=test.train_images, test_labels=test.train_labels, test_names=test.train_names)
    return held, made


def with_channels(dataset: Dataset, channels: int) -> Dataset:
    """Return a data set with another number of channels: gray is repeated, colour becomes ITU-R 601 luma.

    Args:
        dataset: of 1 or 3 channels.
        channels: 1 or 3, or the data set's own number.

    Raises:
        ValueError: for any other pair.
    """
    own = dataset.images.shape[1]
    if own == channels:
        return dataset
    if {own, channels} != {1, 3}:
        raise ValueError(f"{dataset.title}: has {own} channels, the backbone takes {channels}: expected 1 or 3 for both")
    images, test = change_channels(dataset.images, channels), change_channels(dataset.test_images, channels)
    unlabelled = change_channels(dataset.unlabelled_images, channels) if len(dataset.unlabelled_images) else images[:0]
    mean, std = _moments(images.numpy(), unlabelled.numpy())
    title = dataset.title if channels == 3 else f"{dataset.title}, gray"  # with gray pixels it is another protocol
    return replace(dataset, title=title, images=images, test_images=test, unlabelled_images=unlabelled, mean=mean, std=std)


def _moments(*parts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in [0, 1], computed exactly from its histogram."""
    values = np.arange(256) / 255
    counts = np.zeros((parts[0].shape[1], 256), np.int64)
    for chunk in (part[start : start + 1000] for part in parts for start in range(0, len(part), 1000)):  # `bincount` makes an int64 copy
        counts += [np.bincount(chunk[:, c].reshape(-1), minlength=256) for c in range(len(counts))]
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    return tuple(mean.tolist()), tuple(np.maximum(std, 1e-3).tolist())


def stratified(labels: np.ndarray, size: int, *, seed: int, every_class: bool = False) -> np.ndarray:
    """Return the rows of a stratified subset, as a pure function of the labels and the seed.

    Args:
        labels: (N,) integers.
        size: number of rows, <= N. Each class keeps its share; the largest remainders are rounded up.
        seed: of the choice.
        every_class: at least one row of each class that has two, and never all rows of a class; the number can then differ from size.

    Returns:
        (size,) sorted int64 rows.

    Raises:
        ValueError: if size > N.
    """
    if size > len(labels):
        raise ValueError(f"a subset of {size} rows: expected at most {len(labels)}")
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * size / len(labels)
    take = np.floor(exact).astype(np.int64)
    take[np.argsort(take - exact, kind="stable")[: size - take.sum()]] += 1
    if every_class:
        take = np.clip(take, counts > 1, counts - 1)
    order = permutation(seed, 0, len(labels)).numpy()
    return np.sort(np.concatenate([order[labels[order] == c][:k] for c, k in zip(classes, take, strict=True)]))


def steps_per_epoch(n: int, batch_size: int, *, drop_last: bool) -> int:
    """Return the number of batches in an epoch of n images, with or without the last, smaller one."""
    return n // batch_size if drop_last else -(-n // batch_size)


def batch_rows(seed: int, step: int, n: int, batch_size: int, *, drop_last: bool) -> Tensor:
    """Return the rows of the images in the global batch of one step.

    Args:
        seed, step: of the run.
        n: number of training images.
        batch_size: N <= n.
        drop_last: skip the last, smaller batch of an epoch, so that every step has the same number of negatives.

    Returns:
        (batch_size,) int64; the last batch of an epoch may be smaller.
    """
    epoch, batch = divmod(step, steps_per_epoch(n, batch_size, drop_last=drop_last))
    return _cached_order(seed, epoch, n)[batch * batch_size : (batch + 1) * batch_size]


_last_order: dict[tuple[int, int, int], Tensor] = {}


def _cached_order(seed: int, epoch: int, n: int) -> Tensor:
    """Return `permutation`, cached during an epoch, because sorting 50,000 words takes 5 ms."""
    key = (seed, epoch, n)
    if key not in _last_order:
        _last_order.clear()
        _last_order[key] = permutation(seed, epoch, n)
    return _last_order[key]
