"""How long a user waits: for help, for an error, from a command to its first training step, and from Ctrl-C to the end.

    python benchmarks/startup.py [--json FILE] [--small]

The first step is that of `twoviews pretrain recipe=demo max_steps=1` (thin32, bundled data): from the start of the process to the row
of that step in `metrics.jsonl`. Cold: no compiled library of ours and nothing of torch's compiler in the cache. The files themselves
are in the system's memory; a machine that was just switched on reads them from its disk first. After Ctrl-C a run finishes its step
and writes a checkpoint.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from measure import parser, save

from twoviews import runs
from twoviews.device import cpu_name

REPEATS = 5
DEMO = ["-m", "twoviews", "pretrain", "recipe=demo", "device=cpu", "probes=knn"]


def seconds(words: list[str], code: int = 0) -> float:
    """Return the seconds of one process, from start to end.

    Raises:
        RuntimeError: if its exit code is not `code`.
    """
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}, expected {code}: {done.stderr[-300:]}")
    return took


@contextmanager
def training(cache: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Path, float]]:
    """Start the demo and wait for its first step. Give the process, its run folder, and the seconds until then."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
        command = [sys.executable, *DEMO, f"runs_dir={scratch}", *words]
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (written := [path for path in Path(scratch).glob(f"*/{runs.METRICS}") if path.stat().st_size]):
            if process.poll() is not None:
                raise RuntimeError(f"twoviews pretrain ended with {process.returncode} before its first step")
            time.sleep(0.01)
        took = time.perf_counter() - began
        try:
            yield process, written[0].parent, took
        finally:
            process.kill()
            process.wait()


def first_step(cache: Path) -> float:
    """Return the seconds from a command to the row of its first step."""
    with training(cache, "max_steps=1") as (_, _, took):
        return took


def in_use(cache: Path, repeats: int) -> list[float]:
    """Return the seconds until a second command on a run in use is rejected."""
    with training(cache, "checkpoint_every=0.02") as (_, run, _):
        return [seconds(["-m", "twoviews", "evaluate", f"run={run}"], code=2) for _ in range(repeats)]


def interrupted(cache: Path) -> float:
    """Return the seconds from Ctrl-C to the end of a run, with its step finished and its checkpoint written."""
    with training(cache, "checkpoint_every=0.02") as (process, run, _):
        process.send_signal(signal.SIGINT)
        began = time.perf_counter()
        code = process.wait()
        took = time.perf_counter() - began
        if code != 128 + signal.SIGINT or not (run / runs.LAST).is_file():
            raise RuntimeError(f"after Ctrl-C: exit code {code}, {'with' if (run / runs.LAST).is_file() else 'without'} a checkpoint")
    return took


def main() -> int:
    """Print a Markdown table; write JSON if asked."""
    arguments = parser(__doc__, "each once").parse_args()
    repeats = 1 if arguments.small else REPEATS
    versions = f"torch {version('torch')}, hydra {version('hydra-core')}"
    print(f"{cpu_name()}; {versions}; median of {repeats} (cold: one), seconds\n\n| what | median | min-max |\n|:--|--:|--:|", flush=True)
    figures: dict[str, list[float]] = {}

    def report(name: str, values: list[float]) -> None:
        figures[name] = values
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f}-{max(values):.2f} |", flush=True)

    def process(name: str, words: list[str], code: int = 0) -> None:
        report(name, [seconds(words, code) for _ in range(repeats)])

    process("import twoviews", ["-c", "import twoviews"])
    process("twoviews --help", ["-m", "twoviews", "--help"])
    process("twoviews pretrain --help", ["-m", "twoviews", "pretrain", "--help"])
    process("twoviews pretrain --cfg job", ["-m", "twoviews", "pretrain", "--cfg", "job"])
    process("a wrong word is rejected: twoviews pretrain epoch=1", ["-m", "twoviews", "pretrain", "epoch=1"], code=2)
    process("import torch, which every run needs", ["-c", "import torch"])
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        report("command to first step, cold", [first_step(cache)])
        report("command to first step, warm", [first_step(cache) for _ in range(repeats)])
        report("a command on a run in use is rejected", in_use(cache, repeats))
        report("Ctrl-C to the end of the run", [interrupted(cache) for _ in range(repeats)])
    save(arguments.json, {"cpu": cpu_name(), "seconds": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
