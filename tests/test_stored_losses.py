"""Fifty losses of every method in float64 equal the stored ones, step by step: a change of any number shows here.

To store the losses of a new method, or after a change that is meant to change them (say why in the commit):
`python tests/test_stored_losses.py [method ...]`. Per method there are two files in tests/stored:

    <method>.yaml   every science key of its first recipe, as it was when the losses were first stored; tuning a recipe changes nothing
    <method>.json   the losses

The same command stores the values of all recipes, which config/test_recipes.py compares, and prints those that changed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import contract
import pytest
import torch
import yaml

from twoviews import build, config, runs, train
from twoviews.config import schema
from twoviews.methods import METHODS

STORED = Path(__file__).parent / "stored"
STEPS = 50
COMMAND = f"python tests/{Path(__file__).name}"
# What makes a stored run small. A key that a recipe lacks is left out; all others have the values of the recipe.
SMALL: dict[str, Any] = {
    **{"dataset": "fashion_mini", "backbone": "thin32", "epochs": 1, "batch_size": 32, "precision": "fp64", "seed": 0},
    **{"hidden_dims": [64], "out_dim": 32, "queue_size": 240, "bn_splits": 4},
}
MACHINE = {"device": "cpu", "threads": 1, "compile": False, "probe_every": 0, "max_steps": STEPS, "log_interval": 0}


def science(method: str) -> dict[str, Any]:
    """Return every science key of the method's first recipe, with small values."""
    keys, resolved = schema.keys("science"), contract.settings(contract.recipes(method)[0])
    small = {**SMALL, **contract.small(method, batch=SMALL["batch_size"]), "view_sizes": [12] * len(contract.sizes(method))}
    return {key: small.get(key, value) for key, value in resolved.items() if key in keys}


def stored_science(method: str) -> dict[str, Any]:
    """Return the stored keys of a method."""
    path = STORED / f"{method}.yaml"
    assert path.is_file(), f"{path.name} is missing: {COMMAND} {method} stores it"
    return yaml.safe_load(path.read_text())


def losses(method: str, keys: dict[str, Any], runs_dir: Path) -> list[float]:
    """Return the first losses of the training loop with these science keys."""
    cfg = config.Config({**contract.settings(contract.recipes(method)[0]), **keys, **MACHINE})
    threads = torch.get_num_threads()
    try:
        parts = build.build(cfg)
        with runs.RunFolder(runs.create(runs_dir, method, "{}")) as run:
            train.fit(cfg, parts, run)
            return [row["loss"] for row in runs.read_metrics(run.path)]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("method", list(METHODS))
def test_r5_losses_are_the_stored_ones(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "step_flops", lambda *args, **more: None)
    path = STORED / f"{method}.json"
    assert path.is_file(), f"{path.name} is missing: {COMMAND} {method} stores it"
    stored = json.loads(path.read_text())
    assert len(stored) == STEPS
    assert losses(method, stored_science(method), tmp_path) == pytest.approx(stored, rel=1e-6, abs=0)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_science_key_of_a_recipe_is_stored(method: str) -> None:
    missing = science(method).keys() - stored_science(method).keys()
    assert not missing, f"{method}.yaml lacks {', '.join(sorted(missing))}: {COMMAND} {method} adds it"


def test_every_stored_file_belongs_to_a_method() -> None:
    assert {path.stem for path in STORED.glob("*.yaml")} == set(METHODS)
    assert {path.stem for path in STORED.glob("*.json")} - {"recipes", "oracles"} == set(METHODS)


def store_recipes() -> None:
    """Write the values of every recipe to recipes.json, and print which of them are new or changed."""
    path = STORED / "recipes.json"
    before, now = (
        json.loads(path.read_text()),
        {name: dict(config.load("pretrain", [f"recipe={name}"])) for name in schema.RULES["recipe"].choices},
    )
    path.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(now[name], sort_keys=True)}" for name in sorted(now)) + "\n}\n")
    changed = [name for name in {*before, *now} if before.get(name) != now.get(name)]
    print(f"recipes.json: {', '.join(sorted(changed)) or 'as before'}")


if __name__ == "__main__":
    store_recipes()
    for name in sys.argv[1:] or METHODS:
        file = STORED / f"{name}.yaml"
        values = {**science(name), **(yaml.safe_load(file.read_text()) if file.is_file() else {})}  # stored values win
        with tempfile.TemporaryDirectory() as scratch:
            found = losses(name, values, Path(scratch))
        file.write_text(yaml.safe_dump(values, sort_keys=False, default_flow_style=None))
        path = STORED / f"{name}.json"
        same = path.is_file() and json.loads(path.read_text()) == pytest.approx(found, rel=1e-6, abs=0)
        if not same:  # equal up to rounding: the file stays as it is
            path.write_text("[\n" + ",\n".join(map(repr, found)) + "\n]\n")
        print(f"{name}: {found[0]:.4f} ... {found[-1]:.4f}, {'as before' if same else 'stored'}")
