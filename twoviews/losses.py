"""Loss functions: pure functions, in float32 or better even under autocast; each is a mean over its anchors."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TILED_FROM = 8192  # rows: above, logits are computed in tiles; up to here all of them take at most 256 MiB, and one pass is faster
TILE = 2**22  # logits in one tile


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that switches autocast off. The meta device, on which `profiling.py` counts operations, has no autocast."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def nt_xent(z: Tensor, temperature: float, views: int = 2) -> Tensor:
    """Return NT-Xent, the loss of SimCLR (Chen et al. 2020, eq. 1 and algorithm 1), as a mean over all V*N anchors.

    With more than two views each anchor has V - 1 positives. The loss then averages their log-probabilities, each against
    the anchor's negatives and all its positives (L_out of Khosla et al. 2020, eq. 2).

    Args:
        z: (V*N, D) projections: view 1 of all images, then view 2, ... Rows i and i + N are a pair. Normalised here.
        temperature: of the softmax, > 0.
        views: V >= 2.

    Returns:
        0-dim tensor in float32 (float64 for float64 input): bfloat16 logits have only 8 significant bits. Above
        `TILED_FROM` rows, memory is linear in the rows, and there is no second derivative.

    Raises:
        ValueError: if the rows do not divide into views, or a value is out of its range.
    """
    if temperature <= 0 or views < 2 or z.ndim != 2 or z.shape[0] % views:
        raise ValueError(f"nt_xent: expected (V*N, D), temperature > 0 and V >= 2, got {tuple(z.shape)}, {temperature}, {views}")
    with _without_autocast(z.device):
        z = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)
        rows, n = z.shape[0], z.shape[0] // views
        if rows > TILED_FROM:
            return _TiledNTXent.apply(z, temperature, views)  # type: ignore[no-any-return]
        logits = z @ z.T / temperature  # (VN, VN)
        # important: -inf, not a large constant: no anchor is its own negative, at any temperature and precision
        logits = logits.masked_fill(torch.eye(rows, dtype=torch.bool, device=z.device), float("-inf"))
        log_p = logits - logits.logsumexp(1, keepdim=True)
        anchors = torch.arange(rows, device=z.device)
        positives = torch.stack([(anchors + shift * n) % rows for shift in range(1, views)], 1)  # (VN, V-1)
        return -log_p.gather(1, positives).mean()


class _TiledNTXent(torch.autograd.Function):
    """The same loss for rows of unit length, in memory that is linear in the rows.

    Logits are computed one tile of rows at a time and recomputed in the backward pass. Inf-CL (Cheng et al. 2024,
    section 3) does the same and also splits the columns.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, views: int) -> Tensor:
        n = len(z) // views
        norm = torch.cat([_tile(z, start, temperature).logsumexp(1) for start in _starts(z)])  # (VN,)
        positive = torch.stack([(z * z.roll(-shift * n, 0)).sum(1) for shift in range(1, views)]).mean(0) / temperature
        ctx.save_for_backward(z, norm)
        ctx.temperature, ctx.views = temperature, views
        return (norm - positive).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        z, norm = ctx.saved_tensors
        n = len(z) // ctx.views
        # Each positive pair contributes twice: each of its rows is the other's positive.
        out = torch.stack([z.roll(-shift * n, 0) for shift in range(1, ctx.views)]).mean(0).mul_(-2)
        for start in _starts(z):
            p = _tile(z, start, ctx.temperature)
            rows = slice(start, start + len(p))
            p.sub_(norm[rows, None]).exp_()  # the softmax of these anchors; 0 on the diagonal
            out[rows].addmm_(p, z)
            out.addmm_(p.T, z[rows])
        return out.mul_(grad / (len(z) * ctx.temperature)), None, None


def _starts(z: Tensor) -> range:
    return range(0, len(z), max(1, TILE // len(z)))


def _tile(z: Tensor, start: int, temperature: float) -> Tensor:
    """Return the logits of one tile of anchors against all rows, -inf against themselves."""
    anchors = z[start : start + max(1, TILE // len(z))]
    logits = (anchors @ z.T).div_(temperature)
    own = torch.arange(len(anchors), device=z.device)
    logits[own, own + start] = float("-inf")
    return logits


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return InfoNCE against a queue (MoCo, He et al. 2020, eq. 1 and algorithm 1): classify the query's own key among 1 + K.

    Args:
        query: (N, D) projections, normalised here.
        key: (N, D) of unit length, without gradient.
        negatives: (K, D) of unit length: the queue.
        temperature: of the softmax, > 0.

    Returns:
        (0-dim mean loss over queries, 0-dim share of queries whose own key is the most similar), the loss in float32 (float64
        for float64 input).

    Raises:
        ValueError: if shapes do not fit or the temperature is not positive.
    """
    if temperature <= 0 or query.shape != key.shape or negatives.shape[1:] != key.shape[1:]:
        raise ValueError(
            f"info_nce: expected queries and keys (N, D), negatives (K, D), temperature > 0, "
            f"got {tuple(query.shape)}, {tuple(key.shape)}, {tuple(negatives.shape)}, {temperature}"
        )
    with _without_autocast(query.device):
        query = F.normalize(query if query.dtype == torch.float64 else query.float(), dim=1)
        own = (query * key).sum(1, keepdim=True)  # (N, 1)
        others = query @ negatives.T  # (N, K)
        logits = torch.cat([own, others], 1) / temperature
        right = (own > others.amax(1, keepdim=True)).float().mean()
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device)), right


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of the supervised method.

    Args:
        logits: (N, classes).
        labels: (N,) int64 in [0, classes).

    Returns:
        0-dim tensor, the mean over rows, in float32 (float64 for float64 input).
    """
    with _without_autocast(logits.device):
        return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels)
