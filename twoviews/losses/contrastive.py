"""Losses that tell the views of one image from other images: each is a mean over its anchors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews.losses.precision import exact, without_autocast

TILED_FROM = 8192  # rows: above, logits are computed in tiles; up to here all of them take at most 256 MiB, and one pass is faster
TILE = 2**22  # logits in one tile


def of_one_process(z: Tensor, views: int) -> tuple[Tensor, int]:
    """Return (z, 0): the batch is that of one process. See `nt_xent`."""
    return z, 0


def nt_xent(
    z: Tensor, temperature: float, views: int = 2, *, gather: Callable[[Tensor, int], tuple[Tensor, int]] = of_one_process
) -> Tensor:
    """Return NT-Xent, the loss of SimCLR (Chen et al. 2020, eq. 1 and algorithm 1), as a mean over all V*n anchors.

    With more than two views each anchor has V - 1 positives. The loss then averages their log-probabilities, each against
    the anchor's negatives and all its positives (L_out of Khosla et al. 2020, eq. 2).

    Args:
        z: (V*n, D) projections: view 1 of all images, then view 2, ... Rows i and i + n are a pair. Normalised here.
        temperature: of the softmax, > 0.
        views: V >= 2.
        gather: from z of unit length and V to the projections of a larger batch of N images, (V*N, D) in the same order, against
            which the anchors z are compared, and the position of z's first image in it (`distributed.gather_views`).

    Returns:
        0-dim tensor in float32 (float64 for float64 input): bfloat16 logits have only 8 significant bits. Above
        `TILED_FROM` rows, memory is linear in the rows, and there is no second derivative.

    Raises:
        ValueError: if the rows do not divide into views, or a value is out of its range.
    """
    if temperature <= 0 or views < 2 or z.ndim != 2 or z.shape[0] % views:
        raise ValueError(f"nt_xent: expected (V*N, D), temperature > 0 and V >= 2, got {tuple(z.shape)}, {temperature}, {views}")
    with without_autocast(z.device):
        z, keys, own = _anchors(z, views, gather)
        if len(z) * len(keys) > TILED_FROM**2:
            return _TiledNTXent.apply(z, keys, own, temperature, views)  # type: ignore[no-any-return]
        logits = _logits(z, keys, temperature)  # (Vn, VN)
        # important: -inf, not a large constant: no anchor is its own negative, at any temperature and precision
        logits = logits.masked_fill(own[:, None] == torch.arange(len(keys), device=z.device), float("-inf"))
        log_p = logits - logits.logsumexp(1, keepdim=True)
        return -log_p.gather(1, torch.stack(_positives(own, len(keys), views), 1)).mean()


def _anchors(z: Tensor, views: int, gather: Callable[[Tensor, int], tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return anchors (Vn, D) and all rows (VN, D), both of unit length, and the row of each anchor, (Vn,)."""
    z = F.normalize(exact(z), dim=1)
    keys, start = gather(z, views)
    images = torch.arange(len(z) // views, device=z.device)
    return z, keys, (torch.arange(views, device=z.device)[:, None] * (len(keys) // views) + start + images).flatten()


def _logits(z: Tensor, keys: Tensor, temperature: float) -> Tensor:
    return z @ keys.T / temperature


class _TiledNTXent(torch.autograd.Function):
    """The same loss for rows of unit length, in memory that is linear in the rows.

    Logits are computed one tile of anchors at a time and recomputed in the backward pass. Inf-CL (Cheng et al. 2024,
    section 3) does the same and also splits the columns.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, keys: Tensor, own: Tensor, temperature: float, views: int) -> Tensor:
        norm = torch.cat([_tile(z, keys, own, start, temperature).logsumexp(1) for start in _starts(z, keys)])  # (Vn,)
        positive = sum((z * keys[rows]).sum(1) for rows in _positives(own, len(keys), views)) / ((views - 1) * temperature)
        ctx.save_for_backward(z, keys, own, norm)
        ctx.temperature, ctx.views = temperature, views
        return (norm - positive).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, keys, own, norm = ctx.saved_tensors
        grad_z, grad_keys = torch.zeros_like(z), torch.zeros_like(keys)
        share = 1 / (ctx.views - 1)
        for positives in _positives(own, len(keys), ctx.views):
            grad_z.sub_(keys[positives], alpha=share)
            grad_keys.index_add_(0, positives, z, alpha=-share)
        for start in _starts(z, keys):
            p = _tile(z, keys, own, start, ctx.temperature)
            rows = slice(start, start + len(p))
            p.sub_(norm[rows, None]).exp_()  # the softmax of these anchors; 0 for the anchor itself
            grad_z[rows].addmm_(p, keys)
            grad_keys.addmm_(p.T, z[rows])
        scale = grad / (len(z) * ctx.temperature)
        return grad_z.mul_(scale), grad_keys.mul_(scale), None, None, None


def _positives(own: Tensor, keys: int, views: int) -> list[Tensor]:
    """Return for each other view the rows of the anchors' positives."""
    return [(own + shift * (keys // views)) % keys for shift in range(1, views)]


def _starts(z: Tensor, keys: Tensor) -> range:
    return range(0, len(z), max(1, TILE // len(keys)))


def _tile(z: Tensor, keys: Tensor, own: Tensor, start: int, temperature: float) -> Tensor:
    """Return the logits of one tile of anchors against all rows, -inf against themselves."""
    rows = slice(start, start + max(1, TILE // len(keys)))
    logits = (z[rows] @ keys.T).div_(temperature)
    logits[torch.arange(len(logits), device=z.device), own[rows]] = float("-inf")
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
    with without_autocast(query.device):
        query = F.normalize(exact(query), dim=1)
        own = (query * key).sum(1, keepdim=True)  # (N, 1)
        others = query @ negatives.T  # (N, K)
        logits = torch.cat([own, others], 1) / temperature
        right = (own > others.amax(1, keepdim=True)).float().mean()
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device)), right


def decoupled(
    z: Tensor, temperature: float, views: int = 2, *, gather: Callable[[Tensor, int], tuple[Tensor, int]] = of_one_process
) -> Tensor:
    """Return the decoupled contrastive loss (DCL, Yeh et al. 2022, eq. 6): NT-Xent without the positives in the denominator.

    With more than two views each anchor has V - 1 positives, whose losses are averaged.

    Args:
        z, temperature, views, gather: as of `nt_xent`.

    Returns:
        0-dim mean over all anchors, in float32 (float64 for float64 input).
    """
    with without_autocast(z.device):
        z, keys, own = _anchors(z, views, gather)
        logits, images = _logits(z, keys, temperature), len(keys) // views
        same_image = own[:, None] % images == torch.arange(len(keys), device=z.device) % images
        negatives = logits.masked_fill(same_image, float("-inf")).logsumexp(1, keepdim=True)
        return (negatives - logits.gather(1, torch.stack(_positives(own, len(keys), views), 1))).mean()


def supcon(
    z: Tensor, labels: Tensor, temperature: float, views: int = 2, *, gather: Callable[[Tensor, int], tuple[Tensor, int]] = of_one_process
) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al. 2020, L_out, eq. 2): all views of the anchor's class are positives.

    The authors' code multiplies it by temperature / 0.07.

    Args:
        z, temperature, views, gather: as of `nt_xent`.
        labels: (N,) of all images of the larger batch.

    Returns:
        0-dim mean over all anchors, in float32 (float64 for float64 input).
    """
    with without_autocast(z.device):
        z, keys, own = _anchors(z, views, gather)
        logits = _logits(z, keys, temperature)
        every = labels.repeat(views)  # (VN,)
        itself = own[:, None] == torch.arange(len(every), device=z.device)
        log_p = logits - logits.masked_fill(itself, float("-inf")).logsumexp(1, keepdim=True)
        positive = (every[own][:, None] == every) & ~itself
        return -(torch.where(positive, log_p, 0).sum(1) / positive.sum(1)).mean()


def info_nce_in_batch(query: Tensor, keys: Tensor, temperature: float, start: int = 0) -> Tensor:
    """Return InfoNCE among the images of a batch: classify each query's own key (MoCo v3, Chen et al. 2021, algorithm 1).

    Args:
        query: (n, D), normalised here.
        keys: (N, D) of a batch that holds the queries' images from row `start` on, normalised here.
        temperature: of the softmax, > 0.
        start: row of the first query's key.

    Returns:
        0-dim mean over queries, in float32 (float64 for float64 input).
    """
    with without_autocast(query.device):
        logits = F.normalize(exact(query), dim=1) @ F.normalize(exact(keys), dim=1).T / temperature
        return F.cross_entropy(logits, start + torch.arange(len(query), device=query.device))
