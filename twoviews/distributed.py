"""What the processes of a run share. For now a single process: the flag that a signal sets and the loop reads between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# SIGHUP: the terminal was closed. SIGUSR1: SLURM can send it before the time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopFlag:
    """`with StopFlag() as stop:` the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 sets `stop.signal`; a second SIGINT interrupts at once.

    A signal can arrive in the middle of a step or a save, so the handler only sets a flag. Only the main thread of a program
    gets signals; in another one the flag stays unset.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal, as shells report it; 0 without a signal."""
        return 128 + self.signal if self.signal is not None else 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # not os._exit: the process may be a notebook
        self.signal = number

    def __enter__(self) -> StopFlag:
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            before = signal.getsignal(number)
            if before is None or (number == signal.SIGHUP and before is signal.SIG_IGN):
                continue  # None: a handler that Python could not restore; ignored: by nohup, which must stay so
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
