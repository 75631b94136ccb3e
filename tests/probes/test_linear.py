"""The linear probe, against scikit-learn: its optimum, the choice of the weight decay, and SAGA."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tiny import blobs
from torch import Tensor
from torch.nn import functional as F

from twoviews.probes.linear import DECAYS, Linear, Problem, linear, saga


def fit(features: Tensor, labels: Tensor, *, classes: int, decay: float, start: Tensor | None = None) -> Linear:
    problem = Problem(features, labels, classes)
    (solved,) = problem.solve([decay], start)
    return problem.probe(solved)


def objective(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, decay: float) -> float:
    return (F.cross_entropy(x @ weight.T + bias, labels) + decay / 2 * weight.square().sum()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("axes", [6144, 0])
def test_o1_the_linear_probe_reaches_scikit_learns_optimum_and_accuracy(
    decay: float, dtype: torch.dtype, axes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the coordinates of the principal axes, and without them, as for raw pixels of large images."""
    monkeypatch.setattr("twoviews.probes.linear.AXES_UP_TO", axes)
    scales = torch.logspace(-2, 2, 12, dtype=torch.float64)  # the solution must not depend on the scales
    (features, labels), (test, test_labels) = (blobs(n, 12, 4, seed=seed, apart=0.7) for n, seed in ((400, 0), (300, 1)))
    features, test = features * scales + 3, test * scales + 3
    probe = fit(features.to(dtype), labels, classes=4, decay=decay)

    scaler = StandardScaler().fit(features.numpy())
    x = torch.from_numpy(scaler.transform(features.numpy()))
    theirs = LogisticRegression(C=1 / (len(x) * decay), tol=1e-10, max_iter=10_000).fit(x.numpy(), labels.numpy())
    best = objective(x, labels, torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_), decay)
    weight = probe.weight.double() * torch.from_numpy(scaler.scale_)
    bias = probe.bias.double() + probe.weight.double() @ torch.from_numpy(scaler.mean_)
    assert objective(x, labels, weight, bias, decay) == pytest.approx(best, rel=1e-4)
    score = theirs.score(scaler.transform(test.numpy()), test_labels.numpy())
    assert probe.accuracy(test.to(dtype), test_labels) == pytest.approx(score, abs=1.01 / len(test))


def test_the_solution_does_not_depend_on_scales_and_shifts_of_the_features() -> None:
    features, labels = blobs(200, 6, 3, seed=0)
    moved = features * torch.logspace(-3, 3, 6, dtype=torch.float64) - 7
    plain, other = (fit(x, labels, classes=3, decay=1e-2) for x in (features, moved))
    logits = F.linear(features, plain.weight, plain.bias)
    torch.testing.assert_close(F.linear(moved, other.weight, other.bias), logits, rtol=1e-3, atol=1e-3)


def test_the_bias_is_not_decayed() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    probe = fit(torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), labels, classes=2, decay=1e3)
    assert (probe.bias[0] - probe.bias[1]).item() == pytest.approx(np.log(9), rel=1e-3), "the bias alone fits the frequencies"


