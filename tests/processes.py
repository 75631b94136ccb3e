"""Several processes of one run, as torchrun starts them, but without torchrun's seconds of start-up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None  # before a worker is given one of them


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environments(count: int) -> list[dict[str, str]]:
    """Return the environment of each of `count` processes on one machine, each with one thread."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def all_cores() -> None:
    """Give this process the cores that its worker gave up: several processes would take turns on one."""
    if CORES:
        os.sched_setaffinity(0, CORES)


def run(count: int, program: str, folder: Path, *words: str) -> list[dict]:
    """Run a program of this folder's `distributed` in `count` processes, and return what each has stored.

    Args:
        count: number of processes.
        program: its file name; its first argument is the file to store a dict in, with `torch.save`.
        folder: for these files and the output.
        words: further arguments.
    """
    files = [folder / f"{program}-{count}-{rank}.pt" for rank in range(count)]
    path = Path(__file__).parent / "distributed" / program
    started = []
    for file, environment in zip(files, environments(count), strict=True):
        with open(file.with_suffix(".log"), "w") as log:
            argv = [sys.executable, str(path), str(file), *words]
            started.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=all_cores))
    try:
        codes = [process.wait(timeout=280) for process in started]
    finally:
        for process in started:
            process.kill()
    output = "\n".join(file.with_suffix(".log").read_text() for file in files)
    assert codes == [0] * count, output
    return [torch.load(file) for file in files]
