"""How long one waits: for the package, for help, and from a command to its first training step, with a cold cache and a warm one.

    python benchmarks/startup.py [--json FILE]

The first step is that of `twoviews pretrain recipe=demo max_steps=1` (thin32, embedded data): from the start of the process to the row
that the step leaves in `metrics.jsonl`. Cold: no library of ours and nothing of torch's compiler in the cache. The files themselves are in
the system's memory, as they are on a second try: a machine that was just switched on reads them from its disk first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from twoviews.device import cpu_name

REPEATS = 5


def seconds(words: list[str], **environment: str) -> float:
    """Of one process, to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env={**os.environ, **environment})
    return time.perf_counter() - began


def first_step(cache: Path) -> float:
    """Seconds from a command to the row of its first step."""
    with tempfile.TemporaryDirectory() as scratch:
        words = ["-m", "twoviews", "pretrain", "recipe=demo", "max_steps=1", "device=cpu", "probes=knn", f"runs_dir={scratch}"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not any(path.stat().st_size for path in Path(scratch).glob("*/metrics.jsonl")):
            if process.poll() is not None:
                raise RuntimeError(f"twoviews pretrain ended with {process.returncode} before its first step")
            time.sleep(0.01)
        found = time.perf_counter() - began
        process.kill()
        process.wait()
    return found


def main() -> int:
    """Print a Markdown table; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--small", action="store_true", help="once each: a trial")
    arguments = parser.parse_args()
    repeats = 1 if arguments.small else REPEATS
    versions = f"torch {version('torch')}, hydra {version('hydra-core')}"
    print(f"{cpu_name()}; {versions}; median of {repeats} (cold: one), seconds\n\n| what | median | min-max |\n|:--|--:|--:|", flush=True)
    figures: dict[str, list[float]] = {}

    def say(name: str, found: list[float]) -> None:
        figures[name] = found
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f}-{max(found):.2f} |", flush=True)

    say("import twoviews", [seconds(["-c", "import twoviews"]) for _ in range(repeats)])
    say("twoviews --help", [seconds(["-m", "twoviews", "--help"]) for _ in range(repeats)])
    say("twoviews pretrain --help", [seconds(["-m", "twoviews", "pretrain", "--help"]) for _ in range(repeats)])
    say("import torch, which every run has to", [seconds(["-c", "import torch"]) for _ in range(repeats)])
    with tempfile.TemporaryDirectory() as cache:
        say("command to first step, cold", [first_step(Path(cache))])
        say("command to first step, warm", [first_step(Path(cache)) for _ in range(repeats)])
    if arguments.json:
        arguments.json.write_text(json.dumps({"cpu": cpu_name(), "seconds": figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