def test_the_optimum_does_not_depend_on_the_start() -> None:
    features, labels = blobs(200, 6, 3, seed=0)
    start = torch.randn(1, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = start.clone()
    cold, warm = fit(features, labels, classes=3, decay=1e-2), fit(features, labels, classes=3, decay=1e-2, start=start)
    torch.testing.assert_close(warm.weight, cold.weight, rtol=1e-3, atol=1e-3)
    assert torch.equal(start, before)


@pytest.mark.parametrize("rows", [5, 30])
def test_fewer_rows_than_dimensions_and_repeated_features_are_fitted(rows: int) -> None:
    features, labels = blobs(rows, 12, 2, seed=0, dtype=torch.float32)
    probe = fit(torch.cat([features, features], 1), labels, classes=2, decay=1e-3)
    assert torch.isfinite(probe.weight).all()
    assert probe.accuracy(torch.cat([features, features], 1), labels) == 1.0


def test_the_decay_is_the_best_on_val_and_the_last_fit_uses_both_splits() -> None:
    features, labels = blobs(60, 40, 4, seed=0, apart=0.35)  # with few rows and many dimensions the decay matters
    val_features, val_labels = blobs(200, 40, 4, seed=1, apart=0.35)
    on_val = {decay: fit(features, labels, classes=4, decay=decay).accuracy(val_features, val_labels) for decay in DECAYS}
    assert len(set(on_val.values())) > 1, "the candidates must differ"
    probe, chosen = linear(features, labels, val_features, val_labels, classes=4)
    assert on_val[chosen] == max(on_val.values())
    both = fit(torch.cat([features, val_features]), torch.cat([labels, val_labels]), classes=4, decay=chosen)
    torch.testing.assert_close(probe.weight, both.weight, rtol=1e-2, atol=1e-3)
    test, _ = blobs(20, 40, 4, seed=2, apart=0.35)
    train_only = fit(features, labels, classes=4, decay=chosen)
    assert not torch.allclose(F.linear(test, probe.weight), F.linear(test, train_only.weight), rtol=1e-2, atol=1e-2)


def test_the_decay_is_not_chosen_by_accuracy_on_the_training_rows() -> None:
    features, labels = blobs(120, 40, 4, seed=0, apart=0.5)
    wrong = torch.rand(120, generator=torch.Generator().manual_seed(0)) < 0.4
    labels = torch.where(wrong, (labels + 1) % 4, labels)  # wrong labels, which weak decays memorise
    val = blobs(400, 40, 4, seed=1, apart=0.5)
    probes = {decay: fit(features, labels, classes=4, decay=decay) for decay in DECAYS}
    fitted = {decay: probe.accuracy(features, labels) for decay, probe in probes.items()}
    held_out = {decay: probe.accuracy(*val) for decay, probe in probes.items()}
    assert max(fitted, key=fitted.__getitem__) != max(held_out, key=held_out.__getitem__), "the two rules must choose different decays"
    assert linear(features, labels, *val, classes=4)[1] == max(held_out, key=held_out.__getitem__)


def test_among_equally_good_decays_the_strongest_is_chosen() -> None:
    features, labels = blobs(100, 4, 3, seed=0, apart=50.0)
    assert linear(features, labels, features, labels, classes=3)[1] == max(DECAYS)


def test_separable_classes_are_classified_without_error() -> None:
    probe, _ = linear(*blobs(200, 8, 5, seed=0, apart=8.0), *blobs(50, 8, 5, seed=1, apart=8.0), classes=5)
    assert probe.accuracy(*blobs(200, 8, 5, seed=2, apart=8.0)) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_features_change_nothing(dtype: torch.dtype) -> None:
    features, labels = blobs(100, 4, 3, seed=0, dtype=dtype)
    constants = torch.tensor([0.0, 1.0, 12345.678], dtype=dtype).expand(100, 3)
    plain = fit(features, labels, classes=3, decay=1e-2)
    wider = fit(torch.cat([features, constants], 1), labels, classes=3, decay=1e-2)
    assert torch.isfinite(wider.weight).all()
    torch.testing.assert_close(wider.weight[:, :4], plain.weight, rtol=1e-2, atol=1e-3)
    assert wider.accuracy(torch.cat([features, constants], 1), labels) == plain.accuracy(features, labels)


def test_a_class_without_rows_is_never_predicted() -> None:
    features, labels = blobs(100, 6, 4, seed=0)
    kept = labels != 2
    probe, _ = linear(features[kept], labels[kept], features[kept], labels[kept], classes=5)
    predicted = F.linear(features, probe.weight, probe.bias).argmax(1)
    assert probe.weight.shape == (5, 6)
    assert set(predicted.tolist()) == {0, 1, 3}


def test_fitting_works_inside_no_grad_and_returns_no_graph() -> None:
    features, labels = blobs(50, 4, 3, seed=0, apart=5.0)
    with torch.no_grad():
        probe = fit(features, labels, classes=3, decay=1e-2)
    assert not probe.weight.requires_grad
    assert probe.accuracy(features, labels) > 0.95


def test_one_row_of_each_split_or_one_dimension_is_enough() -> None:
    one = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    probe, _ = linear(*one, *one, classes=3)
    assert probe.predict(one[0]).tolist() == [1]
    assert torch.isfinite(probe.weight).all()
    line, labels = torch.linspace(-3, 3, 61)[:, None], (torch.linspace(-3, 3, 61) > 1.05).long()
    probe, _ = linear(line, labels, line, labels, classes=2)
    assert probe.accuracy(line, labels) == 1.0


def test_accuracy_is_the_share_of_correct_rows() -> None:
    probe = Linear(torch.eye(3), torch.tensor([0.0, 0.0, 0.5]))
    assert probe.accuracy(torch.eye(3), torch.tensor([0, 1, 2])) == 1.0
    assert probe.accuracy(torch.zeros(4, 3), torch.tensor([2, 2, 2, 0])) == 0.75


@pytest.mark.parametrize(
    "changes",
    [
        {"features": torch.ones(10)},
        {"labels": torch.zeros(9, dtype=torch.int64)},
        {"features": torch.ones(0, 2), "labels": torch.zeros(0, dtype=torch.int64)},
        {"features": torch.full((10, 2), float("nan"))},
        {"val_features": torch.full((4, 2), float("inf"), dtype=torch.float64)},
        {"val_features": torch.ones(4, 3)},
        {"val_labels": torch.zeros(3, dtype=torch.int64)},
        {"val_labels": torch.zeros(1, dtype=torch.int64)},
        {"val_features": torch.ones(0, 2), "val_labels": torch.zeros(0, dtype=torch.int64)},
        {"decays": ()},
        {"decays": (1e-2, 0.0)},
    ],
    ids=["vector", "labels", "empty", "nan", "val inf", "val width", "val labels", "one label", "val empty", "no decay", "decay 0"],
)
def test_arguments_that_do_not_match_are_refused(changes: dict[str, Any]) -> None:
    features, labels = blobs(10, 2, 2, seed=0)
    arguments: dict[str, Any] = {
        "features": features,
        "labels": labels,
        "val_features": features[:4],
        "val_labels": labels[:4],
        "classes": 2,
    }
    linear(**arguments)
    with pytest.raises(ValueError, match="linear"):
        linear(**{**arguments, **changes})


@pytest.mark.parametrize("classes", [2, 4])
def test_solver_sklearn_is_saga_without_penalty(classes: int) -> None:
    features, labels = blobs(120, 6, classes, seed=0, apart=0.5)
    probe, passes = saga(features, labels)
    theirs = LogisticRegression(C=np.inf, solver="saga", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(features.numpy(), labels.numpy())
    predicted = F.linear(features, probe.weight, probe.bias).argmax(1)
    assert predicted.tolist() == theirs.predict(features.numpy()).tolist()
    assert passes == theirs.n_iter_.max() <= 100
    assert probe.weight.shape == (classes, 6)


def test_solver_sklearn_never_predicts_a_class_without_rows() -> None:
    features, labels = blobs(200, 6, 5, seed=0)
    kept = labels != 2
    probe, _ = saga(features[kept].float(), labels[kept])
    assert 2 not in F.linear(features.float(), probe.weight, probe.bias).argmax(1)
