"""The training loop: what it prints (a collapse, the predicted time), and groups with a rate of their own."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny as small
import torch
from torch import nn

from twoviews import build, config, runs, train
from twoviews.methods import METHODS
from twoviews.progress import Clock, Progress


def constant(self: nn.Flatten, x: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(x), 8) + 1e-6 * torch.arange(len(x))[:, None]


def test_a_collapse_is_reported_while_it_happens(
    tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = build.build(config.load("pretrain", tiny))
    with Progress("train", 5, "views") as bar:
        monkeypatch.setattr(parts.method, "modules_to_probe", lambda: {"h": parts.method.backbone, "z": nn.Flatten()})
        healthy = train.monitor(parts, bar, 5, advice="lower it")
        assert "warning" not in capsys.readouterr().out
        monkeypatch.setattr(nn.Flatten, "forward", constant)
        collapsed = train.monitor(parts, bar, 5, advice="lower it")
    said = capsys.readouterr().out
    assert "warning: z is collapsing" in said
    assert ": lower it\n" in said
    assert healthy["z_spread"] > 0.25 > collapsed["z_spread"]
    assert healthy["z_rankme"] > 2 > collapsed["z_rankme"]


def test_a_collapse_is_looked_for_in_views_and_accuracy_in_whole_images(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = build.build(config.load("pretrain", [*tiny, "view_sizes=[12,12]"]))
    seen: dict[str, set[int]] = {"h": set(), "z": set()}

    class Sees(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen[self.name].add(x.shape[-1])
            return x.flatten(1)

    monkeypatch.setattr(parts.method, "modules_to_probe", lambda: {"h": Sees("h"), "z": Sees("z")})
    with Progress("train", 5, "views") as bar:
        train.monitor(parts, bar, 5, advice="")
    assert seen == {"h": {28}, "z": {12}}


def test_a_group_with_constant_lr_keeps_the_peak_rate(tiny: list[str]) -> None:
    cfg = config.load("pretrain", tiny)
    parts = build.build(cfg)
    plan = train.Plan(cfg, parts)
    follows, keeps = ({"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2))
    optimizer = torch.optim.SGD([follows, {**keeps, "constant_lr": True}], lr=0.0)
    for step in (1, plan.steps - 1):
        rate = plan.set_rates(optimizer, step)
        assert rate < parts.peak_rate
        assert [group["lr"] for group in optimizer.param_groups] == [rate, parts.peak_rate]


def test_a_collapsing_run_says_what_to_change_for_its_method(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = small.words(data, tmp_path / "runs", "probe_every=1", recipe="byol_thin")
    monkeypatch.setattr(METHODS["byol"], "modules_to_probe", lambda self: {"h": self.backbone, "z": nn.Flatten()})
    monkeypatch.setattr(nn.Flatten, "forward", constant)
    trained(words, tmp_path)
    assert ": raise ema_decay, lower base_learning_rate, and keep hidden_bn=true\n" in capsys.readouterr().out


def trained(tiny: list[str], tmp_path: Path, *words: str) -> build.Parts:
    """Train with further words and return the parts."""
    cfg = config.load("pretrain", [*tiny, *words])
    parts = build.build(cfg)
    with runs.RunFolder(runs.create(tmp_path, "run", "seed: 0\n")) as run:
        assert train.fit(cfg, parts, run)[0] == 0
    return parts


def test_before_step_sees_gradients_and_old_weights_and_after_step_new_ones(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, float, float, bool]] = []

    def note(name: str) -> Callable[[Any, torch.Tensor], None]:
        def step(self: Any, progress: torch.Tensor) -> None:
            weight = next(self.parameters())
            seen.append((name, float(progress), float(weight.detach().sum()), weight.grad is not None))

        return step

    for name in ("before_step", "after_step"):
        monkeypatch.setattr(METHODS["simclr"], name, note(name))
    trained(tiny, tmp_path)
    assert [name for name, *_ in seen] == ["before_step", "after_step"] * 5
    assert [progress for _, progress, *_ in seen] == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8])
    assert [gradient for *_, gradient in seen] == [True, False] * 5
    weights = [weight for _, _, weight, _ in seen]
    assert weights[1::2][:-1] == weights[2::2], "nothing changes between a step and the next backward pass"
    assert all(before != after for before, after in zip(weights[::2], weights[1::2], strict=True))


def test_clip_gradients_limits_the_norm_of_all_gradients_together(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    real = torch.optim.SGD.step

    def step(self: torch.optim.Optimizer) -> None:
        norms.append(float(torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]]).norm()))
        real(self)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    trained(tiny, tmp_path / "free", "optimizer=sgd")
    free, norms[:] = list(norms), []
    trained(tiny, tmp_path / "clipped", "optimizer=sgd", "clip_gradients=0.01")
    assert min(free) > 0.02
    assert norms == pytest.approx([0.01] * 5, rel=1e-3)


def test_weight_decay_end_changes_the_decay_as_a_cosine_where_there_is_any(tiny: list[str]) -> None:
    cfg = config.load("pretrain", [*tiny, "weight_decay=0.04", "weight_decay_end=0.4", "decay_norms=false"])
    parts = build.build(cfg)
    plan = train.Plan(cfg, parts)
    decayed, rest = parts.optimizer.param_groups
    found = []
    for step in range(plan.steps):
        plan.set_rates(parts.optimizer, step)
        found.append(decayed["weight_decay"])
        assert rest["weight_decay"] == 0
    assert found == pytest.approx([0.4 - 0.36 * (math.cos(math.pi * step / plan.steps) + 1) / 2 for step in range(plan.steps)])


@pytest.mark.parametrize(("seconds", "saves"), [(0, [1, 2, 3, 4, 5]), (1000, [5])])
def test_checkpoints_are_at_least_so_many_seconds_apart_and_the_last_step_is_saved(
    few: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch, seconds: int, saves: list[int]
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(train.checkpoint, "save", lambda folder, state: saved.append(state["step"]))
    words = small.words(few, tmp_path, "checkpoint_every=0.2", f"checkpoint_seconds={seconds}", "probe_every=0.4", batch=small.FEW_BATCH)
    cfg = config.load("pretrain", words)
    with runs.RunFolder(runs.create(tmp_path, "run", "seed: 0\n")) as run:
        code, summary = train.fit(cfg, build.build(cfg), run)
    assert (code, saved) == (0, saves)
    assert summary["probe_seconds"] > 0
    assert 0 <= summary["checkpoint_seconds"] < 1
    assert summary["compile_seconds"] <= summary["seconds"]


def test_the_metrics_are_on_disk_before_a_checkpoint_that_counts_their_steps(
    few: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, int]] = []  # inode and size
    monkeypatch.setattr(train.runs.files.os, "fsync", lambda handle: flushed.append((os.fstat(handle).st_ino, os.fstat(handle).st_size)))
    saved: list[int] = []

    def save(folder: Path, state: dict[str, Any]) -> None:
        found = (folder / runs.METRICS).stat()
        assert flushed[-1] == (found.st_ino, found.st_size)
        assert len(runs.read_metrics(folder)) == state["step"]
        saved.append(state["step"])

    monkeypatch.setattr(train.checkpoint, "save", save)
    words = small.words(few, tmp_path, "checkpoint_every=0.2", "checkpoint_seconds=0", batch=small.FEW_BATCH)
    cfg = config.load("pretrain", words)
    with runs.RunFolder(runs.create(tmp_path, "run", "seed: 0\n")) as run:
        train.fit(cfg, build.build(cfg), run)
    assert saved == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_checkpoint_of_a_resnet_costs_at_most_3_percent_of_the_least_time_between_two(tmp_path: Path) -> None:
    """So a run whose epochs are short spends at most that share on them. Independent of how long an epoch takes on this machine."""
    apart = config.load("pretrain", ["recipe=simclr_cifar10"]).checkpoint_seconds
    words = ["recipe=simclr_cifar10", "dataset=blood_cells", "train_size=16", "batch_size=8", "epochs=12", "warmup_epochs=0"]
    words += ["checkpoint_seconds=0", "probe_every=0", "device=cpu", "precision=fp32", "compile=false", "threads=1"]
    cfg = config.load("pretrain", words)
    with runs.RunFolder(runs.create(tmp_path, "run", "seed: 0\n")) as run:
        code, summary = train.fit(cfg, build.build(cfg), run)
    assert code == 0
    assert 0 < summary["checkpoint_seconds"] / cfg.epochs <= 0.03 * apart, summary


@pytest.mark.parametrize(
    ("changes", "left", "says"),
    [
        ([], 100, "512 views/s: about 100 s left, probes not included\n"),
        ([], 5000, "about 83 min left, probes not included\nover an hour: Ctrl-C saves a checkpoint and stops"),
        (["epochs=100"], 100_000, "about 27.8 h left"),
        (["epochs=1000"], 1_000_000, "about 11.6 days left"),
        (["epochs=1000"], 100_000, "for about ten minutes, add epochs=6 to the command\n"),
        (["epochs=1000", "warmup_epochs=10"], 100_000, "add max_steps=600 to the command\n"),  # six epochs would not end the warm-up
        (["epochs=1000"], 1_000_000, "add max_steps=600 to the command\n"),  # an epoch is longer than ten minutes
    ],
)
def test_the_time_is_predicted_and_a_shorter_command_named(
    tiny: list[str], capsys: pytest.CaptureFixture[str], changes: list[str], left: int, says: str
) -> None:
    keys = {word.partition("=")[0] for word in changes}
    cfg = config.load("pretrain", [word for word in tiny if word.partition("=")[0] not in keys] + changes)
    clock = Clock()
    clock.steady, clock.steady_steps = 20.0, 20  # one second per step
    with Progress("train", left + 20, "views") as bar:
        train._predict(bar, clock, SimpleNamespace(cfg=cfg, views_per_step=512), left)
    assert says in capsys.readouterr().out
