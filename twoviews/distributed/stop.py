"""When to stop: the flag that a signal sets, and decisions that all processes take at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from twoviews.distributed.processes import prompt, size

# SIGHUP: the terminal was closed. SIGUSR1: SLURM can send it before the time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Agreement:
    """Decisions that all processes take at the same step: `with Agreement() as agree: stop, save = agree(own_stop, own_save)`.

    Each process says what it wants, and all get the largest values. With several processes the answer belongs to the call before,
    so that no step waits for it.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any] | None = None

    def __enter__(self) -> Agreement:
        return self

    def __call__(self, *wishes: int, now: bool = False) -> list[int]:
        """Return the largest of each wish over all processes, of this call too if `now`."""
        if size() == 1:
            return list(wishes)
        answer = self._answer() or [0] * len(wishes)
        values = torch.tensor(wishes)
        self._pending = values, dist.all_reduce(values, dist.ReduceOp.MAX, group=prompt(), async_op=True)
        return [max(pair) for pair in zip(answer, self._answer(), strict=True)] if now else answer

    def _answer(self) -> list[int]:
        if self._pending is None:
            return []
        values, work = self._pending
        work.wait()
        self._pending = None
        return values.tolist()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._answer()


class StopFlag:
    """`with StopFlag() as stop:` the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 sets `stop.signal`; a second SIGINT interrupts at once.

    A signal can arrive in the middle of a step or a save, so the handler only sets a flag. Only the main thread of a program
    gets signals; in another one the flag stays unset. Under torchrun a second SIGINT changes nothing: torchrun passes on the
    terminal's.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT and size() == 1:
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
