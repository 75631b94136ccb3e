"""The script of the table of methods: what it tries, and its picture."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scipy.stats import spearmanr

from twoviews import config
from twoviews.methods import METHODS


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_table", Path(__file__).parent.parent / "scripts/methods_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(method: str, knn: float, **more: Any) -> dict[str, Any]:
    accuracies = {"knn10": knn, "knn10_std": 0.3, "linear": knn + 2, "linear_std": "", "published": ""}
    return {"method": method, "computed_s": 400, "runs": 3, **accuracies, **more}


def test_the_picture_has_each_method_at_its_accuracy_the_best_above(table: ModuleType) -> None:
    rows = [row("moco", 60.0, published="92.94"), row("supervised", 77.0), row("byol", 55.0, published="92.58", computed_s=500)]
    left, middle, right = table.picture(rows).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["byol", "moco", "supervised (uses labels)"]
    knn, linear = (container.lines[0].get_xdata().tolist() for container in left.containers)
    assert (knn, linear) == ([55.0, 60.0, 77.0], [57.0, 62.0, 79.0])
    assert [bar.get_width() for bar in right.patches] == [500, 400, 400]
    assert [points.tolist() for points in middle.lines[0].get_data()] == [[92.58, 92.94], [0, 1]]
    assert "3 seeds" in left.get_xlabel()


def test_the_values_that_are_tried_differ_from_the_recipe(table: ModuleType) -> None:
    for recipe, (key, values) in table.KEYS.items():
        own = config.load("pretrain", [f"recipe={recipe}"])[key]
        assert all(value != own for value in values), recipe


ROW = {"linear": "60.00", "rankme": "20.0", "memory_gib": "1.00", "steps": "100", "training_s": "9", "method": "simclr", "commit": "abc"}
ROW |= {"machine": "cpu", "precision": "fp32", "torch": "2", "command": "twoviews pretrain"}


@pytest.fixture
def trained(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The runs that were trained. kNN falls with the rate, and is 10 points better at a temperature of 0.5."""
    found: list[dict[str, str]] = []

    def train(self: object, run: dict[str, str]) -> dict[str, str]:
        found.append(run)
        changes = dict(word.split("=") for word in run["changes"].split())
        return {**ROW, "knn10": f"{50.05 - float(changes['base_learning_rate']) + 10 * (changes.get('temperature') == '0.5'):.2f}"}

    monkeypatch.setattr(table.Runs, "train", train)
    return found


def test_the_key_is_tried_at_the_best_rate(table: ModuleType, trained: list[dict[str, str]], tmp_path: Path) -> None:
    runs = table.Runs(tmp_path / "runs.csv", tmp_path, "cifar", small=False)
    assert table.tuned(runs, "cifar_thin") == {"base_learning_rate": 0.05, "temperature": 0.5}
    rates = ["base_learning_rate=0.05", "base_learning_rate=0.1", "base_learning_rate=0.2"]
    assert [run["changes"] for run in trained] == [*rates, f"{rates[0]} temperature=0.2", f"{rates[0]} temperature=0.5"]
    assert {(run["split"], run["epochs"], run["seed"]) for run in trained} == {("val", "2", "0")}


def test_a_run_in_the_file_is_not_trained_again(table: ModuleType, trained: list[dict[str, str]], tmp_path: Path) -> None:
    first = table.Runs(tmp_path / "runs.csv", tmp_path, "cifar", small=False).final("cifar_thin", {"base_learning_rate": 0.1}, 1)
    again = table.Runs(tmp_path / "runs.csv", tmp_path, "cifar", small=False)
    assert again.final("cifar_thin", {"base_learning_rate": 0.1}, 1) == first
    assert len(trained) == 1
    again.final("cifar_thin", {"base_learning_rate": 0.1}, 2)
    again.final("cifar_thin", {"base_learning_rate": 0.2}, 1)
    again.tuning("cifar_thin", {"base_learning_rate": 0.1})
    assert [(run["stage"], run["changes"][-3:], run["seed"]) for run in trained[1:]] == [
        ("final", "0.1", "2"),
        ("final", "0.2", "1"),
        ("tuning", "0.1", "0"),
    ]
    assert len(again.rows()) == 4


def test_a_methods_published_accuracy_is_solo_learns(table: ModuleType) -> None:
    found = {method: table.published(method) for method in METHODS}
    assert [found[method] for method in ("simclr", "moco", "moco_v3", "wmse", "supcon")] == ["90.74", "92.94", "93.10", "88.67", "93.82"]
    assert [method for method in found if not found[method]] == ["dcl", "supervised"]


def test_a_method_has_means_and_deviations_over_its_seeds(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "step_ms", lambda method: 50.0)
    shared = {**ROW, "recipe": "cifar_thin", "changes": "base_learning_rate=0.1", "epochs": "10"}
    found = table.summarise([{**shared, "knn10": knn, "seed": seed} for knn, seed in (("60.00", "0"), ("61.00", "1"), ("62.00", "2"))])
    assert (found["knn10"], found["knn10_std"], found["runs"], found["seeds"]) == (61.0, 1.0, 3, "0; 1; 2")
    assert (found["computed_s"], found["command"]) == (5, "twoviews pretrain")


def test_the_page_has_the_rank_correlations_of_the_table(table: ModuleType) -> None:
    with (table.ROOT / "results/methods_thin.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["published"] and not METHODS[row["method"]].uses_labels]
    accuracies = {name: [float(row[name]) for row in rows] for name in ("knn10", "linear", "published")}
    knn, linear = (spearmanr(accuracies[name], accuracies["published"]).statistic for name in ("knn10", "linear"))
    page = " ".join((table.ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    assert f"with the published accuracies is {knn:.2f} by kNN and {linear:.2f} by the linear probe" in page
    assert len(rows) == 11


def test_the_table_has_every_method_with_three_seeds(table: ModuleType) -> None:
    with (table.ROOT / "results/methods_thin.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == METHODS.keys()
    runs = table.Runs(table.ROOT / "results/methods_thin_runs.csv", table.ROOT, "cifar", small=False).rows()
    for method, row in rows.items():
        own = [run for run in runs if run["method"] == method]
        assert row["seeds"] == "0; 1; 2"
        assert sum(run["stage"] == "tuning" for run in own) == 5
        knn = [float(run["knn10"]) for run in own if run["stage"] == "final" and run["changes"] == row["changes"]]
        assert len(knn) == 3
        assert float(row["knn10"]) == pytest.approx(sum(knn) / 3, abs=1e-4)
