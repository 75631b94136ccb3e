"""What goes wrong in a child process: signals, kills and full disks at chosen moments. Each function arms the process that calls it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from twoviews import build, evaluation, runs, train
from twoviews.images import pixels
from twoviews.methods import METHODS
from twoviews.runs import checkpoint, files

# Where a signal arrives: the function in which, and at which of its calls.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "start": (build, "build", 1),
    "probe": (train, "monitor", 2),
    "save": (checkpoint, "write_atomic", 2),
    "evaluation": (evaluation, "evaluate", 1),
}
POINTS = (
    *("before the file", "half of the file", "before the file is flushed", "after the file is flushed"),
    *("before it is renamed", "after it is renamed", "before the folder is flushed", "after the folder is flushed"),
)


def signal_in(module: Any, name: str, call: int, number: signal.Signals) -> None:
    """Send this process a signal when the function is called for the n-th time."""
    real, calls = getattr(module, name), [0]

    def wrapper(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), number)
        return real(*args, **more)

    setattr(module, name, wrapper)


def at_step(step: int, action: Callable[[], None]) -> None:
    """Call a function in the middle of a step."""
    for method in METHODS.values():
        real, taken = method.after_step, [0]

        def after_step(self: Any, progress: torch.Tensor, real: Any = real, taken: list[int] = taken) -> None:
            real(self, progress)
            taken[0] += 1
            if taken[0] == step + 1:
                action()

        method.after_step = after_step  # type: ignore[method-assign]


def signal_at(step: int, number: signal.Signals) -> None:
    """Send this process a signal in the middle of a step."""
    at_step(step, lambda: os.kill(os.getpid(), number))


def endless_step(step: int, mark: Path) -> None:
    """Make a step that does not end, whatever interrupts its sleep; `mark` appears when it begins."""

    def action() -> None:
        mark.write_text("")
        while True:
            time.sleep(0.01)

    at_step(step, action)


def slow_decoding() -> None:
    """Lead a process group of its own, and decode two images per second and thread."""
    os.setsid()
    real = pixels.decode

    def slow(path: Path, reading: pixels.Reading) -> Any:
        print("decoding", flush=True)
        time.sleep(0.5)
        return real(path, reading)

    pixels.decode = slow


def kill_in_a_save(point: str) -> None:
    """Send this process SIGKILL at a point of the third checkpoint's save."""
    real, saves = checkpoint.save, [0]

    def save(folder: Path, state: dict[str, Any]) -> None:
        saves[0] += 1
        if saves[0] == 3:
            _arm(point)
        real(folder, state)

    checkpoint.save = save


def _arm(point: str) -> None:
    fsync, replace, flushed = os.fsync, os.replace, [0]

    def die_at(here: str) -> None:
        if point == here:
            os.kill(os.getpid(), signal.SIGKILL)

    def new_fsync(handle: Any) -> None:
        flushed[0] += 1
        which = "file" if flushed[0] == 1 else "folder"
        die_at(f"before the {which} is flushed")
        fsync(handle)
        die_at(f"after the {which} is flushed")

    def new_replace(a: Any, b: Any) -> None:
        ours = Path(b).name == runs.LAST
        die_at("before it is renamed" if ours else "")
        replace(a, b)
        die_at("after it is renamed" if ours else "")

    def new_open(path: Any, *more: Any, **named: Any) -> Any:
        die_at("before the file")
        file = open(path, *more, **named)  # noqa: SIM115 - it replaces open
        if point == "half of the file":
            file.write(b"half of it")
            file.flush()
            die_at(point)
        return file

    os.fsync, os.replace = new_fsync, new_replace
    files.open = new_open  # type: ignore[attr-defined]


def limit_file_size(size: int) -> None:
    """Let no checkpoint grow beyond this, as on a disk that fills up."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    real, hard = checkpoint.save, resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def save(folder: Path, state: dict[str, Any]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            real(folder, state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    checkpoint.save = save


def no_space() -> None:
    """Let the system say that the disk is full when a checkpoint is flushed."""
    real = checkpoint.save

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(folder: Path, state: dict[str, Any]) -> None:
        os.fsync = full
        real(folder, state)

    checkpoint.save = save


def record_usage(marks: Path) -> None:
    """Append a line at every checkpoint: resident pages, open files, threads."""
    real = checkpoint.save

    def save(folder: Path, state: dict[str, Any]) -> None:
        real(folder, state)
        pages = Path("/proc/self/statm").read_text().split()[1]
        counts = [len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task")]
        with open(marks, "a") as file:
            file.write(f"{pages} {counts[0]} {counts[1]}\n")

    checkpoint.save = save
