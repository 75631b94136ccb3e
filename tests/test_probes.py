"""Read-outs against scikit-learn, the frozen backbone, and what must never see the test set."""

from __future__ import annotations

import contextlib
import copy
import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tiny import blobs
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.backbones import ThinResNet
from twoviews.probes import minibatch, protocols
from twoviews.probes.diagnostics import alignment, confusion, per_class, rankme, spread, uniformity
from twoviews.probes.embed import embed, finite, pixels
from twoviews.probes.linear import DECAYS, Linear, Problem, linear, saga
from twoviews.probes.minibatch import Schedule
from twoviews.rules import RULES

# By name: `twoviews.probes.embed` may be the module or a function of that name, whichever was bound last.
EMBED_MODULE = importlib.import_module("twoviews.probes.embed")


# --- the linear probe -----------------------------------------------------------------------------------------------


NONE: dict[str, Any] = {"classes": 4, "how": None, "seed": 0}


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
    """Along principal axes, and, as of raw pixels of large images, without."""
    monkeypatch.setattr("twoviews.probes.linear.AXES_UP_TO", axes)
    scales = torch.logspace(-2, 2, 12, dtype=torch.float64)  # standardisation has to undo them
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


def test_scales_and_shifts_of_the_features_do_not_matter() -> None:
    features, labels = blobs(200, 6, 3, seed=0)
    moved = features * torch.logspace(-3, 3, 6, dtype=torch.float64) - 7
    plain, other = (fit(x, labels, classes=3, decay=1e-2) for x in (features, moved))
    logits = F.linear(features, plain.weight, plain.bias)
    torch.testing.assert_close(F.linear(moved, other.weight, other.bias), logits, rtol=1e-3, atol=1e-3)


def test_the_bias_is_not_decayed() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    probe = fit(torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), labels, classes=2, decay=1e3)
    assert (probe.bias[0] - probe.bias[1]).item() == pytest.approx(np.log(9), rel=1e-3), "with no weights left, the classes' own shares"


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


def test_the_decay_is_the_best_on_val_and_the_last_fit_sees_both() -> None:
    features, labels = blobs(60, 40, 4, seed=0, apart=0.35)  # few rows, many dimensions: the decay matters
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


def test_the_decay_that_fits_the_training_rows_best_is_not_chosen_for_that() -> None:
    features, labels = blobs(120, 40, 4, seed=0, apart=0.5)
    wrong = torch.rand(120, generator=torch.Generator().manual_seed(0)) < 0.4
    labels = torch.where(wrong, (labels + 1) % 4, labels)  # noise that weak decays learn by heart
    val = blobs(400, 40, 4, seed=1, apart=0.5)
    probes = {decay: fit(features, labels, classes=4, decay=decay) for decay in DECAYS}
    fitted = {decay: probe.accuracy(features, labels) for decay, probe in probes.items()}
    held_out = {decay: probe.accuracy(*val) for decay, probe in probes.items()}
    assert max(fitted, key=fitted.__getitem__) != max(held_out, key=held_out.__getitem__), "the rows must tell the two rules apart"
    assert linear(features, labels, *val, classes=4)[1] == max(held_out, key=held_out.__getitem__)


def test_equally_good_decays_give_the_strongest() -> None:
    features, labels = blobs(100, 4, 3, seed=0, apart=50.0)
    assert linear(features, labels, features, labels, classes=3)[1] == max(DECAYS)


def test_separable_blobs_are_solved() -> None:
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


def test_a_class_missing_from_the_rows_is_never_predicted() -> None:
    features, labels = blobs(100, 6, 4, seed=0)
    kept = labels != 2
    probe, _ = linear(features[kept], labels[kept], features[kept], labels[kept], classes=5)
    predicted = F.linear(features, probe.weight, probe.bias).argmax(1)
    assert probe.weight.shape == (5, 6)
    assert set(predicted.tolist()) == {0, 1, 3}


def test_the_probe_fits_inside_no_grad_and_returns_no_graph() -> None:
    features, labels = blobs(50, 4, 3, seed=0, apart=5.0)
    with torch.no_grad():
        probe = fit(features, labels, classes=3, decay=1e-2)
    assert not probe.weight.requires_grad
    assert probe.accuracy(features, labels) > 0.95


