"""NT-Xent from 512 to 32,768 rows: seconds and memory of TwoViews, of the plain formula and of lightly, in one run.

    python benchmarks/ntxent.py [--json FILE] [--small]

Loss and gradient of generated projections of 128 dimensions, float32. Each case runs in a process of its own, so that its peak memory
is its own: what it needs beyond the rows themselves. The plain formula computes all logits at once. So does TwoViews up to
`losses.TILED_FROM` rows. Seconds are the median of two turns, with the smallest and the largest. All let the C library
keep freed memory, as a run does.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from argparse import SUPPRESS
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from measure import median_and_range, parser, peak_gib, save, timed
from torch import Tensor

from twoviews import losses
from twoviews.device import cpu_name, keep_freed_memory

WIDTH, TEMPERATURE = 128, 0.5
ROWS = (512, 2048, 8192, 16_384, 32_768)
TURNS, SECONDS = 2, 2.0  # a turn repeats the case for so many seconds, at least twice
ONE_TURN_FROM = 16_384  # rows
LARGEST = int(0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))  # bytes a case may allocate; more is reported


def loss_function(name: str) -> Callable[[Tensor], Tensor]:
    """Return the loss of both views' projections (2N, D)."""
    if name == "lightly":
        from lightly.loss import NTXentLoss

        criterion = NTXentLoss(temperature=TEMPERATURE)
        return lambda z: criterion(*z.chunk(2))
    if name == "plain":
        losses.TILED_FROM = 10**9
    return lambda z: losses.nt_xent(z, TEMPERATURE)


def measure(name: str, rows: int) -> dict[str, Any]:
    """Return the seconds of loss and gradient, and the GiB that they need beyond what was there before."""
    keep_freed_memory()
    with contextlib.suppress(ValueError, OSError):  # where the system has no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (LARGEST, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    z = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0))
    function = loss_function(name)
    function(torch.randn(8, WIDTH).requires_grad_()).backward()  # what is imported or chosen once
    before = peak_gib()
    seconds: list[float] = []

    def run(x: Tensor) -> Tensor:
        loss = function(x)
        loss.backward()
        return loss

    while len(seconds) < 2 or sum(seconds) < SECONDS:
        x = z.clone().requires_grad_()
        took, loss = timed(lambda x=x: run(x))
        seconds.append(took)
    return {"seconds": seconds[1:], "GiB": peak_gib() - before, "loss": loss.item()}  # without the first, which maps memory


def main() -> int:
    """Print a Markdown table; write JSON if asked."""
    options = parser(__doc__, "512 rows, one turn")
    options.add_argument("--one", nargs=2, metavar=("NAME", "ROWS"), help=SUPPRESS)
    arguments = options.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return 0
    versions = f"torch {torch.__version__}, lightly {version('lightly')}"
    print(f"{cpu_name()}, {torch.get_num_threads()} threads; {versions}; {WIDTH} dimensions, float32, loss and gradient\n")
    print("| rows | TwoViews, s | plain, s | lightly, s | TwoViews, GiB | plain, GiB | lightly, GiB |\n|--:|--:|--:|--:|--:|--:|--:|")
    figures: dict[str, Any] = {"cpu": cpu_name(), "versions": versions}
    turns = 1 if arguments.small else TURNS
    for rows in ROWS[:1] if arguments.small else ROWS:
        results: dict[str, dict[str, Any]] = {}
        for name in ("ours", "plain", "lightly") * (turns if rows < ONE_TURN_FROM else 1):
            done = subprocess.run([sys.executable, __file__, "--one", name, str(rows)], capture_output=True, text=True)
            if done.returncode not in (0, -signal.SIGKILL) and "allocate memory" not in done.stderr:
                raise RuntimeError(f"{name} at {rows} rows: {done.stderr[-500:]}")
            turn = json.loads(done.stdout) if done.returncode == 0 else {}
            before = results.get(name, {})
            results[name] = turn and {**turn, "seconds": before.get("seconds", []) + turn["seconds"]}
        ours, plain = results["ours"], results["plain"]
        if ours and plain:
            assert abs(ours["loss"] - plain["loss"]) < 1e-4 * plain["loss"], "the two forms of the loss differ"
        cells = [median_and_range(x["seconds"], ".3g") if x else "does not fit" for x in results.values()]
        cells += [f"{x['GiB']:.2f}" if x else "" for x in results.values()]
        print(f"| {rows:,} | {' | '.join(cells)} |", flush=True)
        figures[str(rows)] = results
    save(arguments.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
