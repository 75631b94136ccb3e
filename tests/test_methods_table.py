"""The script of the table of methods: what it tries, and its picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from twoviews import config


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_table", Path(__file__).parent.parent / "scripts/methods_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(method: str, knn: float, **more: Any) -> dict[str, Any]:
    return {"method": method, "knn10": knn, "knn10_std": 0.3, "linear": knn + 2, "linear_std": "", "computed_s": 400, "runs": 3, **more}


def test_the_picture_has_each_method_at_its_accuracy_the_best_above(table: ModuleType) -> None:
    left, right = table.picture([row("moco", 60.0), row("supervised", 77.0), row("byol", 55.0, computed_s=500)]).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["byol", "moco", "supervised (uses labels)"]
    knn, linear = (container.lines[0].get_xdata().tolist() for container in left.containers)
    assert (knn, linear) == ([55.0, 60.0, 77.0], [57.0, 62.0, 79.0])
    assert [bar.get_width() for bar in right.patches] == [500, 400, 400]
    assert "3 seeds" in left.get_xlabel()


def test_the_values_that_are_tried_differ_from_the_recipe(table: ModuleType) -> None:
    for recipe, (key, values) in table.KEYS.items():
        own = config.load("pretrain", [f"recipe={recipe}"])[key]
        assert all(value != own for value in values), recipe
