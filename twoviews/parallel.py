"""What the processes of a run agree on. With one process: the flag that a signal sets and the loop reads between steps."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

# SIGHUP: the terminal went away; SIGUSR1: what SLURM is asked to send before the time is up.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopFlag:
    """`with StopFlag() as stop:` the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 sets `stop.signal`; a second SIGINT leaves at once.

    Signals arrive between two bytecodes, in the middle of a step or a save, so the handler only sets a flag.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports it; 0 without a signal."""
        return 128 + self.signal if self.signal is not None else 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.signal = number

    def __enter__(self) -> StopFlag:
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # under nohup a run outlives its terminal
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
