"""k nearest neighbours: one exact search serves every k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

KS = (1, 5, 10, 20, 200)
QUERIES = 1000  # rows of the similarity matrix at a time: 50,000 x 1,000 x 4 bytes = 200 MB


@torch.no_grad()
def knn(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, ks: Sequence[int] = KS, metric: str = "cosine"
) -> dict[int, float]:
    """Accuracy of the majority vote of the k nearest bank rows, each with one vote.

    Vote ties go to the smallest label, as in scikit-learn. The search is exact, in float32 (float64 for float64 input).

    Args:
        bank: (M, D) features with labels (M,).
        queries: (Q, D) features with labels (Q,).
        ks: numbers of neighbours, each in [1, M].
        metric: `cosine` or `euclidean`.

    Returns:
        {k: accuracy in [0, 1]}.

    Raises:
        ValueError: if a k exceeds the bank, a set is empty, shapes do not fit, the metric is another, or a feature is not finite.
    """
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(f"knn: expected features (M, D) and (Q, D), got {tuple(bank.shape)} and {tuple(queries.shape)}")
    if len(bank) != len(bank_labels) or len(queries) != len(query_labels) or not len(queries):
        raise ValueError(f"knn: {len(bank)} and {len(queries)} features for {len(bank_labels)} and {len(query_labels)} labels")
    if not ks or min(ks) < 1 or max(ks) > len(bank):
        raise ValueError(f"knn: expected every k in [1, {len(bank)}] (the rows of the bank), got {list(ks)}")
    if not (torch.isfinite(bank).all() and torch.isfinite(queries).all()):
        raise ValueError("knn: features hold NaN or infinite values")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"knn: expected metric cosine or euclidean, got {metric!r}")
    classes = int(torch.maximum(bank_labels.max(), query_labels.max())) + 1
    if metric == "cosine":
        bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
        penalty = bank.new_zeros(len(bank))
    else:  # -|q - b|^2 / 2 + |q|^2 / 2 = q b - |b|^2 / 2: about the bank's mean, where squares are small against differences
        bank, queries = bank - bank.mean(0), queries - bank.mean(0)
        penalty = bank.square().sum(1) / 2
    hits = dict.fromkeys(ks, 0)
    for start in range(0, len(queries), QUERIES):
        similarity = queries[start : start + QUERIES] @ bank.T - penalty  # (q, M)
        nearest = similarity.topk(max(ks), dim=1).indices  # (q, k_max), nearest first
        votes = F.one_hot(bank_labels[nearest], classes).cumsum(1)  # (q, k_max, classes)
        for k in ks:
            hits[k] += int(
                (votes[:, k - 1].argmax(1) == query_labels[start : start + QUERIES]).sum()
            )  # argmax: the smallest label of a tie
    return {k: hit / len(queries) for k, hit in hits.items()}
