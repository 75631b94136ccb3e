"""Beside other programs: a run notices them, says once what to do, and `threads=polite` changes no thread count."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny as small
import torch
from command_helpers import refused

import twoviews
from twoviews import cli, contention, runs
from twoviews.cli import main
from twoviews.contention import Contention
from twoviews.device import Machine
from twoviews.progress import Progress

Move = Callable[..., None]


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Move:
    """Return a function that moves the clocks: by seconds of wall time, of work on two cores, and of this process."""
    now, ticks = [100.0, 50.0, 20.0], os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    monkeypatch.setattr(contention, "STAT", stat)
    monkeypatch.setattr(contention, "_cores", lambda: {0, 1})
    monkeypatch.setattr(contention.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(contention.time, "process_time", lambda: now[2])
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)

    def move(wall: float = 0, busy: float = 0, own: float = 0) -> None:
        for i, seconds in enumerate((wall, busy, own)):
            now[i] += seconds
        half = int(now[1] * ticks / 2)
        lines = [f"cpu{core} {half} 0 0 99999 77 0 0 0 0 0" for core in (0, 1, 2)]
        stat.write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "intr 5"]))

    move()
    return move


def test_the_share_is_what_others_used_of_these_cores(cores: Move) -> None:
    watch = Contention()
    cores(wall=5, busy=10, own=4)
    assert watch.share() is None, "too early"
    cores(wall=5, busy=8, own=4)
    assert watch.share() == pytest.approx((18 - 8) / 20, abs=0.01)
    assert "other programs use 50 % of these cores: threads=polite is faster" in watch.advice()


def test_a_run_alone_gets_no_advice(cores: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Contention()
    cores(wall=20, busy=32, own=30)
    assert watch.advice() == ""
    cores(wall=0, busy=20, own=0)
    assert watch.advice()
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert watch.advice() == "", "it is polite already"


def test_where_the_system_does_not_say_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(contention, "STAT", tmp_path / "none")
    assert Contention().advice() == ""


def test_a_command_looks_before_torch_is_loaded_and_says_what_it_chose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not cli._can_still_choose(), "torch is loaded here"
    monkeypatch.setattr(cli, "_can_still_choose", lambda: True)
    words = [word for word in small.words(few, tmp_path / "runs", "max_steps=1", batch=small.FEW_BATCH) if not word.startswith("threads=")]
    for share, says in ((0.1, False), (0.6, True)):
        monkeypatch.setattr(contention, "busy_now", lambda share=share: share)
        monkeypatch.setattr("twoviews.device.cores", lambda: 1)
        assert main(["pretrain", *words]) == 0
        assert ("other programs use 60 % of these cores: the threads of this command wait passively" in capsys.readouterr().out) == says
        assert (os.environ.get("OMP_WAIT_POLICY") == "passive") == says


def test_a_glance_is_short_and_counts_what_others_do(cores: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        cores(wall=seconds, busy=1.5 * seconds, own=0.5 * seconds)

    monkeypatch.setattr(contention.time, "sleep", sleep)
    assert contention.busy_now() == pytest.approx(0.5, abs=0.07)
    assert sum(slept) <= 0.2
    monkeypatch.setattr(contention, "_cores", lambda: {0})
    assert contention.busy_now() == 0, "one thread waits for nobody"


def test_only_threads_that_wait_for_each_other_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Machine(torch.device("cpu"), 2, "fp32", False)
    assert contention.contention(two) is not None
    assert contention.contention(replace(two, threads=1)) is None
    assert contention.contention(replace(two, device=torch.device("cuda"))) is None
    monkeypatch.setattr("twoviews.distributed.size", lambda: 2)
    assert contention.contention(two) is None


def test_the_bar_says_it_once(cores: Move, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 100, "views", contention=Contention()) as bar:
        for _ in range(40):
            cores(wall=2, busy=4, own=1)
            bar.add()
    assert capsys.readouterr().out.count("other programs use 75 % of these cores") == 1


@pytest.mark.long
def test_polite_threads_give_the_same_weights_and_may_be_changed_when_resuming(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word for word in small.words(few, tmp_path / "runs", batch=small.FEW_BATCH) if not word.startswith("threads=")]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("twoviews.device.cores", lambda: 1)
    weights = []
    for name, more in (("plain", []), ("polite", ["threads=polite"])):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        assert main(["pretrain", *words, f"run_id={name}", "max_steps=2", *more]) == 0
        assert (os.environ.get("OMP_WAIT_POLICY") == "passive") == (name == "polite")
        path = next((tmp_path / "runs").glob(f"*-{name}"))
        assert main(["pretrain", f"resume={path}", "threads=polite", "max_steps=4"]) == 0
        weights.append((path / runs.BACKBONE).read_bytes())
        assert runs.read_json(path, runs.MANIFEST)["threads"] == 1
    assert weights[0] == weights[1]


def test_in_python_polite_threads_come_too_late(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="set OMP_WAIT_POLICY=passive before Python starts"):
        twoviews.pretrain("demo", threads="polite")
    assert "threads expects an integer in [1, 1024] or polite" in refused(capsys, "pretrain", "threads=rude")
