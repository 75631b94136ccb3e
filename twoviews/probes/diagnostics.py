"""What an accuracy does not say: whether the encoder collapses, how its features lie on the sphere, which classes it confuses."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SPREAD_FLOOR = 0.25  # of a healthy 1/sqrt(D); a collapsed encoder is near 0


@torch.no_grad()
def spread(z: Tensor) -> float:
    """Standard deviation per dimension of normalised projections, over 1/sqrt(D) (Chen & He 2021, SimSiam, section 4.1).

    Args:
        z: (N, D).

    Returns:
        About 1 for outputs spread over the sphere, 0 for a complete collapse.
    """
    return float(F.normalize(z.float(), dim=1).std(0).mean() * math.sqrt(z.shape[1]))


@torch.no_grad()
def rankme(z: Tensor) -> float:
    """RankMe (Garrido et al. 2023, eq. 1): exp of the entropy of the normalised singular values.

    Args:
        z: (N, D).

    Returns:
        An effective rank in [1, min(N, D)].
    """
    values = torch.linalg.svdvals(z.double())
    p = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


@torch.no_grad()
def alignment(a: Tensor, b: Tensor) -> float:
    """Mean squared distance of normalised features of two views of one image (Wang & Isola 2020, section 4.1, alpha = 2).

    Args:
        a, b: (N, D): row i of both is of image i.

    Returns:
        In [0, 4]; 0 where views do not matter.
    """
    return float((F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean())


@torch.no_grad()
def uniformity(z: Tensor) -> float:
    """Log of the mean Gaussian potential of pairs of normalised features (Wang & Isola 2020, section 4.1, t = 2).

    Args:
        z: (N, D), N >= 2.

    Returns:
        At most 0, which is a collapse; near -4 for a sphere of many dimensions that is covered evenly.
    """
    return float(torch.pdist(F.normalize(z.float(), dim=1)).square().mul(-2).exp().mean().log())


def per_class(predicted: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """Share of right predictions among the rows of each class; None for a class without rows.

    Args:
        predicted, labels: (N,) int64 in [0, classes).
    """
    right = torch.bincount(labels[predicted == labels], minlength=classes).tolist()
    return [r / n if n else None for r, n in zip(right, torch.bincount(labels, minlength=classes).tolist(), strict=True)]


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> list[list[int]]:
    """How often each class (row) was taken for each (column).

    Args:
        predicted, labels: (N,) int64 in [0, classes).
    """
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes).tolist()