def test_one_row_of_each_split_is_enough_and_one_dimension_too() -> None:
    one = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    probe, _ = linear(*one, *one, classes=3)
    assert probe.predict(one[0]).tolist() == [1]
    assert torch.isfinite(probe.weight).all()
    line, labels = torch.linspace(-3, 3, 61)[:, None], (torch.linspace(-3, 3, 61) > 1.05).long()
    probe, _ = linear(line, labels, line, labels, classes=2)
    assert probe.accuracy(line, labels) == 1.0
    adam = protocols.Schedule("adam", 0.1, epochs=20, batch_size=1000)
    short = {"classes": 3, "schedule": adam, "seed": 0, "max_steps": None, "name": "one"}
    assert minibatch.on_features(*one, **short).predict(one[0]).tolist() == [1]


def test_d5_classes_that_test_or_train_lack_are_counted_right() -> None:
    train, labels = blobs(120, 6, 4, seed=0, apart=5.0)
    test, truth = blobs(60, 6, 4, seed=1, apart=5.0)
    some = labels != 3  # train lacks one class, test another
    others = truth != 1
    rows = [
        *protocols.read_out(
            "linear_precomp", train=(train[some], labels[some]), val=(train[some], labels[some]), test=test[others], **NONE
        ),
        *protocols.neighbours([protocols.Vote(5)], bank=(train[some], labels[some]), test=test[others], classes=4),
    ]
    for _, predicted in rows:
        right, there = (predicted == truth[others]).double().mean().item(), (truth[others] != 3).double().mean().item()
        assert right == pytest.approx(there, abs=0.02)
        shares = per_class(predicted, truth[others], 4)
        assert shares[1] is None
        assert shares[3] == 0.0


def test_accuracy_is_the_share_of_right_rows() -> None:
    probe = Linear(torch.eye(3), torch.tensor([0.0, 0.0, 0.5]))
    assert probe.accuracy(torch.eye(3), torch.tensor([0, 1, 2])) == 1.0
    assert probe.accuracy(torch.zeros(4, 3), torch.tensor([2, 2, 2, 0])) == 0.75


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_finite_sees_one_entry_among_others(bad: float) -> None:
    x = torch.arange(12.0).view(3, 4) - 6
    assert finite(x)
    assert finite(x[:0])
    x[1, 2] = bad
    assert not finite(x)


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
def test_linear_refuses_what_does_not_fit(changes: dict[str, Any]) -> None:
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


# --- protocols ------------------------------------------------------------------------------------------------------


Split = tuple[Tensor, Tensor]
FEW = Schedule("adam", 0.1, epochs=3, batch_size=50)


def read(name: str, train: Split, val: Split, test: Split, **more: Any) -> list[dict[str, Any]]:
    """Rows of one read-out of features of four classes, scored."""
    if name in protocols.KNN:
        bank = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
        found = protocols.neighbours(protocols.votes([name], "h"), bank=bank, test=test[0], classes=4)
    else:
        found = protocols.read_out(name, train=train, val=val, test=test[0], classes=4, **{"how": FEW, "seed": 0, **more})
    return [{**row, "accuracy": (predicted == test[1]).double().mean().item()} for row, predicted in found]


ON_FEATURES = ("knn", "knn_euclidean", "linear_precomp", "linear_precomp adam", "linear_precomp sklearn")


def test_poisoned_test_labels_change_nothing_but_the_accuracy() -> None:
    train, val, test = blobs(300, 8, 4, seed=0, apart=0.5), blobs(60, 8, 4, seed=1, apart=0.5), blobs(100, 8, 4, seed=2, apart=0.5)

    def rows(labels: Tensor) -> list[dict[str, Any]]:
        return [row for name in (*ON_FEATURES[2:], *ON_FEATURES[:2], "linear_precomp") for row in read(name, train, val, (test[0], labels))]

    def apart_from_accuracy(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key not in ("accuracy", "seconds")} for row in rows]

    honest, poisoned = rows(test[1]), rows(torch.zeros_like(test[1]))
    assert apart_from_accuracy(honest) == apart_from_accuracy(poisoned)
    solved, decay = linear(*train, *val, classes=4)
    shares = [(F.linear(test[0], solved.weight, solved.bias).argmax(1) == label).float().mean().item() for label in range(4)]
    assert poisoned[-1]["accuracy"] == pytest.approx(shares[0]), "the same predictions, scored against other labels"
    assert poisoned[-1]["weight_decay"] == decay
    assert honest[-1]["accuracy"] > poisoned[-1]["accuracy"]


