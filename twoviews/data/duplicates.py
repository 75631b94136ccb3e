"""Find images that occur twice: with equal pixels, or nearly so."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews.progress import Progress

SIDE = 16  # pixels of the thumbnails that are compared
# Correlation of two thumbnails above which images are called nearly equal. Of CIFAR-10 and of blood cells, every copy as JPEG of
# quality 50, with 10 to 20 % more or less brightness, enlarged by half, or shifted by a pixel is above it; of different images, 1 in 400.
NEAR = 0.98
CANDIDATES = 4  # most similar images whose small shifts are tried
MIDDLE = 4  # of the nine directions of a shift: none
ROWS = 500  # thumbnails that are compared with all others at a time

Pairs = list[tuple[int, int]]


def equal_images(images: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> Pairs:
    """Return (row of `images`, row of `others`) for each image whose pixels equal those of another; of several, the first."""
    rows: dict[int, tuple[int, np.ndarray]] = {}
    for row, image in enumerate(others):
        rows.setdefault(hash(image.tobytes()), (row, image))
    found = ((i, image, rows.get(hash(image.tobytes()))) for i, image in enumerate(images))
    return [(i, other[0]) for i, image, other in found if other is not None and np.array_equal(image, other[1])]


def equal_of_other_classes(images: np.ndarray, labels: np.ndarray) -> Pairs:
    """Return pairs of rows with equal pixels and different labels: each row, and the first row that has its pixels."""
    return [(i, j) for i, j in equal_images(images, images) if labels[i] != labels[j]]


@torch.no_grad()
def near_images(images: Tensor, others: Tensor, labels: Tensor | None = None) -> Pairs:
    """Return (row of `images`, row of `others`) for each image that is nearly equal to another: its most similar one.

    Gray thumbnails are compared, so an image is found again in another size, compression, brightness or contrast, or
    shifted by a pixel. Images of one colour are never similar. Where all images show one thing on one background, as in
    Fashion-MNIST, many different ones are nearly equal.

    Args:
        images, others: (N, C, H, W) and (M, C, H, W) uint8.
        labels: (N,), if `others` are the same images: then only rows of another label are compared, each pair once.
    """
    whole, inner = _thumbnails(others), _thumbnails(_shifted(others)[MIDDLE])
    found: Pairs = []
    with Progress("compare", len(images), "images") as bar:
        for start in range(0, len(images), ROWS):
            part = images[start : start + ROWS]
            compared = whole if labels is None else whole[: start + len(part)]  # with the rows before it
            score = _thumbnails(part) @ compared.T
            if labels is not None:
                rows = torch.arange(start, start + len(part))
                score[(torch.arange(len(compared)) >= rows[:, None]) | (labels[rows, None] == labels[: len(compared)])] = -1
            value, nearest = score.topk(min(CANDIDATES, len(compared)), dim=1)
            aligned = torch.stack([(_thumbnails(x)[:, None] * inner[nearest]).sum(2) for x in _shifted(part)]).amax(0)
            best, column = aligned.masked_fill(value <= 0, 0).max(1)
            for i in (best > NEAR).nonzero().flatten().tolist():
                found.append((start + i, int(nearest[i, column[i]])))
            bar.add(len(part))
    return found


def _shifted(images: Tensor) -> list[Tensor]:
    """Return the images without a border of a 32nd of their height, moved by it in each of nine directions."""
    border, (height, width) = max(1, images.shape[2] // 32), images.shape[2:]
    ways = [(y, x) for y in (0, border, 2 * border) for x in (0, border, 2 * border)]
    return [images[:, :, y : y + height - 2 * border, x : x + width - 2 * border] for y, x in ways]


def _thumbnails(images: Tensor) -> Tensor:
    """Return gray thumbnails (N, SIDE x SIDE) with mean 0 and length 1, so that a product of two is their correlation."""
    thumbnails = torch.cat([F.adaptive_avg_pool2d(part.float().mean(1), SIDE).flatten(1) for part in torch.split(images, ROWS)])
    return F.normalize(thumbnails - thumbnails.mean(1, keepdim=True), eps=1.0)
