"""A data set in memory: images as uint8 tensors, their splits, and their order in each epoch."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from twoviews.data import READERS, folder
from twoviews.data.arrays import Arrays
from twoviews.rng import permutation

VAL_SIZE = 5000  # images in `val`, or a tenth of the training images if that is less
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


def load(name: str, data_dir: str | None, train_size: int | None = None, *, image_size: int | None = None, on_bad: str = "stop") -> Dataset:
    """Return a data set by name. If it has no test split, a tenth of its images becomes one.

    Args:
        name: a key of `data.READERS`, or `folder`.
        data_dir: its location, or None for the reader's own.
        train_size: number of training images to keep, or None for all. The choice is stratified and always the same;
            training and evaluation see only these images, and the title says so.
        image_size, on_bad: only for `folder`: see `folder.read`.

    Raises:
        ValueError: from the reader, or if `train_size` is larger than the data set.
    """
    if name not in (*READERS, "folder"):
        raise ValueError(f"dataset: expected one of {', '.join(READERS)} or folder, got {name!r}")
    if name != "folder" and image_size is not None:
        raise ValueError(f"image_size={image_size}: the images of {name} have a fixed size: leave it out, or use dataset=folder")
    arrays = folder.read(data_dir, image_size=image_size, on_bad=on_bad) if name == "folder" else READERS[name](data_dir)
    if not len(arrays.test_labels):
        arrays = _hold_out(arrays)
    if train_size is not None:
        total = len(arrays.train_labels)
        if train_size > total:
            raise ValueError(f"train_size={train_size}: {arrays.title} has {total} training images: choose at most that")
        rows = stratified(arrays.train_labels, train_size, seed=2)  # 0 chooses `val`, 1 a tuning run's val
        title = f"{arrays.title}, {train_size:,} of {total:,} training images"
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
    """Move a stratified tenth of the training images, always the same ones, to the empty test split."""
    rows = stratified(arrays.train_labels, len(arrays.train_labels) // 10, seed=3)
    rest = np.ones(len(arrays.train_labels), bool)
    rest[rows] = False
    images, labels = arrays.train_images, arrays.train_labels
    title = f"{arrays.title}, a tenth held out as test"
    return replace(
        arrays, title=title, train_images=images[rest], train_labels=labels[rest], test_images=images[rows], test_labels=labels[rows]
    )


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

    def convert(images: Tensor) -> Tensor:
        if channels == 3:
            return images.expand(-1, 3, -1, -1).contiguous()
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        return (images * weights).sum(1, keepdim=True).round().to(torch.uint8)

    images = convert(dataset.images)
    mean, std = _moments(images.numpy())
    title = dataset.title if channels == 3 else f"{dataset.title}, gray"  # with gray pixels it is another protocol
    return replace(dataset, title=title, images=images, test_images=convert(dataset.test_images), mean=mean, std=std)


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in [0, 1], computed exactly from its histogram."""
    values = np.arange(256) / 255
    counts = np.stack([np.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])])
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    return tuple(mean.tolist()), tuple(np.maximum(std, 1e-3).tolist())


def stratified(labels: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """Return the rows of a stratified subset, as a pure function of the labels and the seed.

    Args:
        labels: (N,) integers.
        size: number of rows, <= N. Each class keeps its share; the largest remainders are rounded up.
        seed: of the choice.

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
