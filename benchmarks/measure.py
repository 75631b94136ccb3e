"""What the benchmarks share: a clock, peak memory, and contenders that run in turns.

The speed of a machine drifts. In turns, the drift affects every contender in the same way.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any


def parser(description: str | None, small: str) -> ArgumentParser:
    """Return the command line of a benchmark, with `--json` and `--small`.

    Args:
        description: the docstring of the benchmark.
        small: what `--small` leaves out.
    """
    options = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options.add_argument("--small", action="store_true", help=f"a quick trial, whose figures mean nothing: {small}")
    return options


def save(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures as JSON, if a file was asked for."""
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def in_turn(contenders: dict[str, Callable[[], Any]], turns: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the seconds of each contender, one per turn, and its last result."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, Any] = {}
    for name in [*contenders] * turns:
        took, results[name] = timed(contenders[name])
        seconds[name].append(took)
    return seconds, results


def times(theirs: list[float], ours: list[float]) -> float:
    """Return how many times as long theirs takes: the median of the ratios of each turn."""
    return median(a / b for a, b in zip(theirs, ours, strict=False))


def median_and_range(values: list[float], form: str = ".2f") -> str:
    """Return `median (smallest-largest)`, or the single value."""
    return f"{median(values):{form}}" + (f" ({min(values):{form}}-{max(values):{form}})" if len(values) > 1 else "")


def peak_gib(*, reset: bool = False) -> float:
    """Return the peak memory of this process in GiB.

    Args:
        reset: start measuring now; without `/proc` the peak is always that of the whole process.
    """
    try:  # not ru_maxrss first: it starts at the peak of the parent process
        if reset:
            # Freed memory is first returned to the system: otherwise what is measured would use it for nothing.
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
                trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
