"""The cost of a step: operations are counted correctly, and a trace can be read."""

from __future__ import annotations

import json
from pathlib import Path

import contract
import pytest
import tiny as small
import torch
from torch.utils.flop_counter import FlopCounterMode

from twoviews import profiling, runs, train
from twoviews.cli import main
from twoviews.methods import METHODS
from twoviews.methods.simclr import SimCLR
from twoviews.models import resnet
from twoviews.report import html


@pytest.mark.parametrize("name", list(METHODS))
def test_operations_are_those_of_a_real_step_and_the_method_is_unchanged(name: str) -> None:
    method = contract.tiny(name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    views, labels, progress = contract.batch(name)
    found = profiling.step_flops(method, [tuple(x.shape) for x in views], labels=labels is not None)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())
    with FlopCounterMode(display=False) as counter:
        method(views, labels, progress)[0].backward()
    assert found == counter.get_total_flops() > 1e6


def test_a_method_that_reads_values_is_trained_and_not_counted(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "write", lambda *args: None)
    simclr = METHODS["simclr"]
    forward = simclr.forward
    monkeypatch.setattr(simclr, "forward", lambda self, views, labels, progress: (views[0].sum().item(), forward(self, views))[1])
    assert main(["pretrain", *small.words(few, tmp_path / "runs", "max_steps=2", batch=small.FEW_BATCH)]) == 0
    assert "tflops" not in runs.read_metrics(small.only_run(tmp_path / "runs"))[-1]


def test_an_epoch_of_resnet18_is_a_third_of_a_petaflop() -> None:
    """Forward is 1.11 GFLOP an image, backward twice that: 0.333 PFLOP for 50,000 images of two views."""
    backbone, width = resnet.build_backbone("resnet18", in_channels=3, image_size=32)
    projector = {"hidden_dims": [1024], "out_dim": 128, "hidden_bn": False, "output_bn": False}
    method = SimCLR(backbone=backbone, embed_dim=width, temperature=0.5, one_forward=True, **projector)
    flops = profiling.step_flops(method, [(4, 3, 32, 32)] * 2, labels=False)
    assert flops is not None
    assert flops / 8 * 100_000 / 1e15 == pytest.approx(0.333, abs=0.003)


GPUS = [
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 PCIe", None),
    ("NVIDIA GeForce RTX 4090", 165),
    ("NVIDIA A10G", 70),
    ("NVIDIA L40", 181),
    ("NVIDIA L4", 121),
    ("Tesla T4", None),
]


def test_only_a_known_gpu_has_a_peak_and_in_bf16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert profiling.peak_flops(torch.device("cpu"), "bf16") is None
    for name, tera in GPUS:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert profiling.peak_flops(torch.device("cuda"), "bf16") == (tera and tera * 1e12), name
        assert profiling.peak_flops(torch.device("cuda"), "fp32") is None


def test_a_profiled_run_leaves_a_trace_and_equals_one_that_was_not_profiled(
    fast: None, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "step_flops", profiling.step_flops)
    words = ["epochs=5", "max_steps=24"]
    assert main(["pretrain", *small.words(few, tmp_path / "traced", *words, "profile=true", batch=small.FEW_BATCH)]) == 0
    path = small.only_run(tmp_path / "traced")
    out = capsys.readouterr().out
    assert f"steps traced, {profiling.TRACED} at the most: {path / runs.TRACE}" in out
    assert "aten::convolution_backward" in out
    names = [event.get("name") for event in json.loads((path / runs.TRACE).read_text())["traceEvents"]]
    assert sum(name == f"ProfilerStep#{profiling.WAIT + profiling.WARM_UP}" for name in names) >= 1
    assert main(["pretrain", *small.words(few, tmp_path / "plain", *words, batch=small.FEW_BATCH)]) == 0
    plain = small.only_run(tmp_path / "plain")
    assert (plain / runs.BACKBONE).read_bytes() == (path / runs.BACKBONE).read_bytes()
    assert not (plain / runs.TRACE).exists()
    assert runs.read_metrics(plain)[-1]["tflops"] > 0
    assert "mfu" not in runs.read_metrics(plain)[-1], "the peak of a processor is not known"
