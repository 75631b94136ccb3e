"""k nearest neighbours: one exact search serves every k, metric and weighting."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twoviews import distributed
from twoviews.device import exact_products
from twoviews.probes.embed import finite

KS = (1, 5, 10, 20, 200)
METRICS = ("cosine", "euclidean")
QUERIES = 500  # rows of the similarity matrix at a time: 50,000 x 500 x 4 bytes = 100 MB
FAR = 10.0  # squared mean over variance; above it, distances from dot products in float32 have errors above 1e-6


@dataclass(frozen=True)
class Neighbours:
    """Rows of a bank, nearest first; of rows at equal distance the lower one first.

    Args:
        rows: (Q, K) int64.
        similarity: (Q, K): cosine, or minus the Euclidean distance.
    """

    rows: Tensor
    similarity: Tensor


@torch.no_grad()
def search(
    bank: Tensor, queries: Tensor, *, k: int, metrics: Sequence[str] = METRICS, leave_one_out: bool = False
) -> dict[str, Neighbours]:
    """Return the k nearest rows of the bank by each metric, exactly, in the features' own dtype.

    One matrix product serves both metrics, unless the features are far from zero.

    Args:
        bank: (M, D) features, finite.
        queries: (Q, D) features, finite.
        k: in [1, M]; below M with `leave_one_out`.
        metrics: some of `METRICS`.
        leave_one_out: the queries are the rows of the bank, in its order; none is a neighbour of itself.

    Returns:
        {metric: neighbours}.

    Raises:
        ValueError: if k exceeds the bank, a set is empty, shapes do not fit, a metric is unknown, or a feature is not finite.
    """
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1] or not len(queries):
        raise ValueError(f"knn: expected features (M, D) and (Q, D), got {tuple(bank.shape)} and {tuple(queries.shape)}")
    if leave_one_out and len(bank) != len(queries):
        raise ValueError(f"knn: leave_one_out expects the bank's {len(bank)} rows as queries, got {len(queries)}")
    if not 1 <= k <= len(bank) - leave_one_out:
        raise ValueError(f"knn: expected every k in [1, {len(bank) - leave_one_out}] (the rows of the bank), got {k}")
    if not metrics or not set(metrics) <= set(METRICS):
        raise ValueError(f"knn: expected metric cosine or euclidean, got {', '.join(map(repr, metrics))}")
    if not (finite(bank) and finite(queries)):
        raise ValueError("knn: features hold NaN or infinite values")
    offset = bank.mean(0)
    if "euclidean" in metrics and offset.square().sum() > FAR * bank.var(0, correction=0).sum():
        # Relative to the bank's mean, squares are small against differences. Cosines need a product of the features as they are.
        others = [metric for metric in metrics if metric != "euclidean"]
        shifted = _in_parts(bank - offset, queries - offset, k, ["euclidean"], leave_one_out)
        return (_in_parts(bank, queries, k, others, leave_one_out) if others else {}) | shifted
    return _in_parts(bank, queries, k, metrics, leave_one_out)


def _in_parts(bank: Tensor, queries: Tensor, k: int, metrics: Sequence[str], leave_one_out: bool) -> dict[str, Neighbours]:
    """Return what `_search` does; with several processes, each has searched for its part of the queries."""
    if leave_one_out:  # few images
        return _search(bank, queries, k, metrics, leave_one_out)

    def of(part: Tensor) -> tuple[Tensor, ...]:
        found = _search(bank, part, k, metrics, leave_one_out)
        return tuple(column for metric in metrics for column in (found[metric].rows, found[metric].similarity))

    columns = distributed.in_parts(of, queries)
    return {metric: Neighbours(*columns[2 * i : 2 * i + 2]) for i, metric in enumerate(metrics)}


@exact_products()
def _search(bank: Tensor, queries: Tensor, k: int, metrics: Sequence[str], leave_one_out: bool) -> dict[str, Neighbours]:
    squares = bank.square().sum(1)  # (M,)
    inverse = squares.sqrt().clamp(min=1e-12).reciprocal()
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {metric: [] for metric in metrics}
    for number, q in enumerate(torch.split(queries, QUERIES)):
        product = q @ bank.T  # (q, M)
        for metric in metrics:
            # Both scores rank as the metric does: a query's own length only scales or shifts its row.
            scores = product * inverse if metric == "cosine" else torch.sub(product, squares, alpha=0.5)
            if leave_one_out:
                scores.diagonal(number * QUERIES).fill_(-torch.inf)
            rows, score = nearest(scores, k)
            own = q.square().sum(1, keepdim=True)
            similarity = score / own.sqrt().clamp(min=1e-12) if metric == "cosine" else -(own - 2 * score).clamp(min=0).sqrt()
            parts[metric].append((rows, similarity))
    return {metric: Neighbours(*(torch.cat(column) for column in zip(*chunks, strict=True))) for metric, chunks in parts.items()}


def nearest(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest entries of each row, largest first, of equal ones the lower index first.

    Args:
        score: (Q, M).
        k: in [1, M].

    Returns:
        (indices (Q, k), values (Q, k)).
    """
    values, rows = score.topk(min(k + 1, score.shape[1]), dim=1)
    equal = values[:, 1:] == values[:, :-1]
    values, rows = values[:, :k], rows[:, :k]
    if equal.any():  # `topk` does not define the order of equal entries
        rows, order = rows.sort(dim=1)
        values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
        rows = rows.gather(1, order)
        beyond = equal[:, k - 1 :].any(1)  # the last of the k equals one that was left out
        if beyond.any():
            values[beyond], rows[beyond] = (x[:, :k] for x in score[beyond].sort(dim=1, descending=True, stable=True))
    return rows, values


