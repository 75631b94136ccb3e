"""The processes of a run: joining them, their ranks, and what only the first of them does."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

FOREVER = timedelta(days=365)  # the others wait so long while the first process evaluates or decodes images
GRACE = 2.0  # seconds for all processes to say that they lost another one


@dataclass(frozen=True)
class Group:
    """The processes of a run.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        local_rank, local_size: the same among those of this machine.
        started: number of processes, inside `alone` too.
        control: for flags and Python objects, which travel between CPUs; None in a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    started: int = 1
    control: dist.ProcessGroup | None = None


class ProcessLost(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


_group = Group()
_joined = 0  # groups that this process has joined: each needs names of its own in torchrun's store


def rank() -> int:
    """Return the number of this process, from 0."""
    return _group.rank


def size() -> int:
    """Return the number of processes."""
    return _group.size


def local_rank() -> int:
    """Return the number of this process on its machine: the number of its GPU."""
    return _group.local_rank


def local_size() -> int:
    """Return the number of processes on this machine."""
    return _group.local_size


def control() -> dist.ProcessGroup | None:
    """Return the group for flags and Python objects; None in a single process."""
    return _group.control


def first() -> bool:
    """Return whether this process prints and writes."""
    return _group.rank == 0


def program() -> str:
    """Return the words that start TwoViews with as many processes."""
    if _group.started == 1:
        return "twoviews"
    machines = _group.started // _group.local_size
    return f"torchrun {f'--nnodes={machines} ' * (machines > 1)}--nproc-per-node={_group.local_size} -m twoviews"


def rows(n: int) -> slice:
    """Return which of n rows this process computes: consecutive ones, as many as any other process has, or one more."""
    return slice(_group.rank * n // _group.size, (_group.rank + 1) * n // _group.size)


@contextlib.contextmanager
def group(wait_seconds: float) -> Iterator[None]:
    """Join the processes that torchrun started; leave them at the end. Only the first one's standard output is shown.

    Args:
        wait_seconds: how long a step waits for the other processes before this one ends with an error.

    Raises:
        ProcessLost: if another process ended or did not answer; it says which.
        ValueError: if the environment is not torchrun's.
    """
    global _group, _joined
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or _group.size > 1:
        yield
        return
    try:
        number, local, here = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    except KeyError as error:
        raise ValueError(f"WORLD_SIZE={count} without {error.args[0]}: start several processes with torchrun") from None
    store = dist.PrefixStore(f"twoviews {_joined}", next(dist.rendezvous("env://"))[0])
    _joined += 1
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    options: dict[str, Any] = {"store": store, "rank": number, "world_size": count, "timeout": timedelta(seconds=wait_seconds)}
    with contextlib.ExitStack() as stack:
        if number:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        dist.init_process_group(backend, **options)
        try:
            control: Any = dist.new_group(backend="gloo", timeout=FOREVER)
            _group = Group(number, count, local, here, count, control)
            with _naming_lost_processes(store, wait_seconds):
                yield
        finally:
            _group = Group()
            dist.destroy_process_group()


@contextlib.contextmanager
def _naming_lost_processes(store: dist.Store, wait_seconds: float) -> Iterator[None]:
    """Turn an error of communication into ProcessLost. Every process that is left says so in the store; the others are lost."""
    number, count = _group.rank, _group.size
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        lost = ""
        with contextlib.suppress(RuntimeError):  # the store is gone if torchrun on the first machine has ended
            store.set(f"left {number}", "")
            time.sleep(GRACE)  # meanwhile torchrun sees the process that failed first, and ends this one
            silent = [str(other) for other in range(count) if not store.check([f"left {other}"])]
            lost = f" {', '.join(silent)}" if silent else ""
        raise ProcessLost(
            f"rank {number}: the process of rank{lost or ' (unknown)'} ended, or did not answer for {wait_seconds:g} s; "
            "the last checkpoint is kept: resume=<run> continues it"
        ) from None


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Compute inside as a single process: for what the first process does while the others wait, or have ended."""
    global _group
    before = _group
    _group = replace(before, rank=0, size=1)
    try:
        yield
    finally:
        _group = before


def on_first(work: Callable[[], Result]) -> Result:
    """Return in every process what `work` returns in the first one; the others wait for it. It must be picklable."""
    if _group.size == 1:
        return work()
    result = None
    if _group.rank == 0:
        with alone():
            result = work()
    return _broadcast(result)  # type: ignore[no-any-return]


def _broadcast(value: Any) -> Any:
    """Return the first process's value."""
    payload = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8) if _group.rank == 0 else torch.empty(0, dtype=torch.uint8)
    length = torch.tensor([len(payload)])
    dist.broadcast(length, 0, group=_group.control)
    payload = payload if _group.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(payload, 0, group=_group.control)
    return value if _group.rank == 0 else pickle.loads(payload.numpy().tobytes())


def first_on_each_machine(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, done by one process of each machine before the others: they find its files in a cache."""
    if _group.size == 1:
        return work()
    result = work() if _group.local_rank == 0 else None
    dist.barrier(group=_group.control)
    return work() if result is None else result
