"""A data set in memory: images as uint8 tensors, its splits, and the order in which an epoch visits it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from twoviews.data import READERS, folder
from twoviews.data.arrays import Arrays

VAL_SIZE = 5000  # of CIFAR's and Fashion-MNIST's training images; a tenth of smaller sets
SPLITS = ("train", "val", "train+val", "test", "unlabelled", "train+val+test")


@dataclass(frozen=True)
class Dataset:
    """Labelled images and their splits.

    Args:
        title: what tables call it.
        images, labels: the official training images, (N, C, H, W) uint8, and their (N,) int64 labels.
        test_images, test_labels: the official test images.
        classes: names.
        val_rows: which of the training images are `val`, sorted.
        mean, std: of the official training pixels in [0, 1], per channel.
        digest: SHA-256 of pixels and labels.
        skipped: files of a folder that were left out, each with its reason.
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

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) uint8 and labels (n,) int64 of one split.

        Args:
            name: `train` and `val` part the official training images; `train+val` is all of them; `test`; `unlabelled`
                is what a method without labels may see: `train+val`, its labels -1; `train+val+test` has the test images too, and
                for those no labels.

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


def load(name: str, data_dir: str | None, train_size: int | None = None, *, image_size: int | None = None, on_bad: str = "stop") -> Dataset:
    """Read a data set by name.

    Args:
        name: a key of `data.READERS`, or `folder`.
        data_dir: where it lies, or None for its own place.
        train_size: keep so many of the training images, every class by its share, always the same ones; None: all. What is left
            is all that training and read-outs see, and the title says so.
        image_size, on_bad: of `folder` alone: see `folder.read`. A folder without a test split gives up a tenth of its images for one.

    Raises:
        ValueError: from the reader: what was expected, what was found; or if there are not so many images.
    """
    if name not in (*READERS, "folder"):
        raise ValueError(f"dataset: expected one of {', '.join(READERS)} or folder, got {name!r}")
    if name != "folder" and image_size is not None:
        raise ValueError(f"image_size={image_size}: {name} has its own size: expected null, or dataset=folder")
    arrays = folder.read(data_dir, image_size=image_size, on_bad=on_bad) if name == "folder" else READERS[name](data_dir)
    if not len(arrays.test_labels):
        arrays = _hold_out(arrays)
    if train_size is not None:
        there = len(arrays.train_labels)
        if train_size > there:
            raise ValueError(f"train_size={train_size}: {arrays.title} has {there} training images: choose at most that")
        rows = stratified(arrays.train_labels, train_size, seed=2)  # val takes seed 0, a tuning run's own val seed 1
        title = f"{arrays.title}, {train_size:,} of {there:,} training images"
        arrays = replace(arrays, title=title, train_images=arrays.train_images[rows], train_labels=arrays.train_labels[rows])
    mean, std = _moments(arrays.train_images)
    return Dataset(
        title=arrays.title,
        images=torch.from_numpy(np.ascontiguousarray(arrays.train_images)),
        labels=torch.from_numpy(arrays.train_labels),
        test_images=torch.from_numpy(np.ascontiguousarray(arrays.test_images)),
        test_labels=torch.from_numpy(arrays.test_labels),
        classes=arrays.classes,
        val_rows=torch.from_numpy(stratified(arrays.train_labels, min(VAL_SIZE, len(arrays.train_labels) // 10), seed=0)),
        mean=mean,
        std=std,
        digest=arrays.digest(),
        skipped=arrays.skipped,
    )


def _hold_out(arrays: Arrays) -> Arrays:
    """A tenth of the training images, every class by its share, always the same ones, as the test split that the data lack."""
    rows = stratified(arrays.train_labels, len(arrays.train_labels) // 10, seed=3)
    rest = np.ones(len(arrays.train_labels), bool)
    rest[rows] = False
    images, labels = arrays.train_images, arrays.train_labels
    title = f"{arrays.title}, a tenth held out as test"
    return replace(
        arrays, title=title, train_images=images[rest], train_labels=labels[rest], test_images=images[rows], test_labels=labels[rows]
    )


def with_channels(dataset: Dataset, channels: int) -> Dataset:
    """The same images for a net of other channels: gray ones three times, colour ones as ITU-R 601 luma, rounded.

    Args:
        dataset: of 1 or 3 channels.
        channels: 1 or 3, or the data set's own.

    Raises:
        ValueError: for any other pair.
    """
    there = dataset.images.shape[1]
    if there == channels:
        return dataset
    if {there, channels} != {1, 3}:
        raise ValueError(f"{dataset.title}: has {there} channels, the net takes {channels}: expected 1 or 3 of both")

    def change(images: Tensor) -> Tensor:
        if channels == 3:
            return images.expand(-1, 3, -1, -1).contiguous()
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        return (images * weights).sum(1, keepdim=True).round().to(torch.uint8)

    images = change(dataset.images)
    mean, std = _moments(images.numpy())
    title = dataset.title if channels == 3 else f"{dataset.title}, gray"  # another protocol than in colour; three times gray is not
    return replace(dataset, title=title, images=images, test_images=change(dataset.test_images), mean=mean, std=std)


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], exactly, from the histogram of its 256 values."""
    values = np.arange(256) / 255
    counts = np.stack([np.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])])
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    return tuple(mean.tolist()), tuple(np.maximum(std, 1e-3).tolist())


def stratified(labels: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """Rows of a subset with the classes' own shares: a pure function of the labels and the seed.

    Args:
        labels: (N,) integers.
        size: how many rows, <= N; each class gets its share, the largest remainders first.
        seed: of the choice.

    Returns:
        (size,) sorted int64 rows.

    Raises:
        ValueError: if size > N.
    """
    if size > len(labels):
        raise ValueError(f"a subset of {size} from {len(labels)} rows")
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * size / len(labels)
    take = np.floor(exact).astype(np.int64)
    take[np.argsort(take - exact, kind="stable")[: size - take.sum()]] += 1
    order = epoch_order(seed, 0, len(labels)).numpy()
    return np.sort(np.concatenate([order[labels[order] == c][:k] for c, k in zip(classes, take, strict=True)]))


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """The order in which an epoch visits n images: a permutation as a pure function of (seed, epoch).

    The ranks of Philox's words, not numpy's `permutation`: the stream is the generator's definition, so it is the same
    in every version. The views' numbers come from other counters of the same keys.

    Returns:
        (n,) int64.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.zeros(4, np.uint64)).random_raw(n)
    return torch.from_numpy(np.argsort(words, kind="stable"))


def steps_per_epoch(n: int, batch_size: int, *, drop_last: bool) -> int:
    """Batches in an epoch of n images: whole ones only, or with the last, short one."""
    return n // batch_size if drop_last else -(-n // batch_size)


def batch_rows(seed: int, step: int, n: int, batch_size: int, *, drop_last: bool) -> Tensor:
    """The rows of the global batch of one step.

    Args:
        seed, step: of the run.
        n: images in the training split.
        batch_size: N <= n.
        drop_last: leave out the last, short batch of an epoch, so that every step has the same number of negatives.

    Returns:
        (batch_size,) int64; fewer in the last batch of an epoch where that is kept.
    """
    epoch, batch = divmod(step, steps_per_epoch(n, batch_size, drop_last=drop_last))
    return _cached_order(seed, epoch, n)[batch * batch_size : (batch + 1) * batch_size]


_last_order: dict[tuple[int, int, int], Tensor] = {}


def _cached_order(seed: int, epoch: int, n: int) -> Tensor:
    """`epoch_order`, kept while the epoch lasts: sorting 50,000 words takes 5 ms."""
    key = (seed, epoch, n)
    if key not in _last_order:
        _last_order.clear()
        _last_order[key] = epoch_order(seed, epoch, n)
    return _last_order[key]
