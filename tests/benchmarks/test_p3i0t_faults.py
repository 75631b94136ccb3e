"""benchmarks/p3i0t_faults.py ends with its table, and each fault does what the project's code did."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from twoviews import config
from twoviews.losses import nt_xent
from twoviews.methods import simclr


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    path = Path(__file__).parent.parent.parent / "benchmarks/p3i0t_faults.py"
    spec = importlib.util.spec_from_file_location("p3i0t_faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_ends_with_a_table_of_five_rows(
    faults: ModuleType, few: Path, fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faults, "pretrain", partial(faults.pretrain, threads=1, compile=False, max_steps=2))
    sets = ["--dataset", "fashion_mnist", "--data-dir", str(few), "--batch-size", "8", "--epochs", "1", "--probe-epochs", "1"]
    faults.cli([*sets, "--seeds", "0", "1", "--runs-dir", str(tmp_path / "runs")])
    accuracies = json.loads((tmp_path / "runs/accuracies.json").read_text())
    assert [len(values) for values in accuracies.values()] == [2] * 5
    assert all(0 <= value <= 1 for values in accuracies.values() for value in values)
    table = capsys.readouterr().out.strip().splitlines()[-5:]
    assert [line.split("|")[1].strip() for line in table] == list(accuracies)
    assert float(table[0].split("|")[3]) == 0, "the others are compared with the first row"
    assert simclr.nt_xent is nt_xent, "the clamp is off again"


def test_the_clamp_removes_the_gradient_of_negative_similarities_and_nothing_else(faults: ModuleType) -> None:
    z = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]], dtype=torch.float32)  # all similar: nothing to clamp
    torch.testing.assert_close(faults.clamped_nt_xent(z, 0.5, 2), nt_xent(z, 0.5, 2))
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [1.0, 0.1], [-1.0, 0.0]])
    assert faults.clamped_nt_xent(opposite, 0.5, 2) > nt_xent(opposite, 0.5, 2)


def test_its_probe_has_the_rate_of_the_project(faults: ModuleType) -> None:
    cfg = config.load("pretrain", ["recipe=simclr"])
    assert faults.schedule(cfg, 10).learning_rate == pytest.approx(0.2)
    assert faults.schedule(cfg, 10).epochs == 10
