"""Diagnostics beyond accuracy: collapse, distribution of features on the sphere, accuracy and confusion of each class."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SPREAD_FLOOR = 0.25  # of `spread`: below it training warns of a collapse
COLLAPSED = 0.02  # of `spread`: below it images cannot be told apart


@torch.no_grad()
def spread(z: Tensor) -> float:
    """Return the standard deviation per dimension of normalised projections, times sqrt(D) (SimSiam, Chen & He 2021, section 4.1).

    Args:
        z: (N, D).

    Returns:
        About 1 for outputs spread over the sphere, 0 for a complete collapse.
    """
    return float(F.normalize(z.float(), dim=1).std(0).mean() * math.sqrt(z.shape[1]))


@torch.no_grad()
def rankme(z: Tensor) -> float:
    """Return RankMe (Garrido et al. 2023, eq. 1): exp of the entropy of the normalised singular values.

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
    """Return the mean squared distance between normalised features of two views (Wang & Isola 2020, section 4.1, alpha = 2).

    Args:
        a, b: (N, D); row i of both belongs to image i.

    Returns:
        In [0, 4]; 0 if features do not depend on the view.
    """
    return float((F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean())


@torch.no_grad()
def uniformity(z: Tensor) -> float:
    """Return the log of the mean Gaussian potential of pairs of normalised features (Wang & Isola 2020, section 4.1, t = 2).

    Args:
        z: (N, D), N >= 2.

    Returns:
        At most 0: 0 for a complete collapse, near -4 for features spread evenly over a sphere of many dimensions.
    """
    return float(torch.pdist(F.normalize(z.float(), dim=1)).square().mul(-2).exp().mean().log())


def per_class(predicted: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """Return the accuracy in [0, 1] on the rows of each class; None for a class without rows.

    Args:
        predicted, labels: (N,) int64 in [0, classes).
    """
    right = torch.bincount(labels[predicted == labels], minlength=classes).tolist()
    return [r / n if n else None for r, n in zip(right, torch.bincount(labels, minlength=classes).tolist(), strict=True)]


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> list[list[int]]:
    """Return how often images of each class (row) were predicted as each class (column).

    Args:
        predicted, labels: (N,) int64 in [0, classes).
    """
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes).tolist()
