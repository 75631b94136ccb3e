"""Tensors of all processes: gathered, averaged, or computed in parts."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from twoviews.distributed.processes import raise_together, rank, rows, size

# torch 2.14 renamed these two
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

Item = TypeVar("Item", Tensor, tuple[Tensor, ...])


def data_parallel(module: nn.Module) -> nn.Module:
    """Return a module whose gradients are the means over all processes: torch's DistributedDataParallel.

    Args:
        module: with equal parameters in all processes. Its buffers are its own business: see `average_running_statistics`.
    """
    if size() == 1:
        return module
    parallel = nn.parallel.DistributedDataParallel
    new = "forward_sync_buffers" in inspect.signature(parallel).parameters  # since torch 2.13
    options: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False, "gradient_as_bucket_view": True}
    return parallel(module, **options)


def gather(x: Tensor) -> Tensor:
    """Return the rows of all processes, in order of rank, with gradients: (n, ...) to (N, ...).

    The gradient of a row is the sum over all processes. Since `data_parallel` averages, the mean of the processes' losses has the
    gradients that one process has for the whole batch.

    Args:
        x: of equal shape in all processes.
    """
    return x if size() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """`gather`, for autograd."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return _gathered(x)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        own = grad.new_empty(len(grad) // size(), *grad.shape[1:])
        _reduce_scatter(own, grad)
        return own


def _gathered(x: Tensor) -> Tensor:
    out = x.new_empty(size() * len(x), *x.shape[1:])
    _all_gather(out, x.contiguous())
    return out


def gather_views(z: Tensor, views: int) -> tuple[Tensor, int]:
    """Return the projections of all processes, and where this process's images begin in each view.

    Args:
        z: (V*n, D): view 1 of the n images of this process, then view 2, ...
        views: V.

    Returns:
        ((V*N, D): view 1 of all N images, then view 2, ...; the position of this process's first image).
    """
    if size() == 1:
        return z, 0
    n = len(z) // views
    every = gather(z.view(views, n, -1).transpose(0, 1))  # (N, V, D)
    return every.transpose(0, 1).flatten(0, 1), rank() * n


def in_parts(function: Callable[[Tensor], Item], x: Tensor) -> Item:
    """Return function(x), of which every process computes its rows.

    Args:
        function: from rows (n, ...) to a tensor, or a tuple of tensors, with as many rows; each row depends on its own row of x
            alone.
        x: (N, ...). With fewer rows than processes, each process computes all.
    """
    if size() == 1 or len(x) < size():
        return function(x)
    found, problem = None, None
    try:
        found = function(x[rows(len(x))])
    except Exception as error:
        problem = error
    raise_together(problem)
    assert found is not None
    if isinstance(found, Tensor):
        return _gather_uneven(found, len(x))
    return tuple(_gather_uneven(part, len(x)) for part in found)


def _gather_uneven(x: Tensor, total: int) -> Tensor:
    """Return the rows of all processes, of which some have one more: (n, ...) to (total, ...)."""
    each = [(number + 1) * total // size() - number * total // size() for number in range(size())]
    padded = x.new_zeros(max(each), *x.shape[1:])
    padded[: len(x)] = x
    return torch.cat([part[:n] for part, n in zip(torch.split(_gathered(padded), max(each)), each, strict=True)])


@torch.no_grad()
def mean(x: Tensor) -> Tensor:
    """Return the mean over all processes, without gradient."""
    if size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / size()


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Set the running statistics of BatchNorm to their means over all processes, in place.

    Each process updates them with its own part of the batch. They change nothing in training; averaged after every step, those of all
    processes are equal, and independent of when a checkpoint is saved.
    """
    if size() == 1:
        return
    found = [buffer for name, buffer in module.named_buffers() if name.rpartition(".")[2] in ("running_mean", "running_var")]
    if found:
        means = mean(torch.cat([buffer.reshape(-1) for buffer in found]))
        parts = [part.view_as(buffer) for part, buffer in zip(torch.split(means, [len(buffer) for buffer in found]), found, strict=True)]
        torch._foreach_copy_(found, parts)
