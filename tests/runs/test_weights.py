"""Weights files: tensors with a description, checksummed and readable by any safetensors reader."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from twoviews.runs import weights

ABOUT = {"backbone": "thin16", "mean": "0.5", "run": "a run"}


def tensors() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), "bn.steps": torch.tensor(7)}


def test_tensors_and_description_are_read_back_and_equal_content_gives_equal_files(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(weights.to_bytes(tensors(), ABOUT))
    found, about = weights.read(path)
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], x) for name, x in tensors().items())
    assert {key: about[key] for key in ABOUT} == ABOUT
    assert torch.equal(safetensors.torch.load_file(path)["conv.weight"], tensors()["conv.weight"])
    assert weights.to_bytes(tensors(), ABOUT) == path.read_bytes()


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(weights.to_bytes(tensors(), ABOUT))
    assert weights.check(path, "a run")["backbone"] == "thin16"
    with pytest.raises(ValueError, match=r"backbone\.safetensors: from another run"):
        weights.check(path, "another")


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    with pytest.raises(ValueError, match=r"backbone\.safetensors: no such file"):
        weights.read(path)
    blob = weights.to_bytes(tensors(), ABOUT)
    for damaged, problem in ((b"noise", "damaged, or not a safetensors file"), (blob[:-1] + b"\1", "its checksum is wrong")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"backbone\.safetensors: .*{problem}"):
            weights.read(path)


def test_a_file_of_another_program_is_read_without_a_description(tmp_path: Path) -> None:
    safetensors.torch.save_file(tensors(), tmp_path / "other.safetensors")
    assert weights.read(tmp_path / "other.safetensors")[1] == {}


def test_tensors_that_do_not_fit_a_module_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    module = nn.Linear(2, 3)
    path.write_bytes(weights.to_bytes(module.state_dict(), ABOUT))
    other = nn.Linear(2, 3)
    weights.load_into(other, path)
    assert torch.equal(other.weight, module.weight)
    with pytest.raises(ValueError, match=r"does not fit this backbone: .*size mismatch"):
        weights.load_into(nn.Linear(3, 3), path)
