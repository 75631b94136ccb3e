"""A program for several processes: the functions of `twoviews.distributed`, with values that tell who computed them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

from twoviews import distributed


def look_and_write(path: Path) -> bool:
    """Return whether a file exists, and write it."""
    found = path.exists()
    path.touch()
    return found


def main(file: str) -> None:
    before = sys.stdout
    with distributed.group(60):
        rank = distributed.rank()
        x = torch.full((1, 1), float(rank), requires_grad=True)
        gathered = distributed.gather(x)
        (gathered[:, 0] @ torch.tensor([1.0, 2.0, 3.0]) * (rank + 1)).backward()
        z = torch.tensor([[rank * 10.0], [rank * 10.0 + 1]])  # an image in two views
        every, start = distributed.gather_views(z, 2)
        names = [f"{int(value) // 10}{'ab'[int(value) % 10]}" for value in every[:, 0]]
        norm = nn.BatchNorm1d(1)
        norm.running_mean.fill_(rank)
        norm.running_var.fill_(rank)
        distributed.average_running_statistics(norm)
        cached = distributed.first_on_each_machine(lambda: look_and_write(Path(file).parent / "cache"))
        with distributed.Agreement() as agree:
            agreed = [agree(int(rank == 2 and step == 1), 2 * int(rank == 1)) for step in range(3)]
        found = {
            "gather": gathered.detach(),
            "gradient": x.grad,
            "views": (names, start),
            "parts": distributed.in_parts(lambda rows: 2 * rows, torch.arange(7.0)),
            "few": distributed.in_parts(lambda rows: 2 * rows, torch.arange(2.0)),
            "columns": distributed.in_parts(lambda rows: (rows, 2 * rows), torch.arange(4)),
            "mean": float(distributed.mean(torch.tensor(float(rank)))),
            "statistics": [float(norm.running_mean), float(norm.running_var)],
            "first": distributed.on_first(lambda: (f"from {rank}", distributed.size())),
            "agreed": agreed,
            "cached": cached,
            "program": distributed.program(),
            "stdout": sys.stdout is before,
        }
    assert distributed.size() == 1
    assert os.environ["RANK"] == str(rank)
    torch.save(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
