"""kNN against scikit-learn: the same neighbours, ties and refusals."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from tiny import blobs
from torch.nn import functional as F

from twoviews.probes.knn import KS, METRICS, knn, search

# By name: `twoviews.probes.knn` may be the module or a function of that name, whichever was bound last.
KNN_MODULE = importlib.import_module("twoviews.probes.knn")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 5, 10, 20, 200])
def test_o1_knn_votes_as_scikit_learn(k: int, metric: str) -> None:
    bank, labels = blobs(600, 12, 7, seed=0, apart=0.4)
    queries, query_labels = blobs(300, 12, 7, seed=1, apart=0.4)
    theirs = KNeighborsClassifier(k, metric=metric, weights="uniform", algorithm="brute").fit(bank.numpy(), labels.numpy())
    assert knn(bank, labels, queries, query_labels, ks=[k], metric=metric)[k] == pytest.approx(
        theirs.score(queries.numpy(), query_labels.numpy()), abs=1e-12
    )
    predicted = torch.from_numpy(theirs.predict(queries.numpy()))
    assert knn(bank, labels, queries, predicted, ks=[k], metric=metric)[k] == 1.0, "each single prediction is the same"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 20, 200])
def test_o1_weighted_votes_are_scikit_learns(k: int, metric: str) -> None:
    bank, labels = blobs(600, 12, 7, seed=0, apart=0.4)
    queries, _ = blobs(300, 12, 7, seed=1, apart=0.4)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances if metric == "cosine" else -distances) / 0.1)

    theirs = KNeighborsClassifier(k, metric=metric, weights=weights, algorithm="brute").fit(bank.numpy(), labels.numpy())
    predicted = torch.from_numpy(theirs.predict(queries.numpy()))
    assert knn(bank, labels, queries, predicted, ks=[k], metric=metric, temperature=0.1)[k] == 1.0, "each single prediction is the same"
    uniform = knn(bank, labels, queries, predicted, ks=[k], metric=metric)[k]
    assert (uniform == 1.0) == (k == 1)


def test_weights_of_far_neighbours_do_not_vanish() -> None:
    bank = torch.tensor([[0.0, 0.0], [0.0, 1.0], [50.0, 0.0]])
    near, far = torch.tensor([[0.0, 0.4]]), torch.tensor([[5000.0, 0.0]])  # exp(-4950 / 0.1) is 0 in any precision
    for query, label in ((near, 2), (far, 1)):
        assert knn(bank, torch.tensor([2, 0, 1]), query, torch.tensor([label]), ks=[3], metric="euclidean", temperature=0.1) == {3: 1.0}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0.0, 9.5, 10.5, 1000.0])  # squared, over the variance: about the threshold of a product of its own
def test_o1_in_float32_only_rows_that_all_but_tie_may_differ(metric: str, offset: float) -> None:
    bank, queries = (blobs(n, 64, 7, seed=seed, apart=0.4)[0] for n, seed in ((3000, 0), (500, 1)))
    shift = (offset * bank.var(0).sum() / 64).sqrt()
    bank, queries = bank - bank.mean(0) + shift, queries - bank.mean(0) + shift
    bank, queries = bank.float().double(), queries.float().double()  # one set of numbers in both precisions
    exact, single = (search(b, q, k=11, metrics=[metric])[metric] for b, q in ((bank, queries), (bank.float(), queries.float())))
    for k in (1, 5, 10):
        differs = (exact.rows[:, :k].sort(1).values != single.rows[:, :k].sort(1).values).any(1)
        gap = exact.similarity[:, k - 1] - exact.similarity[:, k]
        scale = 1 if metric == "cosine" else -exact.similarity[:, k - 1]  # of the distance itself
        assert (gap < 1e-6 * scale)[differs].all()
        assert differs.double().mean() < 0.03  # rows that all but tie: 2.0 % at most on the processors seen, each with an order of summing


@pytest.mark.parametrize("metric", METRICS)
def test_of_equally_near_rows_the_lower_comes_first(metric: str) -> None:
    distinct = blobs(12, 4, 3, seed=0)[0]
    bank = distinct.repeat(5, 1)  # row i, i + 12, ... are the same point
    found = search(bank, distinct, k=60, metrics=[metric])[metric]
    for k in (1, 3, 5, 7, 60):  # within a group of equals, at its end and beyond it
        part = search(bank, distinct, k=k, metrics=[metric])[metric]
        assert torch.equal(part.rows, found.rows[:, :k])
    assert torch.equal(found.rows[:, :5], torch.arange(12)[:, None] + 12 * torch.arange(5))
    assert torch.equal(found.rows.sort(1).values, torch.arange(60).expand(12, -1))
    collapsed = search(torch.ones(30, 4), torch.ones(2, 4), k=7, metrics=[metric])[metric]
    assert torch.equal(collapsed.rows, torch.arange(7).expand(2, -1))


def test_both_metrics_of_one_search_are_those_of_two() -> None:
    for shift in (0.0, 100.0):  # far from zero each metric has a product of its own
        bank, queries = blobs(300, 8, 5, seed=0)[0] + shift, blobs(50, 8, 5, seed=1)[0] + shift
        both = search(bank, queries, k=9)
        for metric in METRICS:
            alone = search(bank, queries, k=9, metrics=[metric])[metric]
            assert torch.equal(both[metric].rows, alone.rows)
            assert torch.equal(both[metric].similarity, alone.similarity)


def test_similarities_are_the_cosine_and_minus_the_distance() -> None:
    bank, queries = blobs(40, 6, 3, seed=0)[0], blobs(10, 6, 3, seed=1)[0]
    found = search(bank, queries, k=40)
    cosine, distance = F.normalize(queries) @ F.normalize(bank).T, torch.cdist(queries, bank)
    torch.testing.assert_close(found["cosine"].similarity, cosine.gather(1, found["cosine"].rows))
    torch.testing.assert_close(found["euclidean"].similarity, -distance.gather(1, found["euclidean"].rows))
    assert (found["cosine"].similarity.diff(dim=1) <= 0).all()


def test_a_row_of_zeros_is_no_neighbour_by_angle() -> None:
    bank = torch.tensor([[0.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
    found = search(bank, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), k=3, metrics=["cosine"])["cosine"]
    assert found.rows[0].tolist() == [1, 0, 2]
    assert torch.isfinite(found.similarity).all()


@pytest.mark.parametrize("metric", METRICS)
def test_features_of_one_dimension_and_a_bank_of_one_row(metric: str) -> None:
    bank, labels = torch.tensor([[1.0], [2.0], [-3.0]]), torch.tensor([0, 1, 2])
    assert knn(bank, labels, torch.tensor([[-2.5]]), torch.tensor([2]), ks=[1], metric=metric) == {1: 1.0}
    assert knn(bank[:1], labels[:1], bank, labels, ks=[1], metric=metric) == {1: pytest.approx(1 / 3)}


def test_euclidean_neighbours_survive_features_far_from_zero() -> None:
    """|q|^2 - 2 q b + |b|^2 in float32 loses all digits where the features share a large offset."""
    bank, labels = blobs(400, 8, 5, seed=0, apart=0.5)
    queries, query_labels = blobs(100, 8, 5, seed=1, apart=0.5)
    exact = knn(bank, labels, queries, query_labels, ks=[1, 5], metric="euclidean")
    far = [(x + 10_000).float() for x in (bank, queries)]
    moved = knn(far[0], labels, far[1], query_labels, ks=[1, 5], metric="euclidean")
    assert moved == pytest.approx(exact, abs=0.03), "a neighbour or two may change places where the input is rounded to 1e-3"


def test_one_search_serves_every_k() -> None:
    bank, labels = blobs(400, 8, 5, seed=0, apart=0.4)
    queries, query_labels = blobs(100, 8, 5, seed=1, apart=0.4)
    together = knn(bank, labels, queries, query_labels)
    assert tuple(together) == KS
    for k in KS:
        assert knn(bank, labels, queries, query_labels, ks=[k]) == {k: together[k]}


def test_the_size_of_the_chunks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels = blobs(200, 8, 5, seed=0, apart=0.4)
    queries, query_labels = blobs(50, 8, 5, seed=1, apart=0.4)
    whole = knn(bank, labels, queries, query_labels, ks=[1, 10])
    monkeypatch.setattr(KNN_MODULE, "QUERIES", 7)
    assert knn(bank, labels, queries, query_labels, ks=[1, 10]) == whole


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_a_tie_goes_to_the_smallest_label_wherever_it_stands(order: list[int]) -> None:
    angles = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)  # nearest first
    bank, labels = torch.stack([angles.cos(), angles.sin()], 1)[order], torch.tensor([4, 2, 2, 4])[order]
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    votes = {k: next(c for c in range(5) if knn(bank, labels, query, torch.tensor([c]), ks=[k])[k]) for k in (1, 2, 3, 4)}
    assert votes == {1: 4, 2: 2, 3: 2, 4: 2}


def test_knn_goes_by_the_angle_not_by_the_distance() -> None:
    bank = torch.tensor([[100.0, 1.0], [0.0, 1.1]])  # the first points along the query, the second lies near it
    assert knn(bank, torch.tensor([0, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), ks=[1]) == {1: 1.0}


def test_d5_a_class_that_the_bank_lacks_is_a_miss() -> None:
    bank, labels = blobs(40, 4, 3, seed=0)
    assert knn(bank, labels, bank, torch.full((40,), 7), ks=[1, 5]) == {1: 0.0, 5: 0.0}
    assert knn(bank, labels, bank, labels, ks=[1]) == {1: 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "manhattan"}, "expected metric"),
        ({"ks": [11]}, "every k"),
        ({"ks": [0]}, "every k"),
        ({"ks": []}, "every k"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"bank": torch.ones(10, 3)}, "expected features"),
        ({"bank": torch.ones(10)}, "expected features"),
        ({"bank_labels": torch.zeros(9, dtype=torch.int64)}, "labels"),
        ({"query_labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"queries": torch.ones(0, 2), "query_labels": torch.zeros(0, dtype=torch.int64)}, "labels"),
        ({"queries": torch.ones(4, 3)}, "expected features"),
        ({"bank": torch.ones(0, 2), "bank_labels": torch.zeros(0, dtype=torch.int64)}, "rows of the bank"),
        *(
            ({name: torch.eye(rows, 2).masked_fill(torch.eye(rows, 2) == 1, bad)}, "NaN or infinite")
            for name, rows in (("bank", 10), ("queries", 4))
            for bad in (math.nan, math.inf, -math.inf)
        ),
    ],
)
def test_knn_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    zeros = torch.zeros(10, dtype=torch.int64)
    arguments: dict[str, Any] = {
        "bank": torch.ones(10, 2),
        "bank_labels": zeros,
        "queries": torch.ones(4, 2),
        "query_labels": zeros[:4],
        "ks": [1],
    }
    assert knn(**arguments) == {1: 1.0}
    with pytest.raises(ValueError, match=message):
        knn(**{**arguments, **changes})


@pytest.mark.parametrize("offset", [0.0, 1000.0])  # far from zero, the metrics have products of their own
def test_leaving_one_out_no_row_is_its_own_neighbour_and_all_others_are_as_without_it(offset: float) -> None:
    bank = blobs(1100, 6, 5, seed=0)[0] + offset  # three parts of a search
    bank[1:40] = bank[0]  # rows at equal distance, of which one is the query itself
    found = search(bank, bank, k=7, leave_one_out=True)
    for row in (0, 20, 499, 500, 1099):
        others = torch.cat([bank[:row], bank[row + 1 :]])
        for metric, expected in search(others, bank[row : row + 1], k=7).items():
            rows = expected.rows[0] + (expected.rows[0] >= row)
            assert found[metric].rows[row].tolist() == rows.tolist()
            torch.testing.assert_close(found[metric].similarity[row], expected.similarity[0])


def test_leaving_one_out_needs_the_bank_as_queries_and_one_row_more_than_k() -> None:
    bank = torch.eye(4)
    with pytest.raises(ValueError, match="leave_one_out expects the bank's 4 rows as queries, got 3"):
        search(bank, bank[:3], k=1, leave_one_out=True)
    with pytest.raises(ValueError, match=r"every k in \[1, 3\]"):
        search(bank, bank, k=4, leave_one_out=True)
