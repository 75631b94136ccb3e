"""Progress is a bar on a terminal and plain lines elsewhere; the clock counts training only."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import ClassVar

import pytest
import tqdm.notebook

from twoviews import progress
from twoviews.progress import Clock, Progress

Tick = Callable[[float], None]


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Tick:
    """Return a function that moves the clock by some seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_line_is_printed_every_fifteen_seconds(tick: Tick, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 40, "views", start=10, scale=512) as bar:
        for _ in range(10):
            tick(2)
            bar.add(1, "loss 3.1")
    out = capsys.readouterr()
    # Eight of thirty steps took two seconds each: 22 are left. The rate leaves out the ten steps before the start.
    assert out.out == "train 18/40, 256 views/s, 44 s left loss 3.1\n"
    assert out.err == ""


def test_on_a_terminal_a_bar_shows_rate_and_time_left(
    tick: Tick, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", screen)
    with Progress("embed", 10, "images", scale=100) as bar:
        for _ in range(5):
            tick(1)
            bar.add()
        bar.bar.refresh()
        bar.line("a line between")
    shown = screen.getvalue()
    assert "embed  50%" in shown
    assert "100 images/s" in shown
    assert "5 s left" in shown
    assert capsys.readouterr().out.strip() == "a line between"


def test_rate_and_time_left_are_those_of_the_last_half_minute(tick: Tick, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 1000, "views", scale=10) as bar:
        for seconds in [1] * 60 + [5] * 10:
            tick(seconds)
            bar.add()
        assert bar.rate() == pytest.approx(10 / 5, rel=0.1)
    assert "train 69/1000, 2 views/s, 78 min left" in capsys.readouterr().out


def test_the_clock_leaves_out_steps_that_compile_and_pauses(tick: Tick) -> None:
    clock = Clock()
    clock.start()
    tick(30)
    clock.step(1, 4, compiling=True)  # the first step compiles
    for done in (2, 3, 4):
        tick(1)
        clock.step(done, 4, compiling=False)
    clock.pause()
    tick(50)  # a probe
    clock.start()
    for done in range(5, 9):
        tick(2)
        clock.step(done, 4, compiling=False)
    assert clock.total == 41
    assert clock.epochs == [4, 8], "the mean of the first epoch's three steady steps counts four times"
    assert clock.epoch_seconds(4) == 6
    assert clock.per_step() == pytest.approx(11 / 7)
    assert clock.rate(14) == pytest.approx(14 * 7 / 11)


def test_the_time_of_waiting_for_the_device_counts(tick: Tick) -> None:
    clock = Clock()
    clock.start()
    clock.step(1, 10, compiling=False)
    tick(3)
    clock.pause()
    assert clock.total == clock.steady == 3


def test_a_resumed_clock_adds_up(tick: Tick) -> None:
    first = Clock()
    first.start()
    tick(5)
    first.step(1, 2, compiling=False)
    tick(7)  # not training
    state = first.state()
    second = Clock()
    second.load(state)
    tick(1)
    assert (second.total, second.earlier) == (5, 12)
    assert second.state()["wall"] == 13
    assert second.epoch_seconds(2) == 10, "there was no complete epoch: computed from the mean step"


def test_seconds_of_probes_checkpoints_and_compiling_are_counted_beside_the_steps(tick: Tick) -> None:
    clock = Clock()
    clock.start()
    tick(30)
    clock.step(1, 10, compiling=True)
    tick(2)
    clock.step(2, 10, compiling=False)
    clock.pause()
    with clock.counting("probes"):
        tick(5)
    with clock.counting("checkpoints"):
        tick(1)
    resumed = Clock()
    resumed.load(clock.state())
    with resumed.counting("checkpoints"):
        tick(1)
    assert resumed.beside == {"probes": 5, "checkpoints": 2}
    assert (resumed.total, resumed.compiling()) == (32, 28)
    assert Clock().compiling() == 0


class Kernel:
    """Stands for IPython in a notebook."""

    config: ClassVar[dict[str, object]] = {"IPKernelApp": {}}

    @classmethod
    def get_ipython(cls) -> Kernel:
        return cls()


def test_a_notebook_without_widgets_shows_a_bar_of_text(
    tick: Tick, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", Kernel)  # type: ignore[arg-type]
    monkeypatch.setattr("tqdm.notebook.IProgress", None)
    with Progress("embed", 10, "images") as bar:
        tick(1)
        bar.add(5)
        bar.bar.refresh()
    out, err = capsys.readouterr()
    assert "embed  50%" in out
    assert err == ""


def test_a_notebook_with_widgets_shows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", Kernel)  # type: ignore[arg-type]
    monkeypatch.setattr("tqdm.notebook.IProgress", object())
    assert progress._bar() == (tqdm.notebook.tqdm, {})
    monkeypatch.setattr(Kernel, "config", {"TerminalIPythonApp": {}})
    assert not progress.in_notebook(), "IPython in a terminal"


def test_a_program_without_standard_error_gets_plain_lines(tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys, "stderr", None)
    with Progress("embed", 10, "images") as bar:
        bar.add()
    assert bar.bar.disable