def test_every_row_says_its_protocol() -> None:
    train, val, test = blobs(150, 8, 4, seed=0), blobs(30, 8, 4, seed=1), blobs(40, 8, 4, seed=2)
    rows = [row for name in ("knn", "linear_precomp") for row in read(name, train, val, test)]
    assert [row["probe"] for row in rows] == ["knn"] * 4 + ["linear_precomp"], "k = 200 does not fit 180 rows"
    assert [row["k"] for row in rows[:-1]] == [1, 5, 10, 20]
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert row["seconds"] >= 0
    assert all((row["metric"], row["weights"]) == ("cosine", "uniform") for row in rows[:-1])
    assert (rows[-1]["solver"], rows[-1]["weight_decay"] in DECAYS) == ("lbfgs", True)
    assert [protocols.protocol(row) for row in (rows[2], rows[-1])] == [
        "kNN k=10 cosine uniform",
        "linear_precomp L-BFGS, decay chosen on val",
    ]


def test_named_knn_protocols_have_their_peers_settings() -> None:
    def said(name: str) -> list[tuple[Any, ...]]:
        return [(one.k, one.metric, one.weights, one.features) for one in protocols.KNN[name]]

    assert said("second_seed") == [(k, metric, "uniform", "h") for metric in ("cosine", "euclidean") for k in (1, 5, 10)]
    assert said("lightly") == [(200, "cosine", "exp(s/0.1)", "h")]
    assert said("moco_demo") == [(200, "cosine", "exp(s/0.1)", "z")]
    assert said("wmse") == [(5, "euclidean", "uniform", "h")]
    assert [one.k for one in protocols.votes(["knn", "second_seed"], "h")] == [1, 5, 10, 20, 200, 1, 5, 10], "none twice"
    assert protocols.votes(["knn", "moco_demo"], "z") == protocols.KNN["moco_demo"]
    assert protocols.protocol({"probe": "knn", "k": 200, "metric": "cosine", "weights": "exp(s/0.1)", "features": "z"}) == (
        "kNN k=200 cosine exp(s/0.1) on z"
    )


def test_every_probe_is_a_word_of_the_configuration() -> None:
    assert set(RULES["probes"].choices) == {"fast", "seeds", "all", *protocols.PROBES}
    assert {name.split()[0] for name in protocols.ALL} >= set(protocols.PROBES) - {"second_seed", "lightly", "wmse"}


def test_the_page_of_protocols_names_every_probe() -> None:
    page = (Path(__file__).parent.parent / "docs/protocols.md").read_text(encoding="utf-8")
    assert [name for name in protocols.PROBES if f"`{name}`" not in page] == []


def test_names_of_probes_are_parsed_or_refused() -> None:
    assert protocols.parse("fast") == ("knn", "linear_precomp")
    assert protocols.parse("linear_sgd, knn") == ("linear_sgd", "knn")
    assert protocols.parse("seeds") == protocols.SEEDS
    assert protocols.parse("seeds", "lbfgs") == ("knn", "knn_euclidean", "linear_precomp", "linear_augm", "linear_sgd")
    assert protocols.parse("fast", "adam") == ("knn", "linear_precomp adam")
    assert protocols.parse("linear_precomp", "sklearn") == ("linear_precomp sklearn",)
    for probes, solver, message in (
        ("knn,knnn", None, "'knnn'"),
        ("fast,knn", None, "'fast'"),
        ("linear_precomp adam", None, "'linear_precomp adam'"),
        ("knn", "adam", "solver=adam"),
    ):
        with pytest.raises(ValueError, match=message):
            protocols.parse(probes, solver)


def test_scikit_learn_is_missed_before_time_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'twoviews\[report\]'"):
        protocols.parse("linear_precomp", "sklearn")


