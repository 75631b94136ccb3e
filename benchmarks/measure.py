"""What the benchmarks share: a clock, memory, and rivals that take turns, so that a drift of the machine hits all alike."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it returns)."""
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


def in_turn(rivals: dict[str, Callable[[], Any]], turns: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """(each rival's seconds, turn by turn; what each gave last)."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    given: dict[str, Any] = {}
    for name in [*rivals] * turns:
        took, given[name] = timed(rivals[name])
        seconds[name].append(took)
    return seconds, given


def times(theirs: list[float], ours: list[float]) -> float:
    """How many times as long theirs takes: the median of the turns, each set against ours of the same moment."""
    return median(a / b for a, b in zip(theirs, ours, strict=False))


def said(values: list[float], form: str = ".2f") -> str:
    """Median, and least to most where there are several."""
    return f"{median(values):{form}}" + (f" ({min(values):{form}}-{max(values):{form}})" if len(values) > 1 else "")


def peak_gib(*, reset: bool = False) -> float:
    """Most memory of this process so far, or, with `reset`, from now on; where there is no `/proc`, since it began."""
    try:  # not ru_maxrss first: a child of a large process begins with that one's
        if reset:
            # What was freed is handed back first: else what is measured would be served from it, at no cost. Places that torch keeps
            # (`memory.keep_places`) are not: a reset comes before them.
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
                trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
