"""Assignments of images to prototypes: the codes of SwAV."""

import torch
from torch import Tensor

from twoviews.losses.precision import exact


@torch.no_grad()
def sinkhorn(scores: Tensor, *, temperature: float, iterations: int, counted: Tensor | None = None) -> Tensor:
    """Return codes that use all prototypes equally (SwAV, Caron et al. 2020, section 3.1 and appendix A), by Sinkhorn and Knopp.

    Args:
        scores: (B, K) similarities of B images and K prototypes.
        temperature: the paper's epsilon, > 0.
        iterations: each one normalises over images, then over prototypes.
        counted: (B,) bool: images that take part; None: all. The codes of the others are 0.

    Returns:
        (B, K) in float32 (float64 for float64 input); each row sums to 1.
    """
    log = exact(scores) / temperature  # logarithms: no prototype is lost by underflow
    hidden = torch.zeros(len(log), 1, dtype=torch.bool, device=log.device) if counted is None else ~counted[:, None]
    log = log.masked_fill(hidden, -torch.inf)
    for _ in range(iterations):
        log = log - log.logsumexp(0)
        log = (log - log.logsumexp(1, keepdim=True)).masked_fill(hidden, -torch.inf)
    return log.exp()
