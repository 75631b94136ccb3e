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
    scores = exact(scores) / temperature
    codes = torch.exp(scores - scores.max())
    if counted is not None:
        codes = codes * counted[:, None]
    for _ in range(iterations):
        codes = codes / codes.sum(0)
        codes = codes / codes.sum(1, keepdim=True).clamp(min=torch.finfo(codes.dtype).tiny)
    return codes
