"""Runs in forked children that are killed, signalled and starved: `python tests/killer.py <what> <data> <folder> <count> <recipe> <seed>`.

Forked after the imports, a child needs no seconds to start, so hundreds fit into minutes. Prints one JSON object; tests assert on it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import tiny as small
import torch

from twoviews import build, checkpoint, readout, runs, train
from twoviews.cli import main
from twoviews.commands import report
from twoviews.methods import METHODS

# Four steps an epoch, a probe at every second, a save at every one.
WORDS = ("batch_size=32", "epochs=3", "probe_every=0.5", "checkpoint_every=0.25", "warmup_epochs=0.5", "log_interval=2", "train_size=160")
STEPS = 15


def fork(words: list[str], log: Path, before: Any = None) -> int:
    """A child that runs one command; its output goes to `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if before is not None:
            before()
        code = main(["pretrain", *words])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int, seconds: float = 120) -> int:
    """Exit code, or minus the signal; a child that takes longer is an error."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("a child hangs")


def result(path: Path) -> str:
    """A hash of all that two equal runs have in common."""
    metrics = small.without_times(runs.metrics(path))
    assert [row["step"] for row in metrics] == list(range(STEPS)), [row["step"] for row in metrics]
    assert not list(path.glob("*.tmp")), list(path.glob("*.tmp"))
    kept = [(path / name).read_bytes() for name in (runs.BACKBONE, "epoch-2.safetensors")]
    state = checkpoint.read(path / checkpoint.LAST)
    tensors = [x.numpy().tobytes() for x in state["method"].values()]
    said = json.dumps([metrics, small.without_times(small.summary(path)["readouts"])]).encode()
    return hashlib.sha256(b"".join([*kept, *tensors, said])).hexdigest()


class Harness:
    """A straight run, and disturbed ones that have to equal it."""

    def __init__(self, data: Path, folder: Path, recipe: str, seed: int) -> None:
        self.data, self.folder, self.recipe, self.random = data, folder, recipe, random.Random(seed)
        self.words = small.words(data, folder / "straight", *WORDS, recipe=recipe)
        began = time.monotonic()
        assert wait(fork(self.words, folder / "log")) == 0, (folder / "log").read_text()
        self.seconds = time.monotonic() - began
        path = small.only_run(folder / "straight")
        self.expected = result(path)

    def into(self, place: Path) -> list[str]:
        """The words of the run with another folder for runs."""
        return [word for word in self.words if not word.startswith("runs_dir=")] + [f"runs_dir={place}"]

    def next(self, place: Path) -> list[str]:
        """The words that go on with the run there, or begin it; a folder that was killed before its first step is left alone."""
        begun = [path for path in runs.folders(place) if (path / runs.MANIFEST).is_file()]
        return [f"resume={begun[-1]}", f"runs_dir={place}"] if begun else self.into(place)

    def finish(self, place: Path) -> str:
        """To the end; what went wrong, or nothing."""
        code = wait(fork(self.next(place), self.folder / "log"))
        said = (self.folder / "log").read_text()
        if code:
            return f"exit code {code}: {said[-500:]}"
        if "Traceback" in said:
            return said[-500:]
        (path,) = [path for path in runs.folders(place) if (path / runs.SUMMARY).is_file()]
        try:
            if result(path) != self.expected:
                return "another result"
            shutil.rmtree(place)  # hundreds of runs would fill a disk
            return ""
        except AssertionError as error:
            return f"steps or files: {error}"

    def kills(self, count: int) -> dict[str, Any]:
        """SIGKILL at random instants, up to five times a run."""
        wrong, sent = [], 0
        for i in range(count):
            place = self.folder / f"killed{i}"
            for _ in range(self.random.randint(2, 5)):
                pid = fork(self.next(place), self.folder / "log")
                time.sleep(self.random.uniform(0, 0.9 * self.seconds))
                os.kill(pid, signal.SIGKILL)
                code = wait(pid)
                sent += code == -signal.SIGKILL
                if code not in (0, -signal.SIGKILL):
                    wrong.append(f"{i}: exit code {code}: {(self.folder / 'log').read_text()[-300:]}")
            if problem := self.finish(place):
                wrong.append(f"{i}: {problem}")
        return {"runs": count, "kills": sent, "wrong": wrong}

    def signals(self, count: int) -> dict[str, Any]:
        """SIGTERM, SIGUSR1 and SIGINT in turn, each at a random step, with a save at every third: the one of that step is the signal's."""
        wrong, longest = [], 0.0
        for i in range(count):
            place, mark = self.folder / f"signalled{i}", self.folder / f"mark{i}"
            number = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[i % 3]
            step = self.random.randrange(STEPS - 1)
            words = [word.replace("checkpoint_every=0.25", "checkpoint_every=0.75") for word in self.into(place)]
            code = wait(fork(words, self.folder / "log", lambda: signal_at(step, number, mark)))  # noqa: B023 - forked now
            longest = max(longest, time.time() - float(mark.read_text()))
            said = (self.folder / "log").read_text()
            if code != 128 + number or f"stopped at step {step + 1} of {STEPS}" not in said or "Traceback" in said:
                wrong.append(f"{i}: exit code {code}: {said[-300:]}")
                continue
            path = small.only_run(place)
            if checkpoint.load(path)["step"] != step + 1 or len(runs.metrics(path)) != step + 1:
                wrong.append(f"{i}: no checkpoint of the step that was told")
            if problem := self.finish(place):
                wrong.append(f"{i}: {problem}")
        return {"runs": count, "longest": longest, "wrong": wrong}

    def moments(self, count: int) -> dict[str, Any]:
        """Each signal in the midst of a start, a probe, a save and the read-outs."""
        wrong, codes = [], {}
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[:count]:
            for moment, (module, name, call) in MOMENTS.items():
                place = self.folder / f"{moment}-{number}"
                pid = fork(self.into(place), self.folder / "log", lambda: signal_in(module, name, call, number))  # noqa: B023 - forked now
                code = codes[f"{moment}, {number.name}"] = wait(pid)
                said = (self.folder / "log").read_text()
                kept = [path for path in runs.folders(place) if (path / checkpoint.LAST).is_file()]
                if code not in (128 + number, -number) or "Traceback" in said:
                    wrong.append(f"{moment}, {number.name}: exit code {code}: {said[-300:]}")
                if moment in ("probe", "save") and code != 128 + number:
                    wrong.append(f"{moment}, {number.name}: exit code {code}, and no step that ended")
                if bool(kept) == (moment == "start"):
                    wrong.append(f"{moment}, {number.name}: {len(kept)} runs have a checkpoint")
                if kept and "stopped at step" in said:
                    step = int(said.split("stopped at step ")[1].split()[0])
                    if checkpoint.load(kept[0])["step"] != step or len(runs.metrics(kept[0])) != step:
                        wrong.append(f"{moment}, {number.name}: no checkpoint of the step that was told")
                if problem := self.finish(place):
                    wrong.append(f"{moment}, {number.name}: {problem}")
        return {"moments": len(codes), "codes": codes, "wrong": wrong}

    def twice(self, count: int) -> dict[str, Any]:
        """Two SIGINT within a fifth of a second, in a step that would take ten: the second does not wait for its end."""
        wrong, longest = [], 0.0
        for i in range(count):
            place, mark = self.folder / f"twice{i}", self.folder / f"mark{i}"
            step = self.random.randrange(1, STEPS)
            pid = fork(self.into(place), self.folder / "log", lambda: slow_at(step, mark))  # noqa: B023 - forked now
            until = time.monotonic() + 60
            while not mark.exists() and time.monotonic() < until:
                time.sleep(0.005)
            began = time.monotonic()
            os.kill(pid, signal.SIGINT)
            time.sleep(self.random.uniform(0.02, 0.2))
            os.kill(pid, signal.SIGINT)
            code = wait(pid)
            longest = max(longest, time.monotonic() - began)
            if code != 130:
                wrong.append(f"{i}: exit code {code}: {(self.folder / 'log').read_text()[-300:]}")
            if checkpoint.load(small.only_run(place))["step"] != step:
                wrong.append(f"{i}: the last checkpoint is not that of the step before")
            if problem := self.finish(place):
                wrong.append(f"{i}: {problem}")
        return {"runs": count, "longest": longest, "wrong": wrong}

    def saves(self, count: int) -> dict[str, Any]:
        """SIGKILL at eight named points of one save."""
        wrong, loaded = [], []
        for point in POINTS:
            place = self.folder / point.replace(" ", "-")
            pid = fork(self.into(place), self.folder / "log", lambda point=point: kill_in_a_save(point))
            code = wait(pid)
            path = small.only_run(place)
            if code != -signal.SIGKILL:
                wrong.append(f"{point}: exit code {code}")
            loaded.append(checkpoint.load(path)["step"])
            if problem := self.finish(place):
                wrong.append(f"{point}: {problem}")
        return {"points": len(POINTS), "loaded": loaded, "wrong": wrong}

    def disk(self, count: int) -> dict[str, Any]:
        """A disk that is full from some write on: by a limit on the size of files, and by an error from the system."""
        wrong = []
        for i in range(count):
            place = self.folder / f"full{i}"
            before = [*self.into(place), "max_steps=4"]
            assert wait(fork(before, self.folder / "log")) == 0, (self.folder / "log").read_text()
            path = small.only_run(place)
            kept = (path / checkpoint.LAST).read_bytes()
            free = self.random.randrange(len(kept))
            how = (lambda free=free: limit(free)) if i % 2 else (lambda free=free: no_space(free))
            code = wait(fork(self.next(place), self.folder / "log", how))
            said = (self.folder / "log").read_text()
            if (
                code != 1
                or "MB needed" not in said
                or "MB free" not in said
                or str(path / checkpoint.LAST) not in said
                or "Traceback" in said
            ):
                wrong.append(f"{i}: exit code {code}: {said[-300:]}")
            if (path / checkpoint.LAST).read_bytes() != kept or list(path.glob("*.tmp")):
                wrong.append(f"{i}: the checkpoint that was there is gone, or a part of the new one lies about")
            if problem := self.finish(place):
                wrong.append(f"{i}: {problem}")
        return {"cases": count, "wrong": wrong}

    def leaks(self, count: int) -> dict[str, Any]:
        """Memory, open files and threads over many epochs of one process, measured in the child at every probe."""
        place, marks = self.folder / "leaks", self.folder / "marks"
        words = [
            word for word in self.into(place) if not word.startswith(("epochs=", "probe_every=", "checkpoint_every=", "log_interval="))
        ]
        words += [f"epochs={count}", "probe_every=1", "checkpoint_every=1"]
        code = wait(fork(words, self.folder / "log", lambda: watch(marks)), 1200)
        rows = [list(map(int, line.split())) for line in marks.read_text().splitlines()]
        return {"exit": code, "rows": rows}


POINTS = (
    *("before the file", "in the midst of it", "before it is flushed", "after it is flushed"),
    *("before it takes its place", "after it took its place", "before the folder is flushed", "after the folder is flushed"),
)


# Where a signal comes: the function in whose midst, and at which of its calls.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "start": (build, "build", 1),
    "probe": (train, "monitor", 2),
    "save": (checkpoint, "_sync_folder", 4),
    "read-outs": (readout, "read_outs", 1),
}


def signal_in(module: Any, name: str, call: int, number: signal.Signals) -> None:
    """Send this process a signal when the function is called for the n-th time."""
    real, calls = getattr(module, name), [0]

    def wrapper(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), number)
        return real(*args, **more)

    setattr(module, name, wrapper)


def at_step(step: int, do: Any) -> None:
    """Have this process do something in the midst of a step."""
    for method in METHODS.values():
        real, taken = method.after_step, [0]

        def after_step(self: Any, progress: torch.Tensor, real: Any = real, taken: list[int] = taken) -> None:
            real(self, progress)
            taken[0] += 1
            if taken[0] == step + 1:
                do()

        method.after_step = after_step  # type: ignore[method-assign]


def signal_at(step: int, number: signal.Signals, mark: Path) -> None:
    """A signal in the midst of a step, and when it came."""

    def do() -> None:
        mark.write_text(str(time.time()))
        os.kill(os.getpid(), number)

    at_step(step, do)


def slow_at(step: int, mark: Path) -> None:
    """A step that takes ten seconds, whatever wakes it."""

    def do() -> None:
        mark.write_text("")
        until = time.monotonic() + 10
        while time.monotonic() < until:
            time.sleep(0.01)

    at_step(step, do)


def kill_in_a_save(point: str) -> None:
    """SIGKILL at a point of the third checkpoint's save."""
    real, saves = checkpoint.save, [0]
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731 - said at eight places

    def save(folder: Path, state: dict[str, Any]) -> None:
        saves[0] += 1
        if saves[0] == 3:
            arm()
        real(folder, state)

    def arm() -> None:
        fsync, replace, opened, flushed = os.fsync, os.replace, open, [0]

        def new_fsync(handle: Any) -> None:
            flushed[0] += 1
            which = "it is" if flushed[0] == 1 else "the folder is"
            if point == f"before {which} flushed":
                die()
            fsync(handle)
            if point == f"after {which} flushed":
                die()

        def new_replace(a: Any, b: Any) -> None:
            ours = Path(b).name == checkpoint.LAST
            if ours and point == "before it takes its place":
                die()
            replace(a, b)
            if ours and point == "after it took its place":
                die()

        def new_open(path: Any, *more: Any, **named: Any) -> Any:
            if str(path).endswith(".tmp") and point == "before the file":
                die()
            file = opened(path, *more, **named)
            if str(path).endswith(".tmp") and point == "in the midst of it":
                file.write(b"half of it")
                file.flush()
                die()
            return file

        os.fsync, os.replace = new_fsync, new_replace
        checkpoint.open = new_open  # type: ignore[attr-defined]

    checkpoint.save = save


def limit(size: int) -> None:
    """No file may grow beyond this, as on a disk that fills up."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    real = checkpoint.save

    def save(folder: Path, state: dict[str, Any]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            real(folder, state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)

    checkpoint.save = save


def no_space(at: int) -> None:
    """The system says that the disk is full when a checkpoint is flushed."""
    real = checkpoint.save

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(folder: Path, state: dict[str, Any]) -> None:
        os.fsync = full
        real(folder, state)

    checkpoint.save = save


def watch(marks: Path) -> None:
    """At every checkpoint: resident pages, open files, threads."""
    real = checkpoint.save

    def save(folder: Path, state: dict[str, Any]) -> None:
        real(folder, state)
        pages = Path("/proc/self/statm").read_text().split()[1]
        counts = [len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task")]
        with open(marks, "a") as file:
            file.write(f"{pages} {counts[0]} {counts[1]}\n")

    checkpoint.save = save


if __name__ == "__main__":
    what, data, folder, count, recipe, seed = sys.argv[1:]
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background has it ignored
    report.write = lambda folder, parts: None  # pictures take longer than all the rest
    Path(folder).mkdir(parents=True)
    print(json.dumps(getattr(Harness(Path(data), Path(folder), recipe, int(seed)), what)(int(count))))
