"""Runs in forked children that are killed, signalled and starved: `python tests/reliability/harness.py <data> <folder>`.

Each line of its input is a request, [method of `Harness`, recipe, count, seed]; each line of its output is a JSON object.
The process imports torch once and never trains, so that its children start at once and may use autograd.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import tiny as small
import torch
from reliability import faults

from twoviews import config, runs
from twoviews.cli import main
from twoviews.runs import checkpoint

# Five steps an epoch, a probe at every second, a save at every one.
WORDS = ("epochs=2", "probe_every=0.4", "checkpoint_every=0.2", "warmup_epochs=0.6", "log_interval=1")
STEPS = 10
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def fork(words: list[str], log: Path, arm: Callable[[], object] | None = None) -> int:
    """Start a child that runs `pretrain`, and return its process id; its output goes to `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if arm is not None:
            arm()
        code = main(["pretrain", *words])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int, seconds: float = 120) -> int:
    """Return the exit code, or minus the signal; a child that hangs is an error."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("a child hangs")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, a minute at most."""
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)


def digest(path: Path) -> str:
    """Return a hash of everything that two equal runs have in common."""
    metrics = small.without_times(runs.read_metrics(path))
    assert [row["step"] for row in metrics] == list(range(STEPS)), [row["step"] for row in metrics]
    assert not list(path.glob("*.tmp")), list(path.glob("*.tmp"))
    weights = [(path / name).read_bytes() for name in (runs.BACKBONE, "epoch-1.safetensors")]
    state = checkpoint.read(path / runs.LAST)
    tensors = [x.numpy().tobytes() for x in state["method"].values()]
    numbers = json.dumps([metrics, small.without_times(small.summary(path)["evaluations"])]).encode()
    return hashlib.sha256(b"".join([*weights, *tensors, numbers])).hexdigest()


class Harness:
    """A straight run, and disturbed ones that must equal it. Every public method returns what went wrong under `wrong`."""

    def __init__(self, data: Path, folder: Path, recipe: str) -> None:
        self.folder, self.log = folder, folder / "log"
        self.numbers, self.random = itertools.count(), random.Random()
        folder.mkdir(parents=True)
        self.words = small.words(data, folder, *WORDS, recipe=recipe, batch=small.FEW_BATCH)
        digests = []
        for place in (self.new_place(), self.new_place()):  # the first run also warms up; the second one is timed
            began = time.monotonic()
            code, output = self.run(self.into(place))
            assert code == 0, output
            self.seconds = time.monotonic() - began
            digests.append(digest(small.only_run(place)))
        self.expected, again = digests
        assert again == self.expected

    def new_place(self) -> Path:
        """Return a folder for runs that no other run uses."""
        return self.folder / f"runs{next(self.numbers)}"

    def into(self, place: Path) -> list[str]:
        """Return the words of the run with another folder for runs."""
        return [word for word in self.words if not word.startswith("runs_dir=")] + [f"runs_dir={place}"]

    def next(self, place: Path) -> list[str]:
        """Return the words that start the run there, or continue it; a folder that was killed before its first step is left alone."""
        begun = [path for path in runs.folders(place) if (path / runs.MANIFEST).is_file()]
        return [f"resume={begun[-1]}", f"runs_dir={place}"] if begun else self.into(place)

    def run(self, words: list[str], arm: Callable[[], object] | None = None) -> tuple[int, str]:
        """Run a child to its end; return its exit code and its output."""
        code = wait(fork(words, self.log, arm))
        return code, self.log.read_text()

    def finish(self, place: Path) -> list[str]:
        """Continue the run there to its end, and return what is wrong with it."""
        code, output = self.run(self.next(place))
        if code or "Traceback" in output:
            return [f"exit code {code}: {output[-500:]}"]
        (path,) = [path for path in runs.folders(place) if (path / runs.SUMMARY).is_file()]
        try:
            problems = [] if digest(path) == self.expected else ["another result"]
        except AssertionError as error:
            return [f"steps or files: {error}"]
        shutil.rmtree(place)  # hundreds of runs would fill a disk
        return problems

    def kills(self, count: int) -> dict[str, Any]:
        """Send SIGKILL at random instants, up to five times per run. A run that ends before it is killed is not counted."""
        wrong: list[str] = []
        killed = sent = 0
        while killed < count and not wrong:
            place, kills = self.new_place(), 0
            for _ in range(self.random.randint(2, 5)):
                pid = fork(self.next(place), self.log)
                time.sleep(self.random.uniform(0, 0.9 * self.seconds))
                os.kill(pid, signal.SIGKILL)
                code = wait(pid)
                if code != -signal.SIGKILL:
                    wrong += [f"exit code {code}: {self.log.read_text()[-300:]}"] if code else []
                    break
                kills += 1
            wrong += self.finish(place)
            killed, sent = killed + (kills > 0), sent + kills
        return {"runs": killed, "kills": sent, "wrong": wrong}

    def signals(self, count: int) -> dict[str, Any]:
        """Send each signal in turn at a random step, with a save at every third step: the checkpoint of that step is the signal's."""
        wrong = []
        for i in range(count):
            place, number, step = self.new_place(), SIGNALS[i % 3], self.random.randrange(STEPS - 1)
            words = [word.replace("checkpoint_every=0.2", "checkpoint_every=0.6") for word in self.into(place)]
            code, output = self.run(words, partial(faults.signal_at, step, number))
            if code != 128 + number or f"stopped at step {step + 1} of {STEPS}" not in output or "Traceback" in output:
                wrong.append(f"{number.name}: exit code {code}: {output[-300:]}")
                continue
            path = small.only_run(place)
            if checkpoint.load(path)["step"] != step + 1 or len(runs.read_metrics(path)) != step + 1:
                wrong.append(f"{number.name}: no checkpoint of the step that was reported")
            wrong += self.finish(place)
        return {"runs": count, "wrong": wrong}

    def moments(self, count: int) -> dict[str, Any]:
        """Send `count` of the signals during the start, a probe, a save and the evaluation."""
        wrong = []
        for number in SIGNALS[:count]:
            for moment, where in faults.MOMENTS.items():
                place, name = self.new_place(), f"{moment}, {number.name}"
                code, output = self.run(self.into(place), partial(faults.signal_in, *where, number))
                kept = [path for path in runs.folders(place) if (path / runs.LAST).is_file()]
                if code not in (128 + number, -number) or "Traceback" in output:
                    wrong.append(f"{name}: exit code {code}: {output[-300:]}")
                if moment in ("probe", "save") and code != 128 + number:
                    wrong.append(f"{name}: exit code {code}, but the step should have ended")
                if bool(kept) == (moment == "start"):
                    wrong.append(f"{name}: {len(kept)} runs have a checkpoint")
                if kept and "stopped at step" in output:
                    step = int(output.split("stopped at step ")[1].split()[0])
                    if checkpoint.load(kept[0])["step"] != step or len(runs.read_metrics(kept[0])) != step:
                        wrong.append(f"{name}: no checkpoint of the step that was reported")
                wrong += self.finish(place)
        return {"moments": count * len(faults.MOMENTS), "wrong": wrong}

    def interrupts(self, count: int) -> dict[str, Any]:
        """Send two SIGINT in a step that does not end: the second one must not wait for it."""
        wrong = []
        for _ in range(count):
            place, step = self.new_place(), self.random.randrange(1, STEPS)
            mark = place.with_suffix(".mark")
            pid = fork(self.into(place), self.log, partial(faults.endless_step, step, mark))
            wait_until(mark.exists)
            os.kill(pid, signal.SIGINT)
            time.sleep(self.random.uniform(0.02, 0.2))
            os.kill(pid, signal.SIGINT)
            code = wait(pid)
            if code != 130:
                wrong.append(f"exit code {code}: {self.log.read_text()[-300:]}")
            if checkpoint.load(small.only_run(place))["step"] != step:
                wrong.append("the last checkpoint is not that of the step before")
            wrong += self.finish(place)
        return {"runs": count, "wrong": wrong}

    def decodes(self, count: int) -> dict[str, Any]:
        """Send SIGINT to the process group while a tree of images is decoded, which would take minutes."""
        import numpy as np
        from PIL import Image

        wrong, place = [], self.new_place()
        (place / "tree").mkdir(parents=True)
        for i in range(400):
            Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(place / f"tree/{i}.png")
        words = ["recipe=fashion_thin", "dataset=folder", f"data_dir={place / 'tree'}", "image_size=8", "device=cpu", "threads=1"]
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        for _ in range(count):
            self.log.unlink(missing_ok=True)
            pid = fork([*words, f"runs_dir={place / 'runs'}"], self.log, faults.slow_decoding)
            wait_until(lambda: self.log.exists() and "decoding" in self.log.read_text())
            os.killpg(pid, signal.SIGINT)
            code = wait(pid, 30)
            if code != 130 or "Traceback" in self.log.read_text():
                wrong.append(f"exit code {code}: {self.log.read_text()[-300:]}")
            if (place / "runs").exists() or list((place / "cache").rglob("images-*")):
                wrong.append("a run folder or a part of the cache was left behind")
        return {"runs": count, "wrong": wrong}

    def saves(self, count: int) -> dict[str, Any]:
        """Send SIGKILL at eight named points of one save."""
        wrong, loaded = [], []
        for point in faults.POINTS:
            place = self.new_place()
            code, _ = self.run(self.into(place), partial(faults.kill_in_a_save, point))
            if code != -signal.SIGKILL:
                wrong.append(f"{point}: exit code {code}")
            loaded.append(checkpoint.load(small.only_run(place))["step"])
            wrong += [f"{point}: {problem}" for problem in self.finish(place)]
        return {"loaded": loaded, "wrong": wrong}

    def disk(self, count: int) -> dict[str, Any]:
        """Fill the disk from some write on: by a limit on the size of files, and by an error from the system."""
        wrong = []
        for i in range(count):
            place = self.new_place()
            code, output = self.run([*self.into(place), "max_steps=4"])
            assert code == 0, output
            path = small.only_run(place)
            before = (path / runs.LAST).read_bytes()
            arm = partial(faults.limit_file_size, self.random.randrange(len(before))) if i % 2 else faults.no_space
            code, output = self.run(self.next(place), arm)
            expected = ("MB needed", "MB free", str(path / runs.LAST))
            if code != 1 or "Traceback" in output or not all(text in output for text in expected):
                wrong.append(f"{i}: exit code {code}: {output[-300:]}")
            if (path / runs.LAST).read_bytes() != before or list(path.glob("*.tmp")):
                wrong.append(f"{i}: the old checkpoint is gone, or a part of the new one was left behind")
            wrong += self.finish(place)
        return {"cases": count, "wrong": wrong}

    def leaks(self, count: int) -> dict[str, Any]:
        """Measure memory, open files and threads over many epochs of one process."""
        place = self.new_place()
        changed = {"epochs": count, "probe_every": 1, "checkpoint_every": 1, "log_interval": 0}
        words = [word for word in self.into(place) if word.partition("=")[0] not in changed]
        words += [f"{key}={value}" for key, value in changed.items()]
        code = wait(fork(words, self.log, partial(faults.record_usage, place.with_suffix(".usage"))), 1200)
        rows = [list(map(int, line.split())) for line in place.with_suffix(".usage").read_text().splitlines()]
        return {"exit": code, "rows": rows, "wrong": []}


def serve(data: Path, folder: Path) -> None:
    """Answer the requests on standard input until it ends."""
    config.load("pretrain", ["recipe=demo"])  # imports Hydra before the first fork

    @cache
    def harness(recipe: str) -> Harness:
        return Harness(data, folder / recipe, recipe)

    for line in sys.stdin:
        method, recipe, count, seed = json.loads(line)
        try:
            chosen = harness(recipe)
            chosen.random.seed(seed)
            answer = getattr(chosen, method)(count)
        except Exception as error:  # the next request must find this process alive
            answer = {"wrong": [f"{type(error).__name__}: {error}"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background has it ignored
    small.make_fast(setattr)
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
