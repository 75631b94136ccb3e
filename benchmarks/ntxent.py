"""NT-Xent from 512 to 32,768 rows: time and memory of ours, of the plain form, and of lightly's, in one run.

    python benchmarks/ntxent.py [--json FILE] [--small]

Loss and gradient of made projections of 128 dimensions, float32. Each case runs in a process of its own, so that its peak memory is its
own: what it needs beyond the rows themselves. The plain form is the formula as it is written, all logits at once: what ours is too up to
`losses.TILED_FROM` rows. Seconds are the median of two turns, and least to
most. Memory that tensors free is kept for the next ones (as in a run), for all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import peak_gib, said

from twoviews import losses
from twoviews.device import cpu_name
from twoviews.memory import keep_freed_memory, keep_places

WIDTH, TEMPERATURE = 128, 0.5
ROWS = (512, 2048, 8192, 16_384, 32_768)
TURNS, SECONDS = 2, 2.0  # of repetitions in a turn; two at least
ONCE_FROM = 16_384  # rows: one turn, of a minute and more in all
LARGEST = int(0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))  # bytes: what does not fit says so, and is not killed


def one(who: str, rows: int) -> dict[str, Any]:
    """Seconds of a loss with its gradient, and GiB beyond what was there before."""
    keep_freed_memory()
    keep_places()
    with contextlib.suppress(ValueError, OSError):  # where a system has no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (LARGEST, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    z = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0))
    if who == "lightly":
        from lightly.loss import NTXentLoss

        criterion = NTXentLoss(temperature=TEMPERATURE)
        run = lambda x: criterion(*x.chunk(2))  # noqa: E731
    else:
        if who == "plain":
            losses.TILED_FROM = 10**9
        run = lambda x: losses.nt_xent(x, TEMPERATURE)  # noqa: E731
    run(torch.randn(8, WIDTH).requires_grad_()).backward()  # what is imported or chosen once
    before = peak_gib()
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < SECONDS:
        x = z.clone().requires_grad_()
        began = time.perf_counter()
        loss = run(x)
        loss.backward()
        seconds.append(time.perf_counter() - began)
    seconds = seconds[1:]  # the first has its memory mapped
    return {"seconds": seconds, "GiB": peak_gib() - before, "loss": loss.item()}


def main() -> int:
    """Print a Markdown table; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--small", action="store_true", help="up to 2,048 rows: a trial")
    parser.add_argument("--one", nargs=2, metavar=("WHO", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one[0], int(arguments.one[1]))))
        return 0
    versions = f"torch {torch.__version__}, lightly {version('lightly')}"
    print(f"{cpu_name()}, {torch.get_num_threads()} threads; {versions}; {WIDTH} dimensions, float32, loss and gradient\n")
    print("| rows | ours, s | plain, s | lightly, s | ours, GiB | plain, GiB | lightly, GiB |\n|--:|--:|--:|--:|--:|--:|--:|")
    figures: dict[str, Any] = {}
    for rows in ROWS[:2] if arguments.small else ROWS:
        found: dict[str, dict[str, Any]] = {}
        for who in ("ours", "plain", "lightly") * (TURNS if rows < ONCE_FROM else 1):
            done = subprocess.run([sys.executable, __file__, "--one", who, str(rows)], capture_output=True, text=True)
            if done.returncode not in (0, -signal.SIGKILL) and "allocate memory" not in done.stderr:
                raise RuntimeError(f"{who} at {rows} rows: {done.stderr[-500:]}")
            turn = json.loads(done.stdout) if done.returncode == 0 else {}
            before = found.get(who, {})
            found[who] = turn and {**turn, "seconds": before.get("seconds", []) + turn["seconds"]}
        if found["ours"] and found["plain"]:
            assert abs(found["ours"]["loss"] - found["plain"]["loss"]) < 1e-4 * found["plain"]["loss"], "two forms of one loss differ"
        cells = [said(x["seconds"], ".3g") if x else "does not fit" for x in found.values()]
        cells += [f"{x['GiB']:.2f}" if x else "" for x in found.values()]
        print(f"| {rows:,} | {' | '.join(cells)} |", flush=True)
        figures[str(rows)] = found
    if arguments.json:
        arguments.json.write_text(json.dumps({"cpu": cpu_name(), "versions": versions, **figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
