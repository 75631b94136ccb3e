"""The learning rate at every kind of step: warm-up, cosine, drops, floor, and epochs or steps as its unit."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from twoviews import build, config, optim, runs, train

STEPS, PER_EPOCH, WARMUP = 1000, 100, 2.0


def rate(step: int, **changes: Any) -> float:
    keys: dict[str, Any] = {
        "steps": STEPS,
        "steps_per_epoch": PER_EPOCH,
        "peak": 0.6,
        "floor": 0.0,
        "warmup_epochs": WARMUP,
        "schedule": "cosine",
        "unit": "step",
    }
    return optim.learning_rate(step, **{**keys, **changes})


def test_the_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    trace = [rate(step) for step in range(200)]
    assert trace[0] == pytest.approx(0.6 / 200)
    assert trace[99] == pytest.approx(0.3)
    assert trace[199] == pytest.approx(0.6)
    assert all(b - a == pytest.approx(0.6 / 200) for a, b in itertools.pairwise(trace))


def test_cosine_starts_at_the_peak_after_the_warm_up_and_ends_just_above_the_floor() -> None:
    assert rate(200) == pytest.approx(0.6)
    assert rate(600) == pytest.approx(0.3)  # half of the 800 steps after the warm-up
    assert rate(999) == pytest.approx(0.3 * (1 + math.cos(math.pi * 799 / 800)))
    assert 0 < rate(999) < 1e-5
    falling = [rate(step) for step in range(200, STEPS)]
    assert falling == sorted(falling, reverse=True)


def test_without_a_warm_up_step_0_takes_the_peak() -> None:
    assert rate(0, warmup_epochs=0) == 0.6
    assert rate(500, warmup_epochs=0) == pytest.approx(0.3)


@pytest.mark.parametrize("floor", [0.0, 0.06, 0.6])
def test_the_rate_never_falls_below_the_absolute_floor(floor: float) -> None:
    trace = [rate(step, floor=floor) for step in range(200, STEPS)]
    assert min(trace) >= floor
    assert trace[-1] == pytest.approx(floor, abs=1e-5)
    assert trace[400] == pytest.approx((0.6 + floor) / 2)


def test_with_unit_epoch_the_rate_changes_only_between_epochs() -> None:
    trace = [rate(step, unit="epoch", warmup_epochs=0) for step in range(STEPS)]
    for epoch in range(10):
        expected = 0.3 * (1 + math.cos(math.pi * epoch / 10))  # torch's CosineAnnealingLR stepped once an epoch
        assert trace[epoch * 100 : (epoch + 1) * 100] == pytest.approx([expected] * 100)


def test_with_unit_epoch_the_rate_equals_torchs_scheduler() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.6)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.01)
    for epoch in range(10):
        expected = optimizer.param_groups[0]["lr"]
        assert rate(epoch * PER_EPOCH + 37, unit="epoch", warmup_epochs=0, floor=0.01) == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0.0), ("cosine", 2.0), ("step", 0.0), ("constant", 2.0)])
def test_with_unit_next_epoch_an_epoch_has_the_rate_of_the_next_one(schedule: str, warmup: float) -> None:
    keys: dict[str, Any] = {"schedule": schedule, "warmup_epochs": warmup, "floor": 0.05}
    for step in range(round(warmup) * PER_EPOCH, STEPS - PER_EPOCH):
        assert rate(step, unit="next_epoch", **keys) == rate(step + PER_EPOCH, unit="epoch", **keys)
    for step in range(round(warmup) * PER_EPOCH):
        assert rate(step, unit="next_epoch", **keys) == rate(step, unit="epoch", **keys), "the warm-up changes at every step"


def test_with_unit_next_epoch_the_rate_is_that_of_epochs_counted_from_1() -> None:
    for epoch in range(1, 11):  # adjust_learning_rate of MoCo's CIFAR demo, in its loop over range(1, epochs + 1)
        expected = 0.6 * 0.5 * (1.0 + math.cos(math.pi * epoch / 10))
        for step in ((epoch - 1) * PER_EPOCH, epoch * PER_EPOCH - 1):
            assert rate(step, unit="next_epoch", warmup_epochs=0) == pytest.approx(expected, abs=1e-12)
    assert rate(STEPS - 1, unit="next_epoch", warmup_epochs=0, floor=0.05) == pytest.approx(0.05)


def test_a_constant_schedule_stays_at_the_peak_after_the_warm_up() -> None:
    assert [rate(step, schedule="constant") for step in (0, 199, 200, 999)] == pytest.approx([0.003, 0.6, 0.6, 0.6])


def test_the_step_schedule_drops_to_a_fifth_for_the_last_50_and_25_of_1000_epochs() -> None:
    for place in (0, 96):  # the first and the last step of each epoch
        steps = [epoch * 97 + place for epoch in range(1000)]
        trace = [rate(step, schedule="step", warmup_epochs=0, steps=97_000, steps_per_epoch=97) for step in steps]
        assert trace == pytest.approx([0.6] * 950 + [0.12] * 25 + [0.024] * 25)
    assert rate(990, schedule="step", floor=0.05) == 0.05


def test_a_warm_up_may_be_shorter_than_an_epoch() -> None:
    assert rate(49, warmup_epochs=0.5) == pytest.approx(0.6)
    assert rate(24, warmup_epochs=0.5) == pytest.approx(0.3)


@pytest.mark.parametrize("changes", [{"floor": 0.7}, {"floor": -0.1}, {"peak": -1.0}, {"schedule": "linear"}, {"unit": "iteration"}])
def test_a_rate_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="learning rate"):
        rate(0, **changes)


def test_the_base_rate_is_scaled_by_the_batch_and_an_explicit_rate_is_not() -> None:
    assert optim.resolve_learning_rate(None, 0.3, 512) == pytest.approx(0.6)
    assert optim.resolve_learning_rate(None, 0.3, 256) == pytest.approx(0.3)
    assert optim.resolve_learning_rate(0.6, 0.3, 512) == 0.6
    assert optim.resolve_learning_rate(0.0, 0.3, 512) == 0.0


def test_the_training_loop_does_not_scale_the_rate_again(tmp_path: Path, few: Path) -> None:
    words = f"dataset=fashion_mnist data_dir={few} backbone=thin16 batch_size=8 learning_rate=null base_learning_rate=0.32 warmup_epochs=0"
    machine = f"device=cpu compile=false threads=1 precision=fp32 max_steps=1 probe_every=0 runs_dir={tmp_path}"
    cfg = config.load("pretrain", [*words.split(), *machine.split()])
    parts = build.build(cfg)
    with runs.RunFolder(runs.create(tmp_path, "rate", "{}")) as run:
        train.fit(cfg, parts, run)
        logged = runs.read_metrics(run.path)
    assert parts.peak_rate == pytest.approx(0.01)
    assert [row["lr"] for row in logged] == pytest.approx([0.01])
    assert [group["lr"] for group in parts.optimizer.param_groups] == pytest.approx([0.01])
