"""The processes of a run: joining them, their ranks, and what only the first of them does."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

FOREVER = timedelta(days=365)  # the others wait so long while the first process evaluates or decodes images
LOST = ("gloo", "pair closure", "Connection closed", "Connection reset", "Timed out", "NCCL")  # in errors of torch's communication
GRACE = 4.0  # seconds for all processes to say that they lost another one
LONGER = 60.0  # seconds that NCCL waits beyond `wait_seconds`: it ends the process without an error that Python sees


@dataclass(frozen=True)
class Group:
    """The processes of a run.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        local_rank, local_size: the same among those of this machine.
        started: number of processes, inside `alone` too.
        prompt: a group for flags, which travel between CPUs.
        patient: a group in which processes wait for the first one without a limit.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    started: int = 1
    prompt: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None


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


def prompt() -> dist.ProcessGroup | None:
    """Return the group for flags; None in a single process."""
    return _group.prompt


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
        ValueError: if the environment is not torchrun's, or torch.distributed is in use already.
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
    if dist.is_initialized():  # by the program that calls us, or by a run that failed
        raise ValueError("torch.distributed is in use already: call destroy_process_group() before, or start the program again")
    store = dist.PrefixStore(f"twoviews {_joined}", next(dist.rendezvous("env://"))[0])
    _joined += 1
    backend, longer = ("cpu:gloo,cuda:nccl", LONGER) if torch.cuda.is_available() else ("gloo", 0.0)
    limit = timedelta(seconds=wait_seconds)
    with contextlib.ExitStack() as stack:
        if number:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=limit + timedelta(seconds=longer))
        groups: list[Any] = [dist.new_group(backend="gloo", timeout=timeout) for timeout in (limit, FOREVER)]
        _group = Group(number, count, local, here, count, *groups)
        try:
            with _naming_lost_processes(store, wait_seconds):
                yield
            dist.destroy_process_group()  # important: not after an error, because NCCL would wait for the other processes
        finally:
            _group = Group()


@contextlib.contextmanager
def _naming_lost_processes(store: dist.Store, wait_seconds: float) -> Iterator[None]:
    """Turn an error of communication into ProcessLost. Every process that is left says so in the store; the others are lost."""
    number, count = _group.rank, _group.size
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or (type(error) is RuntimeError and any(words in str(error) for words in LOST))):
            raise
        lost, left = "another process", [number]
        with contextlib.suppress(RuntimeError):  # the store is gone if torchrun on the first machine has ended
            store.set(f"left {number}", "")
            time.sleep(GRACE)  # meanwhile torchrun sees the process that failed first, and ends this one
            left = [other for other in range(count) if store.check([f"left {other}"])]
            lost = f"the process of rank {', '.join(str(other) for other in range(count) if other not in left)}"
        if len(left) == count:  # none is lost: they cannot communicate
            raise
        if number > min(left):
            time.sleep(GRACE)  # one message is enough
        reason = " ".join(str(error).split())[:100]
        raise ProcessLost(
            f"{lost} ended, or did not answer for {wait_seconds:g} s; the last checkpoint is kept: resume=<run> continues it ({reason})"
        ) from error


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
    """Return in every process what `work` returns in the first one, or raise what it raises; the others wait for it.

    Args:
        work: what it returns is pickled, and holds no tensors of a GPU.

    Raises:
        Exception: that of `work`.
    """
    if _group.size == 1:
        return work()
    answer: tuple[bool, Any] = (True, None)
    if _group.rank == 0:
        try:
            with alone():
                answer = True, work()
        except Exception as error:
            answer = False, error
    found = [answer]
    dist.broadcast_object_list(found, 0, group=_group.patient)
    succeeded, result = found[0]
    if not succeeded:
        raise result
    return result  # type: ignore[no-any-return]


def raise_together(error: Exception | None, *, patient: bool = False) -> None:
    """Raise in every process if there is an error in any of them: the own one, or one that names the first process that has one.

    Args:
        error: of this process, if it has one.
        patient: wait for the others without a limit.

    Raises:
        Exception: the own one.
        ValueError: if only other processes have one.
    """
    texts: list[Any] = [None] * _group.size
    text = None if error is None else " ".join(str(error).split())
    dist.all_gather_object(texts, text, group=_group.patient if patient else _group.prompt)
    if error is not None:
        raise error
    if failed := [f"{text} (process of rank {other})" for other, text in enumerate(texts) if text is not None]:
        raise ValueError(failed[0])


def first_on_each_machine(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, done by one process of each machine before the others: they find its files in a cache."""
    if _group.size == 1:
        return work()
    result, problem = None, None
    for here in (True, False):
        if (_group.local_rank == 0) == here:
            try:
                result = work()
            except Exception as error:
                problem = error
        raise_together(problem, patient=True)
    return result  # type: ignore[return-value]
