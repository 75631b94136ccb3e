"""Probes by name: their protocols and schedules, what a row says, and that test labels change nothing but the accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import blobs
from torch import Tensor
from torch.nn import functional as F

from twoviews.config.schema import RULES
from twoviews.probes import protocols
from twoviews.probes.diagnostics import per_class
from twoviews.probes.linear import DECAYS, linear
from twoviews.probes.minibatch import Schedule

Split = tuple[Tensor, Tensor]
FEW = Schedule("adam", 0.1, epochs=3, batch_size=50)
ON_FEATURES = ("knn", "knn_euclidean", "linear_precomp", "linear_precomp adam", "linear_precomp sklearn")


def rows_of(name: str, train: Split, val: Split, test: Split, **more: Any) -> list[dict[str, Any]]:
    """Return the rows of one probe on features of four classes, scored."""
    if name in protocols.KNN:
        bank = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
        predictions = protocols.neighbours(protocols.votes([name], "h"), bank=bank, test=test[0], classes=4)
    else:
        predictions = protocols.predict(name, train=train, val=val, test=test[0], classes=4, **{"training": FEW, "seed": 0, **more})
    return [{**row, "accuracy": (predicted == test[1]).double().mean().item()} for row, predicted in predictions]


def test_poisoned_test_labels_change_nothing_but_the_accuracy() -> None:
    train, val, test = blobs(300, 8, 4, seed=0, apart=0.5), blobs(60, 8, 4, seed=1, apart=0.5), blobs(100, 8, 4, seed=2, apart=0.5)

    def rows(labels: Tensor) -> list[dict[str, Any]]:
        return [row for name in (*ON_FEATURES, "linear_precomp") for row in rows_of(name, train, val, (test[0], labels))]

    def without_accuracy(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key not in ("accuracy", "seconds")} for row in rows]

    honest, poisoned = rows(test[1]), rows(torch.zeros_like(test[1]))
    assert without_accuracy(honest) == without_accuracy(poisoned)
    solved, decay = linear(*train, *val, classes=4)
    shares = [(F.linear(test[0], solved.weight, solved.bias).argmax(1) == label).float().mean().item() for label in range(4)]
    assert poisoned[-1]["accuracy"] == pytest.approx(shares[0]), "the predictions are the same, the labels others"
    assert poisoned[-1]["weight_decay"] == decay
    assert honest[-1]["accuracy"] > poisoned[-1]["accuracy"]


def test_d5_classes_that_are_missing_in_test_or_train_are_counted_correctly() -> None:
    train, labels = blobs(120, 6, 4, seed=0, apart=5.0)
    test, truth = blobs(60, 6, 4, seed=1, apart=5.0)
    fitted = train[labels != 3], labels[labels != 3]  # train lacks one class, test another one
    test, truth = test[truth != 1], truth[truth != 1]
    linear_rows = protocols.predict("linear_precomp", train=fitted, val=fitted, test=test, classes=4, training=None, seed=0)
    for _, predicted in (*linear_rows, *protocols.neighbours([protocols.Vote(5)], bank=fitted, test=test, classes=4)):
        correct, possible = (predicted == truth).double().mean().item(), (truth != 3).double().mean().item()
        assert correct == pytest.approx(possible, abs=0.02)
        shares = per_class(predicted, truth, 4)
        assert shares[1] is None
        assert shares[3] == 0.0


def test_every_row_has_its_protocol() -> None:
    train, val, test = blobs(150, 8, 4, seed=0), blobs(30, 8, 4, seed=1), blobs(40, 8, 4, seed=2)
    rows = [row for name in ("knn", "linear_precomp") for row in rows_of(name, train, val, test)]
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


def test_knn_protocols_of_other_projects_have_their_settings() -> None:
    def settings(name: str) -> list[tuple[Any, ...]]:
        return [(one.k, one.metric, one.weights, one.features) for one in protocols.KNN[name]]

    assert settings("dkobak") == [(k, metric, "uniform", "h") for metric in ("cosine", "euclidean") for k in (1, 5, 10)]
    assert settings("lightly") == [(200, "cosine", "exp(s/0.1)", "h")]
    assert settings("moco_demo") == [(200, "cosine", "exp(s/0.1)", "z")]
    assert settings("wmse") == [(5, "euclidean", "uniform", "h")]
    assert [one.k for one in protocols.votes(["knn", "dkobak"], "h")] == [1, 5, 10, 20, 200, 1, 5, 10], "none twice"
    assert protocols.votes(["knn", "moco_demo"], "z") == protocols.KNN["moco_demo"]
    assert protocols.protocol({"probe": "knn", "k": 200, "metric": "cosine", "weights": "exp(s/0.1)", "features": "z"}) == (
        "kNN k=200 cosine exp(s/0.1) on z"
    )


def test_the_configuration_accepts_every_probe() -> None:
    assert set(RULES["probes"].choices) == {"fast", "reference", "all", *protocols.PROBES}
    assert {name.split()[0] for name in protocols.ALL} >= set(protocols.PROBES) - {"dkobak", "lightly", "wmse"}


def test_the_page_of_protocols_names_every_probe() -> None:
    page = (Path(__file__).parents[2] / "docs/protocols.md").read_text(encoding="utf-8")
    assert [name for name in protocols.PROBES if f"`{name}`" not in page] == []


def test_names_of_probes_are_parsed_and_unknown_ones_refused() -> None:
    assert protocols.parse("fast") == ("knn", "linear_precomp")
    assert protocols.parse("linear_sgd, knn") == ("linear_sgd", "knn")
    assert protocols.parse("reference") == protocols.REFERENCE
    assert protocols.parse("reference", "lbfgs") == ("knn", "knn_euclidean", "linear_precomp", "linear_augm", "linear_sgd")
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


def test_schedules_of_the_reference_projects_are_those_of_their_readmes() -> None:
    def numbers(name: str, protocol: str = "dkobak", **changes: Any) -> tuple[Any, ...]:
        s = protocols.schedule(name, protocol=protocol, **{"backbone": "resnet18", "batch_size": 512, **changes})
        return s.optimizer, s.learning_rate, s.floor, s.unit, s.epochs, s.batch_size, s.weight_decay, s.momentum, s.drop_last

    assert numbers("linear_precomp adam") == ("adam", 0.1, 0.0, "epoch", 100, 1000, 0.0, 0.9, False)
    assert numbers("linear_precomp adam", "dkobak_v2") == ("adam", 0.01, 0.0, "epoch", 500, 1000, 5e-6, 0.9, False)
    assert numbers("linear_precomp adam", "dkobak_v2", backbone="resnet50")[6] == 0.0
    assert numbers("linear_augm", "dkobak_v2", backbone="resnet50")[6] == 0.0
    assert numbers("linear_precomp adam", backbone="resnet50", weight_decay=1e-3)[6] == 1e-3
    assert numbers("linear_augm", batch_size=1024) == ("adam", 0.1, 0.0, "epoch", 100, 1024, 0.0, 0.9, False)
    assert numbers("linear_augm", "dkobak_v2") == ("adam", 0.1, 0.0, "epoch", 100, 512, 5e-6, 0.9, False)
    assert numbers("linear_sgd") == ("sgd", 0.2, 0.001, "step", 100, 512, 0.0, 0.9, True)
    assert numbers("linear_sgd", epochs=3, learning_rate=0.3)[1:5] == (0.3, 0.001, "step", 3)
    assert numbers("linear_sgd", learning_rate=1e-4)[2] == 1e-4, "a floor above the rate would be refused, so it is lowered"
    assert numbers("linear_augm", batch_size=300)[5] == numbers("linear_augm", "dkobak_v2", batch_size=300)[5] == 300
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
def test_a_row_has_the_schedule_of_its_probe_and_the_step_at_which_it_was_stopped(max_steps: int | None, cut: bool) -> None:
    train, val, test = blobs(150, 8, 4, seed=0), blobs(50, 8, 4, seed=1), blobs(40, 8, 4, seed=2)
    (row,) = rows_of("linear_precomp adam", train, val, test, max_steps=max_steps)  # 3 epochs of 4 steps
    expected = {"optimizer": "adam", "learning_rate": 0.1, "epochs": 3, "batch_size": 50, "weight_decay": 0.0, "solver": "adam"}
    assert expected.items() <= row.items()
    assert row.get("steps") == (11 if cut else None)
    name = "linear_precomp Adam 0.1, 3 epochs, batch 50" + (", cut at step 11" if cut else "")
    assert protocols.protocol(row) == name
    other = protocols.protocol({**row, "momentum": 0.5, "weight_decay": 1e-3})
    assert other == name.replace("batch 50", "batch 50, decay 0.001, momentum 0.5"), "another schedule has another name"
