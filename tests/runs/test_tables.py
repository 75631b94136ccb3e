"""The five tables of the reference projects, from runs over three seeds: their columns in their order, means and deviations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import contract
import pytest
import yaml

from twoviews import config, runs
from twoviews.cli import main
from twoviews.config.schema import REFERENCE_TABLES
from twoviews.runs import tables

P3I0T = ["Evaluation", "Batch Size", "Backbone", "Projection Dim", "Training Epochs", "Memory", "Training Time / Epoch", "Test Acc"]
COLUMNS = {  # of the two projects' READMEs
    "p3i0t": [*P3I0T, "Test Acc in Paper"],
    "p3i0t_settings": ["Optimization", "Initial LR", "Optimizer", "LR Adjustment", "Weight Decay", "Momentum", "Temperature"],
    "dkobak": ["Backbone", "Batch", "Sec/epoch", "Loss/batch", "kNN k=5", "kNN k=10", "lin precomp", "lin augm"],
    "dkobak_short": ["Epochs", "LR", "Time", "Loss/batch", "kNN k=5", "kNN k=10", "lin precomp", "lin augm"],
    "race": ["Backbone", "Batch", "Epochs", "Time", "Loss/batch", "kNN k=10"],
}
SGD = {"optimizer": "sgd", "learning_rate": 0.2, "epochs": 100, "batch_size": 512, "weight_decay": 0.0, "momentum": 0.9, "floor": 0.001}

ADAM = {**SGD, "optimizer": "adam", "learning_rate": 0.1, "batch_size": 1000, "floor": 0.0}


def rows(of: str, accuracy: float, split: str = "test") -> list[dict[str, Any]]:
    shared = {"of": of, "features": "h", "split": split}
    knn = [
        {
            **shared,
            "probe": "knn",
            "k": k,
            "metric": m,
            "weights": "uniform",
            "accuracy": accuracy - 0.01 * (k == 5) - 0.03 * (m != "cosine"),
        }
        for m in ("euclidean", "cosine")
        for k in (5, 10)
    ]
    return [
        *knn,
        {**shared, "probe": "linear_precomp", "solver": "lbfgs", "weight_decay": 1e-3, "accuracy": accuracy + 0.01},
        {**shared, "probe": "linear_precomp", "solver": "adam", **ADAM, "accuracy": accuracy + 0.02},
        {**shared, "probe": "linear_augm", **ADAM, "accuracy": accuracy + 0.03},
        {**shared, "probe": "linear_sgd", **SGD, "accuracy": accuracy + 0.04},
    ]


def run(recipe: str, seed: int, accuracy: float, **changes: Any) -> tables.Run:
    """Return the summary and the configuration of a finished run."""
    cfg = config.Config({**contract.settings(recipe), "seed": seed})
    summary = {
        "recipe": recipe,
        "method": cfg.method,
        "uses_labels": False,
        "dataset": "CIFAR-10 (JPEG copy)",
        "backbone": cfg.backbone,
        "seed": seed,
        "epochs": cfg.epochs,
        "batch_size": cfg.batch_size,
        "peak_learning_rate": cfg.learning_rate or cfg.base_learning_rate * cfg.batch_size / 256,
        "train": {
            "steps": 1000,
            "planned_steps": 1000,
            "seconds": 600.0 + 60 * seed,
            "sec_per_epoch": 30.0 + seed,
            "loss": 5.0 + seed / 100,
            "peak_bytes": 2**30 * (seed + 1),
            "views_per_s": 1.0,
        },
        "evaluations": rows("raw_pixels", 0.2) + rows("random_initialisation", 0.3) + rows("trained", accuracy),
    }
    return {**summary, **changes}, dict(cfg)


THREE = [run("simclr_cifar10", seed, 0.80 + 0.01 * seed) for seed in range(3)]


def test_the_tables_are_those_of_the_reference_projects() -> None:
    assert tuple(tables.TABLES) == REFERENCE_TABLES == tuple(COLUMNS)


@pytest.mark.parametrize("name", REFERENCE_TABLES)
def test_a_table_starts_with_the_projects_columns_and_names_the_data(name: str) -> None:
    row = tables.TABLES[name](THREE)[0]
    assert list(row)[: len(COLUMNS[name])] == COLUMNS[name]
    assert (row["Data"], row["Seeds"], row["Recipe"]) == ("CIFAR-10 (JPEG copy)", "3", "simclr_cifar10")


def test_seeds_of_one_configuration_are_one_row_of_means() -> None:
    (row,) = tables.dkobak([*THREE[1:], THREE[0]])
    shown = [row[column] for column in COLUMNS["dkobak"]]
    assert shown == ["resnet18", "1024", "31.0 ± 1.0", "5.01 ± 0.01", "80.0 ± 1.0", "81.0 ± 1.0", "83.0 ± 1.0", "84.0 ± 1.0"]
    (short,) = tables.dkobak_short(THREE)
    assert [short[c] for c in ("Epochs", "LR", "Time", "kNN k=10")] == ["1000", "0.03", "11.0 ± 1.0 min", "81.0 ± 1.0"]
    (race,) = tables.race(THREE)
    assert [race[c] for c in ("Time", "kNN k=10")] == ["11.0 ± 1.0 min", "81.0 ± 1.0"]


def test_runs_are_grouped_over_seeds_by_their_science_keys() -> None:
    cold = run("simclr_cifar10", 1, 0.5)
    cold[1]["temperature"] = 0.1
    assert [row["Seeds"] for row in tables.race([*THREE, cold])] == ["3", "1"]
    elsewhere = run("simclr_cifar10", 3, 0.83)
    elsewhere[1].update(runs_dir="other", threads=7, probes="reference")
    assert [row["Seeds"] for row in tables.race([*THREE, elsewhere])] == ["4"]


def test_the_row_of_p3i0t_has_its_own_probe_or_else_the_nearest_one() -> None:
    summary, cfg = run("simclr", 0, 0.8)
    (row,) = tables.p3i0t([(summary, cfg)])
    assert [row[c] for c in P3I0T] == [
        "linear_sgd 100 epochs (backbone frozen)",
        "512",
        "resnet18",
        "128",
        "1000",
        "1.0G",
        "30.0 s",
        "84.0",
    ]
    assert row["Test Acc in Paper"] == "-"
    names = ("linear_augm 100 epochs", "linear_precomp 100 epochs", "kNN k=10 cosine")
    for probe, name in zip(("linear_sgd", "linear_augm", "linear_precomp"), names, strict=True):
        summary["evaluations"] = [r for r in summary["evaluations"] if r["probe"] != probe]
        assert tables.p3i0t([(summary, cfg)])[0]["Evaluation"] == f"{name} (backbone frozen)"
    assert tables.p3i0t([({**summary, "evaluations": []}, cfg)])[0]["Test Acc"] == ""


def test_only_the_papers_own_setting_is_compared_with_the_paper() -> None:
    summary, cfg = run("simclr", 0, 0.8, backbone="resnet50")
    assert tables.p3i0t([(summary, cfg)])[0]["Test Acc in Paper"] == "~93.5"
    for changes in (
        {"dataset": "CIFAR-100"},
        {"dataset": "CIFAR-10, 5,120 of 50,000 training images"},
        {"method": "moco"},
        {"epochs": 100},
    ):
        assert tables.p3i0t([({**summary, **changes}, cfg)])[0]["Test Acc in Paper"] == "-"


def test_of_several_evaluations_by_one_probe_a_table_has_the_longest_that_was_not_cut() -> None:
    summary, cfg = run("simclr", 0, 0.8)
    (own,) = [row for row in summary["evaluations"] if row["probe"] == "linear_sgd" and row["of"] == "trained"]
    short = [{**own, "epochs": 1, "accuracy": 0.3}, {**own, "epochs": 100, "steps": 20, "accuracy": 0.2}]
    for order in ([own, *short], [*short, own], [short[0], own, short[1]]):
        (row,) = tables.p3i0t([({**summary, "evaluations": order}, cfg)])
        assert (row["Evaluation"], row["Test Acc"]) == ("linear_sgd 100 epochs (backbone frozen)", "84.0")
    (row,) = tables.p3i0t([({**summary, "evaluations": short[1:]}, cfg)])
    assert row["Evaluation"] == "linear_sgd 100 epochs, cut at step 20 (backbone frozen)"


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"learning_rate": 1.0}, {"weight_decay": 1e-4}, {"batch_size": 64}, {"steps": 20}])
def test_evaluations_by_other_protocols_are_not_averaged(changes: dict[str, Any]) -> None:
    runs_of_three = [run("simclr", seed, 0.80 + 0.01 * seed) for seed in range(3)]
    for row in runs_of_three[2][0]["evaluations"]:
        if row["probe"] == "linear_sgd":
            row.update(changes)
    (row,) = tables.p3i0t(runs_of_three)
    assert row["Test Acc"] == "84.5 ± 0.7"


def test_the_settings_are_those_of_p3i0t() -> None:
    training, linear = tables.p3i0t_settings([run("simclr", 0, 0.8)])
    assert [training[c] for c in COLUMNS["p3i0t_settings"]] == [
        *("SimCLR Training", "0.6 (0.3 * batch_size / 256)", "SGD", "Cosine Annealing (to min lr = 0.001)", "1e-06", "0.9", "0.5")
    ]
    assert [linear[c] for c in COLUMNS["p3i0t_settings"]] == [
        *("Linear, backbone frozen", "0.2", "SGD", "Cosine Annealing (to min lr = 0.001)", "0", "0.9", "-")
    ]


def test_missing_cells_are_empty_and_incomparable_ones_are_marked() -> None:
    summary, cfg = run("simclr_cifar10", 0, 0.8)
    summary["evaluations"] = [r for r in summary["evaluations"] if r.get("solver") != "adam" and r["probe"] != "linear_augm"]
    (row,) = tables.dkobak([(summary, cfg)])
    assert (row["lin precomp"], row["lin augm"]) == ("81.0 (L-BFGS)", "")
    other, cfg = run("simclr_cifar10", 0, 0.8)
    for r in other["evaluations"]:
        r.update({"epochs": 3} if r["probe"] == "linear_augm" else {})
    assert tables.dkobak([(other, cfg)])[0]["lin augm"] == "83.0 (3 epochs)"
    later, cfg = run("simclr_cifar10", 0, 0.8)
    v2 = [{**r, "weight_decay": 5e-6, "accuracy": 0.5} for r in later["evaluations"] if r["probe"] == "linear_augm"]
    v2 += [{**r, "learning_rate": 0.01, "epochs": 500, "accuracy": 0.5} for r in later["evaluations"] if r.get("solver") == "adam"]
    both = {**later, "evaluations": later["evaluations"] + v2}
    assert [tables.dkobak([(both, cfg)])[0][c] for c in ("lin precomp", "lin augm")] == ["82.0", "83.0"], "the project's own settings first"
    slow = [{**r, "momentum": 0.5, "accuracy": 0.4} for r in later["evaluations"] if r["probe"] == "linear_augm"]
    assert tables.dkobak([({**later, "evaluations": later["evaluations"] + slow}, cfg)])[0]["lin augm"] == "83.0"
    assert tables.dkobak([({**later, "evaluations": slow}, cfg)])[0]["lin augm"] == "40.0 (momentum 0.5)"
    (row,) = tables.dkobak([({**later, "evaluations": v2}, cfg)])
    assert [row[c] for c in ("lin precomp", "lin augm")] == ["50.0 (500 epochs, rate 0.01)", "50.0 (decay 5e-06)"]
    (row,) = tables.dkobak([({**later, "evaluations": [{**row, "solver": "sklearn", "epochs": 30} for row in v2 if "solver" in row]}, cfg)])
    assert row["lin precomp"] == "50.0 (scikit-learn, 30 passes)"
    tuned = run("simclr_cifar10", 0, 0.8, evaluations=rows("trained", 0.8, split="val"), uses_labels=True)
    (row,) = tables.race([tuned])
    assert (row["Data"], row["Recipe"]) == ("CIFAR-10 (JPEG copy), val", "simclr_cifar10 (uses labels)")
    cut = run("simclr_cifar10", 0, 0.8)
    cut[0]["train"]["steps"] = 60
    cut[0]["train"]["planned_steps"] = 49_000
    assert tables.race([cut])[0]["Epochs"] == "1000 (cut at step 60 of 49000)"
    assert tables.dkobak([cut])[0]["Sec/epoch"] == "30.0"
    cut[0]["train"]["steps"] = 20
    assert tables.dkobak([cut])[0]["Sec/epoch"] == "computed 30.0", "less than an epoch of 49 steps was run"


@pytest.mark.parametrize("name", REFERENCE_TABLES)
def test_the_command_prints_each_table(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    for i, (summary, cfg) in enumerate(THREE):
        path = tmp_path / f"run{i}"
        path.mkdir()
        (path / runs.CONFIG).write_text(yaml.safe_dump(cfg))
        (path / runs.SUMMARY).write_text(json.dumps(summary))
    assert main(["runs", name, f"runs_dir={tmp_path}"]) == 0
    head, _, *body = capsys.readouterr().out.strip().splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")][: len(COLUMNS[name])] == COLUMNS[name]
    assert len(body) == (2 if name == "p3i0t_settings" else 1)
    assert main(["runs", name, f"runs_dir={tmp_path}", "format=latex"]) == 0
    assert r"\toprule" in capsys.readouterr().out
