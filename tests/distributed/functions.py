"""A program for several processes: the functions of `twoviews.distributed`, with values that tell who computed them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contract
import torch
from torch import Tensor, nn

from twoviews import build, device, distributed
from twoviews.models.batchnorm import sync_batchnorm


def look_and_write(path: Path) -> bool:
    """Return whether a file exists, and write it, but so late that processes which work at the same time do not find it."""
    found = path.exists()
    time.sleep(0.5)
    path.touch()
    return found


def tensors(rank: int) -> dict[str, Any]:
    """Return what the functions on tensors give."""
    x = torch.full((1, 1), float(rank), requires_grad=True)
    gathered = distributed.gather(x)
    (gathered[:, 0] @ torch.tensor([1.0, 2.0, 3.0]) * (rank + 1)).backward()
    z = torch.tensor([[rank * 10.0], [rank * 10.0 + 1]])  # an image in two views
    every, start = distributed.gather_views(z, 2)
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(rank)
    norm.running_var.fill_(rank)
    distributed.average_running_statistics(norm)
    return {
        "gather": gathered.detach(),
        "gradient": x.grad,
        "views": ([f"{int(value) // 10}{'ab'[int(value) % 10]}" for value in every[:, 0]], start),
        "parts": distributed.in_parts(lambda rows: 2 * rows, torch.arange(7.0)),
        "few": distributed.in_parts(lambda rows: 2 * rows, torch.arange(2.0)),
        "columns": distributed.in_parts(lambda rows: (rows, 2 * rows), torch.arange(4)),
        "mean": float(distributed.mean(torch.tensor(float(rank)))),
        "statistics": [float(norm.running_mean), float(norm.running_var)],
    }


def decisions(rank: int, file: str) -> dict[str, Any]:
    """Return what the processes agree on, and what the first of them does."""
    with distributed.Agreement() as agree:
        agreed = [agree(int(rank == 2 and step in (1, 3)), 2 * int(rank == 1), now=step == 3) for step in range(4)]
    return {
        "first": distributed.on_first(lambda: (f"from {rank}", distributed.size())),
        "agreed": agreed,
        "cached": distributed.first_on_each_machine(lambda: look_and_write(Path(file).parent / "cache")),
        "program": distributed.program(),
    }


def errors(rank: int) -> list[str]:
    """Return the error of each process where the third one fails, and where the first one fails alone."""

    def fail(x: Tensor) -> Tensor:
        if rank == 2:
            raise ArithmeticError("no features")
        return x

    works: list[Callable[[], Any]] = [lambda: distributed.in_parts(fail, torch.zeros(3)), lambda: distributed.on_first(lambda: 1 // rank)]
    found = []
    for work in works:
        try:
            work()
        except (ArithmeticError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def compiled_gradient(rank: int) -> float:
    """Return the sum of the gradients of a method that is compiled as on a GPU: into one graph, with what it gathers."""
    compile = torch.compile
    torch.compile = lambda module, **options: compile(module, backend="eager", dynamic=False, fullgraph=True)  # type: ignore[assignment]
    method = contract.tiny("moco", batch_size=6, bn_splits=3, queue_size=24).train()
    sync_batchnorm(method.backbone)
    forward = build.make_forward(device.Machine(torch.device("cuda"), 1, "fp32", True), method, 2)
    views = [x[distributed.rows(6)] for x in torch.randn(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    forward(views, None, torch.zeros(()))[0].backward()
    return float(sum(p.grad.abs().sum() for p in method.parameters() if p.grad is not None))


def main(file: str) -> None:
    before = sys.stdout
    with distributed.group(60):
        rank = distributed.rank()
        found = {**tensors(rank), **decisions(rank, file), "errors": errors(rank), "compiled": compiled_gradient(rank)}
        found["stdout"] = sys.stdout is before
    assert distributed.size() == 1
    assert os.environ["RANK"] == str(rank)
    torch.save(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
