"""Losses that compare a prediction with a target, row by row, and cross entropy."""

from torch import Tensor
from torch.nn import functional as F

from twoviews.losses.precision import exact, without_autocast


def cosine(p: Tensor, z: Tensor) -> Tensor:
    """Return the cosine similarity of two tensors (N, D), as a 0-dim mean over rows, in float32 (float64 for float64 input)."""
    with without_autocast(p.device):
        return F.cosine_similarity(exact(p), exact(z), dim=1).mean()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of predictions.

    Args:
        logits: (N, classes).
        target: (N,) int64 in [0, classes), or (N, classes) probabilities.

    Returns:
        0-dim tensor, the mean over rows, in float32 (float64 for float64 input).
    """
    with without_autocast(logits.device):
        return F.cross_entropy(exact(logits), target)
