"""Whether other programs use the cores that this process may use: two threads that wait for each other then lose much of their speed."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twoviews.device import Machine

STAT = Path("/proc/stat")  # of Linux; elsewhere nothing is noticed
AFTER, SHARE = 10.0, 0.25  # seconds until the first answer; share of the cores' time that others must use
GLANCE = 0.15  # seconds that a command looks before it starts


class Contention:
    """Count the time of this process's cores from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self, after: float = AFTER) -> float | None:
        """Return the share of the cores' time that other programs used, in [0, 1]; None before so many seconds, or where it is unknown."""
        if self._start is None or (now := self._now()) is None:
            return None
        wall, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, min(1.0, (busy - own) / (wall * len(_cores())))) if wall >= after else None

    def advice(self) -> str:
        """Return a line for a user whose run shares its cores, else an empty text."""
        share = self.share()
        if share is None or share < SHARE or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
            return ""
        return f"other programs use {100 * share:.0f} % of these cores: threads=polite is faster beside them and changes no result"

    def _now(self) -> tuple[float, float, float] | None:
        """Return wall-clock time, time in which the cores worked, and that of this process, in seconds."""
        names = {f"cpu{core}" for core in _cores()}
        try:
            found = [line.split() for line in STAT.read_text().splitlines()]
            counts = [[int(value) for value in words[1:9]] for words in found if words and words[0] in names]
            idle = sum(count[3] + count[4] for count in counts)
        except (OSError, ValueError, IndexError):  # another system
            return None
        if len(counts) != len(names):
            return None
        busy = (sum(map(sum, counts)) - idle) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for a disk
        return time.monotonic(), busy, time.process_time()


def busy_now() -> float:
    """Return the share of the cores' time that other programs use in this moment; 0 where it is unknown, or there is one core."""
    if len(_cores()) < 2:
        return 0.0
    watch = Contention()
    time.sleep(GLANCE)
    return watch.share(0.0) or 0.0


def contention(machine: "Machine") -> Contention | None:
    """Return what notices other programs on the cores of a run, if its threads wait for each other there."""
    from twoviews import distributed  # imports torch, which a progress bar does not need

    return Contention() if machine.device.type == "cpu" and machine.threads > 1 and distributed.size() == 1 else None


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
