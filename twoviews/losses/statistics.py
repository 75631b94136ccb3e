"""Losses on the statistics of a batch: correlations, variances, covariances, whitening. Rows are those of all processes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews.losses.precision import exact, without_autocast

BATCHNORM_EPS = 1e-5  # Barlow Twins standardises as BatchNorm does
STD_EPS = 1e-4  # VICReg: the slope of a square root is infinite at 0


def barlow_twins(a: Tensor, b: Tensor, off_diagonal: float) -> Tensor:
    """Return the loss of Barlow Twins (Zbontar et al. 2021, eq. 1 and algorithm 1): the correlation of two views is the identity.

    Args:
        a, b: (N, D) projections of two views.
        off_diagonal: lambda, the weight of the correlations between different dimensions.

    Returns:
        0-dim sum over the matrix (D, D), in float32 (float64 for float64 input).
    """
    with without_autocast(a.device):
        a, b = (_standardised(exact(x)) for x in (a, b))
        error = (a.T @ b / len(a) - torch.eye(a.shape[1], device=a.device, dtype=a.dtype)).square()  # (D, D)
        on = error.diagonal().sum()
        return on + off_diagonal * (error.sum() - on)


def _standardised(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    return (x - mean) * torch.rsqrt(variance + BATCHNORM_EPS)


def vicreg(a: Tensor, b: Tensor, *, invariance: float, variance: float, covariance: float) -> Tensor:
    """Return the loss of VICReg (Bardes et al. 2022, eq. 1 to 6) with the factor of the authors' code: half of the paper's variance term.

    Args:
        a, b: (N, D) projections of two views.
        invariance, variance, covariance: the weights of the three terms.

    Returns:
        0-dim tensor in float32 (float64 for float64 input).
    """
    with without_autocast(a.device):
        a, b = exact(a), exact(b)
        spread = [F.relu(1 - torch.sqrt(x.var(0) + STD_EPS)).mean() for x in (a, b)]
        return invariance * F.mse_loss(a, b) + variance * sum(spread) / 2 + covariance * (_off_diagonal(a) + _off_diagonal(b))


def _off_diagonal(x: Tensor) -> Tensor:
    """Return the sum of the squared covariances between different dimensions, over D."""
    x = x - x.mean(0)
    squares = (x.T @ x / (len(x) - 1)).square()  # (D, D)
    return (squares.sum() - squares.diagonal().sum()) / x.shape[1]


def whitened(z: Tensor, size: int, eps: float) -> Tensor:
    """Return rows whose covariance, within each sub-batch, is the identity (W-MSE, Ermolov et al. 2021, eq. 6 and algorithm 1).

    Args:
        z: (N, D) projections.
        size: of a sub-batch of consecutive rows, more than D and a divisor of N.
        eps: weight of the identity in the covariance, in [0, 1): the Cholesky decomposition of a singular matrix fails.

    Returns:
        (N, D) in float32 (float64 for float64 input); NaN where the covariance of a sub-batch is singular. Computed in float64 where
        the device has it: in float32 a covariance whose eigenvalues differ by 1e7 is singular.
    """
    with without_autocast(z.device):
        x = (exact(z) if z.device.type == "mps" else z.double()).view(-1, size, z.shape[1])  # (parts, size, D)
        x = x - x.mean(1, keepdim=True)
        identity = torch.eye(x.shape[2], device=x.device, dtype=x.dtype)
        factor, failed = torch.linalg.cholesky_ex((1 - eps) * (x.mT @ x / (size - 1)) + eps * identity)  # does not wait for the device
        factor = torch.where(failed[:, None, None] == 0, factor, torch.nan)
        rows: Tensor = torch.linalg.solve_triangular(factor, x.mT, upper=False).mT
        return rows.reshape(z.shape).to(exact(z).dtype)