def vote(found: Neighbours, labels: Tensor, *, k: int, classes: int, temperature: float | None = None) -> Tensor:
    """Return the class that the k nearest neighbours vote for; ties go to the smallest label, as in scikit-learn.

    Args:
        found: at least k neighbours a query.
        labels: (M,) int64 of the bank.
        k: >= 1.
        classes: above every label.
        temperature: a vote weighs exp(similarity / temperature) (Wu et al. 2018, section 3.4); None: each weighs 1.

    Returns:
        (Q,) int64.
    """
    similarity = found.similarity[:, :k]
    # Relative to the nearest, so that nothing overflows: this divides all votes of a query by the same number.
    weights = torch.ones_like(similarity) if temperature is None else ((similarity - similarity[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(weights), classes).scatter_add_(1, labels[found.rows[:, :k]], weights)
    return votes.argmax(1)


def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    ks: Sequence[int] = KS,
    metric: str = "cosine",
    temperature: float | None = None,
) -> dict[int, float]:
    """Return the accuracy of the vote of the k nearest bank rows.

    Args:
        bank: (M, D) features with labels (M,).
        queries: (Q, D) features with labels (Q,).
        ks: numbers of neighbours, each in [1, M].
        metric: `cosine` or `euclidean`.
        temperature: see `vote`.

    Returns:
        {k: accuracy in [0, 1]}.

    Raises:
        ValueError: if a k exceeds the bank, a set is empty, shapes do not fit, the metric is another, or a feature is not finite.
    """
    if len(bank) != len(bank_labels) or len(queries) != len(query_labels) or not len(queries):
        raise ValueError(f"knn: {len(bank)} and {len(queries)} features for {len(bank_labels)} and {len(query_labels)} labels")
    if not ks or min(ks) < 1 or (temperature is not None and temperature <= 0):
        raise ValueError(f"knn: expected every k in [1, {len(bank)}] (the rows of the bank) and a temperature above 0, got {list(ks)}")
    found = search(bank, queries, k=max(ks), metrics=[metric])[metric]
    classes = int(torch.maximum(bank_labels.max(), query_labels.max())) + 1
    return {k: (vote(found, bank_labels, k=k, classes=classes, temperature=temperature) == query_labels).double().mean().item() for k in ks}
