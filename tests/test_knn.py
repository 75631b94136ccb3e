"""kNN against scikit-learn, by the C++ search and by torch's: the same neighbours, ties and refusals."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from tiny import blobs
from torch import Tensor
from torch.nn import functional as F

from twoviews import device, native
from twoviews.probes.knn import KS, METRICS, knn, search

# By name: `twoviews.probes.knn` may be the module or a function of that name, whichever was bound last.
KNN_MODULE = importlib.import_module("twoviews.probes.knn")


@pytest.fixture(autouse=True, params=["C++", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both searches on any processor: which of them is the faster one there does not matter here."""
    assert device.compiler(), "these tests need g++ or clang++"
    assert native.library(native.KNN) is not None
    monkeypatch.setattr(native, "fast_products", lambda: request.param == "C++")
    return str(request.param)


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


# --- the search in C++ ----------------------------------------------------------------------------------------------


def drawn(kind: str, rows: int, width: int, seed: int) -> Tensor:
    """Features that 8 bits keep badly, in float32 numbers as float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    if kind == "rectified":
        x = x.relu()
    elif kind == "a huge feature":
        x[:, 0] *= 1e4
    elif kind == "heavy tails":
        x = x.pow(5)
    elif kind == "rows of all sizes":
        x = x * torch.logspace(-6, 6, rows)[torch.randperm(rows, generator=generator), None]
    elif kind == "far from zero":
        x = x + 300
    elif kind == "a line":
        x = x[:, :1] * torch.linspace(-1, 1, width)
    elif kind == "whole numbers":
        x = x.mul(2).round()
    elif kind == "constant rows":
        x = x[:, :1].expand(-1, width).clone()
    return x.double()


KINDS = ("normal", "rectified", "a huge feature", "heavy tails", "rows of all sizes", "far from zero", "a line", "whole numbers")


@pytest.mark.parametrize("kind", [*KINDS, "constant rows"])
@pytest.mark.parametrize(("rows", "count", "width", "k"), [(700, 500, 31, 7), (65, 13, 1, 65), (400, 241, 130, 200), (1, 1, 3, 1)])
def test_what_8_bits_lose_is_looked_up(kind: str, rows: int, count: int, width: int, k: int) -> None:
    bank, queries = drawn(kind, rows, width, 0), drawn(kind, count, width, 1)
    found = native.neighbours(bank, queries, k=k, metrics=METRICS)
    assert found is not None
    exact = {
        "cosine": F.normalize(queries) @ F.normalize(bank).T,
        "euclidean": -(queries[:, None] - bank[None]).square().sum(2).sqrt(),
    }
    for metric, (indices, similarity) in found.items():
        # Where values tie to rounding either row may come first; what counts is that none is passed over.
        best = exact[metric].topk(k, dim=1).values
        scale = 1.0 if metric == "cosine" else float(best.abs().max()) + 1e-300
        assert torch.equal(similarity, similarity.sort(1, descending=True).values)
        assert (similarity - best).abs().max() < 1e-12 * scale
        assert (exact[metric].gather(1, indices) - best).abs().max() < 1e-12 * scale
        assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("factor", [1e-25, 1e-12, 1e12, 1e17])
def test_the_unit_of_the_features_does_not_matter(factor: float) -> None:
    bank, queries = blobs(300, 20, 5, seed=0)[0], blobs(50, 20, 5, seed=1)[0]
    plain = native.neighbours(bank, queries, k=9, metrics=METRICS)
    scaled = native.neighbours(bank * factor, queries * factor, k=9, metrics=METRICS)
    assert plain is not None
    assert scaled is not None
    assert torch.equal(plain["euclidean"][0], scaled["euclidean"][0])
    if factor > 1e-12:  # a row shorter than 1e-12 counts as zeros
        assert torch.equal(plain["cosine"][0], scaled["cosine"][0])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_no_neighbour(threads: int) -> None:
    bank, queries = blobs(500, 24, 5, seed=0, dtype=torch.float32)[0], blobs(1000, 24, 5, seed=1, dtype=torch.float32)[0]
    before = torch.get_num_threads()
    alone = native.neighbours(bank, queries, k=5, metrics=METRICS)
    try:
        torch.set_num_threads(threads)
        again = native.neighbours(bank, queries, k=5, metrics=METRICS)
    finally:
        torch.set_num_threads(before)
    assert alone is not None
    assert again is not None
    for metric in METRICS:
        assert all(torch.equal(a, b) for a, b in zip(alone[metric], again[metric], strict=True))


def test_both_searches_give_the_same_neighbours() -> None:
    bank, queries = blobs(2000, 48, 7, seed=0, apart=0.4)[0], blobs(400, 48, 7, seed=1, apart=0.4)[0]
    found, exact = native.neighbours(bank, queries, k=20, metrics=METRICS), KNN_MODULE._search(bank, queries, 20, METRICS)
    assert found is not None
    for metric in METRICS:
        assert torch.equal(found[metric][0], exact[metric].rows)
        torch.testing.assert_close(found[metric][1], exact[metric].similarity)


def test_what_the_library_is_not_for_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = blobs(30, 4, 3, seed=0)[0]
    for other in (bank.half(), torch.zeros(3, native.WIDEST + 1), bank.to("meta")):
        assert native.neighbours(other, other, k=1, metrics=METRICS) is None
    monkeypatch.setattr(native, "library", lambda source: None)
    assert native.neighbours(bank, bank, k=1, metrics=METRICS) is None
    assert search(bank, bank, k=1)["cosine"].rows.flatten().tolist() == list(range(30))
