"""A training step beside other busy processes, by how long idle OpenMP threads wait actively.

    python benchmarks/busy.py [--json FILE] [--busy 0,1] [--turns 2] [--small]

Each time is the median of steps of thin32 (recipe=simclr_cifar10, batch 256 x 2, generated images), each in a process of its own. The
settings run in turns. `ours` is what `twoviews` sets, `torch` the library's own behaviour. Only libgomp, which torch uses on Linux,
reads these variables.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from measure import parser, save
from ours import build_run, seconds_per_step

from twoviews.cli import SPIN

SETTINGS = {"torch": {}, "ours": {"GOMP_SPINCOUNT": SPIN}, "passive": {"OMP_WAIT_POLICY": "passive"}}


def step(settings: dict[str, str], small: bool) -> float:
    """Return the milliseconds of a step in a process with these environment variables."""
    environ = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    words = [sys.executable, __file__, "--one", *["--small"] * small]
    done = subprocess.run(words, env=environ | settings, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def one(small: bool) -> float:
    """Return the milliseconds of a step in this process."""
    cfg, parts = build_run("thin32", 32 if small else 256, "simclr", count=1024)
    with tempfile.TemporaryDirectory() as scratch:
        train_steps = seconds_per_step(cfg, parts, Path(scratch))
        train_steps(2)
        return 1000 * median(train_steps(5) for _ in range(1 if small else 5))


def main() -> None:
    options = parser(__doc__, "one turn of few steps")
    options.add_argument("--busy", default="0,1", help="numbers of other busy processes")
    options.add_argument("--turns", type=int, default=2)
    options.add_argument("--one", action="store_true", help="time one step in this process")
    words = options.parse_args()
    if words.one:
        print(one(words.small))
        return
    figures: dict[str, dict[str, list[float]]] = {}
    print("| other busy processes | " + " | ".join(f"{name}, ms" for name in SETTINGS) + " |\n|--:|" + "--:|" * len(SETTINGS))
    for count in map(int, words.busy.split(",")):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            found: dict[str, list[float]] = {name: [] for name in SETTINGS}
            for name in [*SETTINGS] * (1 if words.small else words.turns):
                found[name].append(step(SETTINGS[name], words.small))
        finally:
            for other in others:
                other.kill()
        figures[str(count)] = found
        print(
            f"| {count} | " + " | ".join(f"{median(values):.0f} ({min(values):.0f}-{max(values):.0f})" for values in found.values()) + " |",
            flush=True,
        )
    save(words.json, figures)


if __name__ == "__main__":
    main()