def test_the_seeds_schedules_are_those_of_their_readmes() -> None:
    def numbers(name: str, protocol: str = "second_seed", **changes: Any) -> tuple[Any, ...]:
        s = protocols.schedule(name, protocol=protocol, **{"backbone": "resnet18", "batch_size": 512, **changes})
        return s.optimizer, s.learning_rate, s.floor, s.unit, s.epochs, s.batch_size, s.weight_decay, s.momentum, s.drop_last

    assert numbers("linear_precomp adam") == ("adam", 0.1, 0.0, "epoch", 100, 1000, 0.0, 0.9, False)
    assert numbers("linear_precomp adam", "second_seed_v2") == ("adam", 0.01, 0.0, "epoch", 500, 1000, 5e-6, 0.9, False)
    assert numbers("linear_precomp adam", "second_seed_v2", backbone="resnet50")[6] == 0.0
    assert numbers("linear_augm", "second_seed_v2", backbone="resnet50")[6] == 0.0
    assert numbers("linear_precomp adam", backbone="resnet50", weight_decay=1e-3)[6] == 1e-3
    assert numbers("linear_augm", batch_size=1024) == ("adam", 0.1, 0.0, "epoch", 100, 1024, 0.0, 0.9, False)
    assert numbers("linear_augm", "second_seed_v2") == ("adam", 0.1, 0.0, "epoch", 100, 512, 5e-6, 0.9, False)
    assert numbers("linear_sgd") == ("sgd", 0.2, 0.001, "step", 100, 512, 0.0, 0.9, True)
    assert numbers("linear_sgd", epochs=3, learning_rate=0.3)[1:5] == (0.3, 0.001, "step", 3)
    assert numbers("linear_sgd", learning_rate=1e-4)[2] == 1e-4, "a floor above the rate would be refused"
    assert numbers("linear_augm", batch_size=300)[5] == numbers("linear_augm", "second_seed_v2", batch_size=300)[5] == 300
    assert numbers("linear_augm_cached", batch_size=1024) == numbers("linear_augm", batch_size=1024)
    assert {name: scale for name, (scale, _) in protocols.CROPS.items()} == {
        **{"linear_augm": 0.2, "linear_augm_cached": 0.2},
        **{"linear_sgd": 0.08, "finetune": 0.08, "low_label_finetune": 0.08},
    }
    # SimCLR, appendix B.5: 0.05 x batch / 256, Nesterov, no decay; 60 epochs of 1 % of the labels, 30 of 10 %
    assert numbers("low_label_finetune", share=0.01) == ("sgd", 0.0125, 0.0, "step", 60, 64, 0.0, 0.9, False)
    assert numbers("low_label_finetune", share=0.1)[4] == 30
    assert numbers("finetune") == ("sgd", 0.05, 0.0, "step", 20, 256, 0.0, 0.9, False)


@pytest.mark.parametrize(("max_steps", "cut"), [(None, False), (12, False), (11, True)])
def test_a_row_says_how_its_probe_was_trained_and_whether_it_was_cut(max_steps: int | None, cut: bool) -> None:
    train, val, test = blobs(150, 8, 4, seed=0), blobs(50, 8, 4, seed=1), blobs(40, 8, 4, seed=2)
    (row,) = read("linear_precomp adam", train, val, test, max_steps=max_steps)  # 3 epochs of 4 steps
    expected = {"optimizer": "adam", "learning_rate": 0.1, "epochs": 3, "batch_size": 50, "weight_decay": 0.0, "solver": "adam"}
    assert expected.items() <= row.items()
    assert row.get("steps") == (11 if cut else None)
    said = "linear_precomp Adam 0.1, 3 epochs, batch 50" + (", cut at step 11" if cut else "")
    assert protocols.protocol(row) == said
    other = protocols.protocol({**row, "momentum": 0.5, "weight_decay": 1e-3})
    assert other == said.replace("batch 50", "batch 50, decay 0.001, momentum 0.5"), "another protocol has another name"


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


# --- features -------------------------------------------------------------------------------------------------------

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def features_of(module: nn.Module, images: Tensor) -> Tensor:
    return embed(module, images, mean=MEAN, std=STD, device=torch.device("cpu"), autocast=contextlib.nullcontext)


def trained_net() -> ThinResNet:
    """A small net whose BatchNorm has statistics of its own."""
    torch.manual_seed(0)
    net = ThinResNet(in_channels=3, widths=(8, 16), blocks=(1, 1), stem_stride=1)
    for _ in range(3):
        net.train()(torch.randn(16, 3, 8, 8) * 2 + 1)
    return net


