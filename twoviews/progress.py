"""Progress of a run: a bar on a terminal, a plain line every few seconds elsewhere; and the clock of the training time."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from twoviews.contention import Contention

PLAIN_EVERY = 15.0  # seconds between two plain lines, so that logs stay short
RECENT = 30.0  # seconds from which the rate and the time left are computed


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this program: its streams are no terminals, but show bars."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


def _bar() -> tuple[type[tqdm], dict[str, Any]]:
    """Return the kind of bar to show here, and its options: a widget in a notebook that has ipywidgets, else text."""
    if in_notebook():
        from tqdm import notebook

        if getattr(notebook, "IProgress", None) is not None:
            return notebook.tqdm, {}
        return tqdm, {"file": sys.stdout, "disable": False}  # standard error would be on a red background
    others = int(os.environ.get("RANK", "0")) > 0  # of several processes the first one shows the bar
    return tqdm, {"file": sys.stderr, "disable": True if others or sys.stderr is None else None}  # None: where it is no terminal


class Progress:
    """A progress bar over units of work: `with Progress("decode", 50_000, "images") as bar: bar.add(100)`.

    Args:
        name: of the work.
        total: number of units.
        unit: in which the rate is shown, as unit/s.
        start: units done before, in a resumed run; the rate does not count them.
        scale: rate units in one unit of work: 512 if one step has 512 views.
        contention: says once that other programs use the cores.
    """

    def __init__(self, name: str, total: int, unit: str, *, start: int = 0, scale: float = 1, contention: Contention | None = None) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.start = start
        self.scale, self.contention = scale, contention
        self.began = self.printed = time.monotonic()
        self.note = ""
        self.recent = deque([(self.began, start)])  # (time, units done), from which the rate is computed
        shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}"
        bar, options = _bar()
        self.bar = bar(total=total, initial=start, desc=name, mininterval=0.3, leave=False, bar_format=shape, **options)

    def add(self, units: int = 1, note: str = "") -> None:
        """Count `units`, and show `note` after the rate."""
        self.done += units
        self.note = note or self.note
        now = time.monotonic()
        if now - self.recent[-1][0] >= 1:
            self.recent.append((now, self.done))
            while len(self.recent) > 2 and now - self.recent[1][0] >= RECENT:
                self.recent.popleft()
            if self.contention is not None and (advice := self.contention.advice()):
                self.contention = None
                self.line(advice)
        if self.bar.disable:
            if now - self.printed >= PLAIN_EVERY:
                self.printed = now
                print(f"{self.name} {self.done}/{self.total}, {self._speed()} {self.note}".rstrip(), flush=True)
            return
        self.bar.set_postfix_str(f"{self._speed()} {self.note}", refresh=False)
        self.bar.update(units)

    def rate(self) -> float:
        """Return scaled units per second in the last half minute."""
        then, done = self.recent[0]
        return (self.done - done) * self.scale / max(1e-9, time.monotonic() - then)

    def _speed(self) -> str:
        rate = self.rate()
        left = duration((self.total - self.done) * self.scale / rate) if rate else "?"
        return f"{rate:,.0f} {self.unit}/s, {left} left"

    def line(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self.bar.disable:
            print(text, flush=True)
        else:
            self.bar.write(text, file=sys.stdout)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()


class Clock:
    """Training time, and beside it that of probes and checkpoints. Checkpoints store both, so that a resumed run continues to count."""

    def __init__(self) -> None:
        self.total = 0.0  # seconds of all steps
        self.steady = 0.0  # seconds without steps that compile
        self.steady_steps = 0
        self.compiled_steps = 0
        self.beside = {"probes": 0.0, "checkpoints": 0.0}  # seconds between steps
        self.epochs: list[float] = []  # seconds of each epoch, without steps that compile
        self.earlier = 0.0  # wall-clock seconds before the resume
        self._began = self._saved = time.perf_counter()
        self._mark = 0.0
        self._epoch = 0.0
        self._epoch_steps = 0

    def start(self) -> None:
        """Start counting, or continue after a pause."""
        self._mark = time.perf_counter()

    def step(self, done: int, steps_per_epoch: int, *, compiling: bool) -> None:
        """Count one step; a step that compiled counts only in the total."""
        now = time.perf_counter()
        self.total += now - self._mark
        if not compiling:
            self.steady += now - self._mark
            self.steady_steps += 1
            self._epoch += now - self._mark
            self._epoch_steps += 1
        else:
            self.compiled_steps += 1
        self._mark = now
        if done % steps_per_epoch == 0:
            if self._epoch_steps >= steps_per_epoch - 1 and self._epoch_steps:
                self.epochs.append(self._epoch * steps_per_epoch / self._epoch_steps)
            self._epoch, self._epoch_steps = 0.0, 0

    def pause(self) -> None:
        """Stop counting. The caller must have waited for the device."""
        now = time.perf_counter()
        self.total += now - self._mark
        self.steady += now - self._mark
        self._epoch += now - self._mark
        self._mark = now

    @contextlib.contextmanager
    def counting(self, what: str) -> Iterator[None]:
        """Count the seconds inside as `probes` or `checkpoints`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.beside[what] += time.perf_counter() - began

    def saved(self) -> None:
        """Note that a checkpoint was saved."""
        self._saved = time.perf_counter()

    def since_save(self) -> float:
        """Return the seconds since the last checkpoint, or since the start."""
        return time.perf_counter() - self._saved

    def compiling(self) -> float:
        """Return the seconds by which the steps that compiled were longer than others."""
        return max(0.0, self.total - self.steady - self.compiled_steps * self.per_step()) if self.steady_steps else 0.0

    def per_step(self) -> float:
        """Return seconds per step."""
        return self.steady / self.steady_steps if self.steady_steps else self.total

    def rate(self, views_per_step: float) -> float:
        """Return views per second."""
        return views_per_step / max(1e-9, self.per_step())

    def epoch_seconds(self, steps_per_epoch: int) -> float:
        """Return the median seconds of an epoch; if no epoch is complete, steps per epoch times seconds per step."""
        return round(median(self.epochs) if self.epochs else self.per_step() * steps_per_epoch, 3)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        wall = self.earlier + time.perf_counter() - self._began
        counted = {"total": self.total, "steady": self.steady, "steady_steps": self.steady_steps, "epochs": self.epochs, "wall": wall}
        return counted | {"compiled_steps": self.compiled_steps, "beside": self.beside}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what a checkpoint stored."""
        self.total, self.steady = state["total"], state["steady"]
        self.steady_steps, self.epochs = state["steady_steps"], state["epochs"]
        self.earlier = state.get("wall", state["total"])  # old checkpoints do not have this and what follows
        self.compiled_steps = state.get("compiled_steps", 0)
        self.beside |= state.get("beside", {})


def duration(seconds: float) -> str:
    """Return a readable time: 90 s, 12 min, 3.5 h or 2.1 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
