"""Signals while a run trains in this process, and through the real command."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import tiny as small
from compare import differences, result
from torch import Tensor

from twoviews import runs, train
from twoviews.cli import main
from twoviews.methods import METHODS
from twoviews.runs import checkpoint

# A probe at every fourth step, a save at every one.
LONG = ("epochs=4", "probe_every=0.8", "checkpoint_every=0.2")
LONG_STEPS = 4 * (small.FEW // small.FEW_BATCH)


@pytest.mark.usefixtures("fast")
def test_s1_a_signal_in_a_probe_between_two_saves_ends_the_next_step(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = train.monitor

    def signalled(*args: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **more)

    monkeypatch.setattr(train, "monitor", signalled)
    words = ["epochs=4", "checkpoint_every=4", "probe_every=1"]
    assert main(["pretrain", *small.words(few, tmp_path / "runs", *words, batch=small.FEW_BATCH)]) == 143
    path = small.only_run(tmp_path / "runs")
    assert "stopped at step 6 of 20, checkpoint saved" in capsys.readouterr().out
    assert checkpoint.load(path)["step"] == len(runs.read_metrics(path)) == 6


@pytest.mark.usefixtures("fast")
def test_s1_a_run_under_nohup_outlives_its_terminal(tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(METHODS["simclr"], "after_step", lambda self, progress: calls.append(os.kill(os.getpid(), signal.SIGHUP)))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["pretrain", *small.words(few, tmp_path / "nohup", batch=small.FEW_BATCH)]) == 0
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert main(["pretrain", *small.words(few, tmp_path / "plain", batch=small.FEW_BATCH)]) == 129
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(calls) == 6
    assert checkpoint.load(small.only_run(tmp_path / "plain"))["step"] == 1


@pytest.mark.usefixtures("fast")
def test_s1_a_signal_between_two_saves_still_saves_its_step(tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def after_step(self: Any, progress: Tensor) -> None:
        calls.append(float(progress))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(METHODS["simclr"], "after_step", after_step)
    words = ["epochs=2", "checkpoint_every=2"]
    before = signal.getsignal(signal.SIGINT)
    assert main(["pretrain", *small.words(few, tmp_path / "runs", *words, batch=small.FEW_BATCH)]) == 130
    path = small.only_run(tmp_path / "runs")
    assert checkpoint.load(path)["step"] == 3
    assert calls == pytest.approx([0, 0.1, 0.2])
    assert signal.getsignal(signal.SIGINT) is before  # the caller's own handler is restored
    assert main(["pretrain", f"resume={path}", f"runs_dir={tmp_path / 'runs'}"]) == 0
    assert main(["pretrain", *small.words(few, tmp_path / "straight", *words, batch=small.FEW_BATCH)]) == 0
    assert differences(result(path), result(small.only_run(tmp_path / "straight"))) == []


# ---- through the real command ----


def wait_for(tmp_path: Path, process: Popen[str], runs_dir: Path, rows: int) -> Path:
    """Wait until a run has logged more than `rows` steps, and return its folder."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for metrics in runs_dir.glob("*/metrics.jsonl"):
            if metrics.read_bytes().count(b"\n") > rows:
                return metrics.parent
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {(tmp_path / 'stderr').read_text()}")
        time.sleep(0.01)
    raise AssertionError("no step within a minute")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)])
def test_s1_a_signal_leaves_a_checkpoint_of_its_step_and_prints_how_to_continue(tmp_path: Path, few: Path, number: int, code: int) -> None:
    runs_dir = tmp_path / "runs"
    process = small.start(tmp_path, "pretrain", *small.words(few, runs_dir, "epochs=400", "checkpoint_every=0.2", batch=small.FEW_BATCH))
    try:
        path = wait_for(tmp_path, process, runs_dir, 2)
        process.send_signal(number)
        assert process.wait(timeout=30) == code
    finally:
        process.kill()
        process.wait()
    out = (tmp_path / "stdout").read_text()
    step = checkpoint.load(path)["step"]
    assert step == len(runs.read_metrics(path)) < 2000
    assert f"stopped at step {step} of 2000, checkpoint saved; to continue: twoviews pretrain resume={path}\n" in out
    assert (tmp_path / "stderr").read_text() == ""
    assert not (path / runs.SUMMARY).exists()
    assert not list(path.glob("*.tmp"))


@pytest.mark.slow  # the same without the command's start is short: `test_c1_a_run_killed_at_random_instants_equals_the_straight_run`
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3, 4])  # for parallel workers
def test_c1_five_real_runs_killed_three_times_equal_the_straight_run(tmp_path: Path, few: Path, seed: int) -> None:
    assert main(["pretrain", *small.words(few, tmp_path / "straight", *LONG, batch=small.FEW_BATCH)]) == 0
    expected = result(small.only_run(tmp_path / "straight"))
    random_ = random.Random(seed)
    for i in range(5):
        kill_and_resume(tmp_path, few, tmp_path / f"killed{i}", 3, random_, expected)


def kill_and_resume(tmp_path: Path, few: Path, runs_dir: Path, times: int, random_: random.Random, expected: dict[str, Any]) -> None:
    """Kill one run so many times, resume it to its end, and compare the result."""
    path, rows = None, 0
    for kill in range(times):
        words = small.words(few, runs_dir, *LONG, batch=small.FEW_BATCH) if path is None else [f"resume={path}", f"runs_dir={runs_dir}"]
        process = small.start(tmp_path, "pretrain", *words)
        try:
            if path is not None and kill % 2 == 1:  # during the start, around the time when it reads its checkpoint
                time.sleep(random_.uniform(0.05, 3.0))
            else:  # among steps, probes and saves, three steps later at most
                path = wait_for(tmp_path, process, runs_dir, rows)
                time.sleep(random_.uniform(0, 0.12))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL, (tmp_path / "stderr").read_text()
        rows = len(runs.read_metrics(path))
        assert rows < LONG_STEPS  # killed while it trained, not when it was done
    done = small.command(tmp_path, "pretrain", f"resume={path}", f"runs_dir={runs_dir}")
    assert done.returncode == 0, done.stderr
    assert small.only_run(runs_dir) == path
    assert [row["step"] for row in runs.read_metrics(path)] == list(range(LONG_STEPS))  # every step once
    assert differences(result(path), expected) == []
    assert not list(path.glob("*.tmp"))
