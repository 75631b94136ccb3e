"""The C++ fast path is optional: with `twoviews.cpu` missing, everything runs in plain PyTorch."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import contract
import pytest
import torch
from tiny import only_run, read_json

from twoviews import build, device
from twoviews.cli import main
from twoviews.methods import METHODS


class Blocked(importlib.abc.MetaPathFinder):
    """An import hook that hides the package `twoviews.cpu`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.startswith("twoviews.cpu"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


@pytest.fixture(autouse=True)
def no_cpu_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("twoviews.cpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError):
        import twoviews.cpu.build  # noqa: F401


def test_a_run_trains_and_is_evaluated_without_it(tiny: list[str], tmp_path: Path) -> None:
    words = [word for word in tiny if not word.startswith(("compile=", "probes="))]
    assert main(["pretrain", *words, "probes='knn,linear_precomp,linear_augm'", "probe_epochs=1"]) == 0
    run = only_run(tmp_path / "runs")
    manifest = read_json(run, "manifest.json")
    assert (manifest["views_backend"], manifest["layers_backend"]) == ("torch", "torch")
    assert main(["evaluate", f"run={run}", "probes=knn_euclidean", "device=cpu", "threads=1"]) == 0
    assert {row["probe"] for row in read_json(run, "summary.json")["evaluations"]} == {"knn", "linear_precomp", "linear_augm"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_part_is_plain_pytorch_without_it(precision: str) -> None:
    machine = device.Machine(torch.device("cpu"), 1, precision, True)
    assert build.views_backend(machine) == build.layers_backend(machine) == "torch"
    method = contract.tiny("simclr")
    classes = [type(module) for module in method.modules()]
    assert [type(module) for module in build.to_device(method, machine).modules()] == classes


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_takes_a_step_without_it(name: str) -> None:
    method = contract.tiny(name)
    loss, _ = method(*contract.batch(name))
    loss.backward()
    method.before_step(torch.tensor(0.5))
    method.after_step(torch.tensor(0.5))
    assert torch.isfinite(loss)
    assert any(p.grad is not None for p in method.parameters())
