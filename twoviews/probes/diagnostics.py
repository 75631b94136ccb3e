"""Is the encoder collapsing? Two numbers that say so while it happens."""

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
