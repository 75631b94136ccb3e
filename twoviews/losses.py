"""Loss functions: pure, in float32 or better whatever the autocast, each a mean over its anchors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(z: Tensor, temperature: float, views: int = 2) -> Tensor:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, eq. 1 and algorithm 1), as a mean over all V*N anchors.

    With more than two views each anchor has V - 1 positives: the mean of their log-probabilities, each against the
    anchor's negatives and all its positives (the L_out of Khosla et al. 2020, eq. 2).

    Args:
        z: (V*N, D) projections, view 1 of all images, then view 2, ...: rows i and i + N are a pair. Normalised here.
        temperature: of the softmax, > 0.
        views: V >= 2.

    Returns:
        0-dim tensor, in float32 (float64 for float64 input): logits in bfloat16 would keep 8 bits.

    Raises:
        ValueError: if the rows do not divide into views, or a value is out of its range.
    """
    if temperature <= 0 or views < 2 or z.ndim != 2 or z.shape[0] % views:
        raise ValueError(f"nt_xent: expected (V*N, D), temperature > 0 and V >= 2, got {tuple(z.shape)}, {temperature}, {views}")
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)
        rows, n = z.shape[0], z.shape[0] // views
        logits = z @ z.T / temperature  # (VN, VN)
        # important: -inf, not a large constant: an anchor is no negative of its own, at any temperature and precision
        logits = logits.masked_fill(torch.eye(rows, dtype=torch.bool, device=z.device), float("-inf"))
        log_p = logits - logits.logsumexp(1, keepdim=True)
        anchors = torch.arange(rows, device=z.device)
        positives = torch.stack([(anchors + shift * n) % rows for shift in range(1, views)], 1)  # (VN, V-1)
        return -log_p.gather(1, positives).mean()


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE against a queue (MoCo, He et al. 2020, eq. 1 and algorithm 1): which of 1 + K keys is the query's?

    Args:
        query: (N, D) projections, normalised here.
        key: (N, D) of unit length, without gradient.
        negatives: (K, D) of unit length: the queue.
        temperature: of the softmax, > 0.

    Returns:
        (0-dim loss, the mean over queries; 0-dim share of queries whose own key is the most similar), in float32 (float64 for
        float64 input).

    Raises:
        ValueError: if shapes do not fit or the temperature is not positive.
    """
    if temperature <= 0 or query.shape != key.shape or negatives.shape[1:] != key.shape[1:]:
        raise ValueError(
            f"info_nce: expected queries and keys (N, D), negatives (K, D), temperature > 0, "
            f"got {tuple(query.shape)}, {tuple(key.shape)}, {tuple(negatives.shape)}, {temperature}"
        )
    with torch.autocast(query.device.type, enabled=False):
        query = F.normalize(query if query.dtype == torch.float64 else query.float(), dim=1)
        own = (query * key).sum(1, keepdim=True)  # (N, 1)
        others = query @ negatives.T  # (N, K)
        logits = torch.cat([own, others], 1) / temperature
        right = (own > others.amax(1, keepdim=True)).float().mean()
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device)), right


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the supervised upper bound.

    Args:
        logits: (N, classes).
        labels: (N,) int64 in [0, classes).

    Returns:
        0-dim tensor, the mean over rows, in float32 (float64 for float64 input).
    """
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels)