def some_images(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_embedding_leaves_every_parameter_and_buffer_bit_identical_and_restores_the_modes() -> None:
    net = trained_net().train()
    net.layer1.eval()  # a part that its owner froze
    net.conv1.weight.requires_grad_(False)
    state, modes = copy.deepcopy(net.state_dict()), [part.training for part in net.modules()]
    assert any(key.endswith("num_batches_tracked") for key in state)
    features = features_of(net, some_images(20))
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()].count(False) == 1
    assert all(p.grad is None for p in net.parameters())
    assert not features.requires_grad


def test_features_are_those_of_the_running_statistics_on_normalised_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = trained_net(), some_images(20)
    x = (images.float() / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    with torch.no_grad():
        expected = copy.deepcopy(net).eval()(x)
    monkeypatch.setattr(EMBED_MODULE, "CHUNK", 6)
    features = features_of(net, images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_a_float64_module_is_fed_float64_and_gives_float32_features() -> None:
    net, images = trained_net(), some_images(5)
    torch.testing.assert_close(features_of(copy.deepcopy(net).double(), images), features_of(net, images), rtol=1e-4, atol=1e-5)
    assert features_of(copy.deepcopy(net).double(), images).dtype == torch.float32


def test_features_that_are_not_finite_are_refused_and_the_modes_restored() -> None:
    net = trained_net().train()
    with torch.no_grad():
        net.conv1.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="4 of 4 images"):
        features_of(net, some_images(4))
    assert net.training


def test_the_modes_are_restored_where_the_module_fails() -> None:
    net = trained_net().train()
    with pytest.raises(RuntimeError):
        embed(net, some_images(4)[:, :1], mean=(0.5,), std=(0.5,), device=torch.device("cpu"), autocast=contextlib.nullcontext)
    assert all(part.training for part in net.modules())


def test_pixels_are_rows_in_the_unit_interval() -> None:
    images = some_images(3)
    assert pixels(images).shape == (3, 192)
    torch.testing.assert_close(pixels(images)[1], images[1].reshape(-1) / 255)


# --- diagnostics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [8, 128])
def test_the_spread_of_a_gaussian_is_1_and_of_a_collapse_0(d: int) -> None:
    z = torch.randn(2000, d, generator=torch.Generator().manual_seed(0))
    assert spread(z) == pytest.approx(1, abs=0.03)
    assert spread(z * 1e-3) == pytest.approx(spread(z), rel=1e-4)
    one = torch.randn(1, d, generator=torch.Generator().manual_seed(1))
    assert spread(one.expand(2000, d)) == pytest.approx(0, abs=1e-5)
    assert spread(one * torch.linspace(1, 9, 2000)[:, None]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("r", [1, 3, 10])
def test_rankme_of_data_of_rank_r_is_about_r(r: int) -> None:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((rows, r)))[0] for rows in (500, 32))
    assert rankme(torch.from_numpy(left @ right.T)) == pytest.approx(r, rel=1e-3)


def test_rankme_of_full_rank_is_near_the_width_and_scale_free() -> None:
    z = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert 15.8 < rankme(z) <= 16.01
    assert rankme(z * 1e-4) == pytest.approx(rankme(z), rel=1e-6)


def test_rankme_equals_its_formula() -> None:
    z = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    p = np.array([0.5, 0.25, 0.125, 0.125]) + 1e-7
    assert rankme(z) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-9)


def test_alignment_and_uniformity_equal_their_formulas() -> None:
    a, b = blobs(60, 5, 3, seed=0)[0], blobs(60, 5, 3, seed=1)[0]
    x, y = F.normalize(a), F.normalize(b)
    assert alignment(a, b) == pytest.approx(float(((x - y) ** 2).sum(1).mean()), rel=1e-5)
    assert alignment(a, 3 * a) == pytest.approx(0, abs=1e-6)
    assert alignment(a, -a) == pytest.approx(4)
    pairs = [float(torch.exp(-2 * ((x[i] - x[j]) ** 2).sum())) for i in range(60) for j in range(i)]
    assert uniformity(a) == pytest.approx(float(np.log(np.mean(pairs))), rel=1e-4)
    assert uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-6)
    assert -4 < uniformity(torch.randn(500, 128, generator=torch.Generator().manual_seed(0))) < -3.8


def test_classes_are_counted_one_by_one() -> None:
    labels, predicted = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([0, 1, 0, 2, 0])
    assert per_class(predicted, labels, 4) == [pytest.approx(2 / 3), None, 0.5, None]
    assert confusion(predicted, labels, 4) == [[2, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
