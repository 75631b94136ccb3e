"""Parts of momentum methods: the EMA copy, the queue of keys, and MoCo's keys, computed in another order than the queries."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews import distributed
from twoviews.losses.precision import exact, without_autocast

Net = TypeVar("Net", bound=nn.Module)


def momentum_copy(module: Net) -> Net:
    """Return a copy without gradients, in train mode as in MoCo: its BatchNorm uses the statistics of its own batch.

    Args:
        module: not changed.
    """
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, decay: float | Tensor) -> None:
    """Set each parameter of target to decay x target + (1 - decay) x online (He et al. 2020, eq. 2).

    Buffers do not change: the copy's running statistics come from its own forward passes.

    Args:
        target: the momentum copy.
        online: the trained module, with the same parameters in the same order.
        decay: MoCo's m, in [0, 1]: with 0 target becomes online, with 1 it does not change. A number, or a 0-dim tensor of
            `cosine_ramp`, so that the program need not wait for the device.
    """
    copies: list[Tensor] = list(target.parameters())
    trained: list[Tensor] = list(online.parameters())
    if isinstance(decay, Tensor):
        torch._foreach_add_(copies, list(torch._foreach_mul(torch._foreach_sub(trained, copies), 1 - decay)))
    else:
        torch._foreach_lerp_(copies, trained, 1 - decay)


def cosine_ramp(start: float, end: float, progress: Tensor) -> Tensor:
    """Return a value that goes from start to end as half a cosine (BYOL, Grill et al. 2020, section 3.3, for the EMA decay).

    Args:
        start, end: values at progress 0 and 1.
        progress: 0-dim tensor in [0, 1], or a float tensor of any shape.
    """
    return end - (end - start) * (torch.cos(torch.pi * progress) + 1) / 2


def check_queue(size: int | None, least: int, images: int) -> None:
    """Refuse a queue that cannot hold the keys of a step, or would always hold an old key of the query's own image.

    Args:
        size: K.
        least: keys of a step.
        images: in the training split.

    Raises:
        ValueError: if it is too short or too long.
    """
    if size is None or not least <= size <= images:
        raise ValueError(f"queue_size={'null' if size is None else size}: expected {least} (the keys of a step) to {images} (the images)")


class Queue(nn.Module):
    """The last K keys (He et al. 2020, section 3.2). New keys overwrite the oldest. Keys and cursor are buffers: checkpoints store them.

    Args:
        size: K.
        dim: D of a key.
    """

    keys: Tensor
    cursor: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))  # random unit vectors until real keys replace them
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write keys (N, D) of unit length, N <= K, at the cursor. After the last row of the queue comes the first."""
        size = len(self.keys)
        rows = (self.cursor + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, rows, keys.detach().to(self.keys.dtype))
        self.cursor.copy_((self.cursor + len(keys)) % size)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Return the key with the largest cosine similarity to each row of z: (N, D) to (N, D)."""
        with without_autocast(z.device):
            return self.keys[(F.normalize(z.to(self.keys.dtype), dim=1) @ self.keys.T).argmax(1)]


def spread_order(n: int, splits: int, device: torch.device) -> Tensor:
    """Return an order of n rows in which each of S equal parts holds rows from all S old parts: MoCo's shuffle, but fixed.

    The batch is already in random order, so a fixed order mixes as well as a random one and needs no state. The inverse is
    `spread_order(n, n // splits)`.

    Args:
        n: rows, a multiple of `splits`.
        splits: S.
        device: of the result.

    Returns:
        (n,) int64.
    """
    return torch.arange(n, device=device).view(splits, -1).T.reshape(-1)


@torch.no_grad()
def shuffled_keys(encoder: nn.Module, x: Tensor, splits: int) -> Tensor:
    """Return MoCo's keys of the images of all processes, (N, D) of unit length, in the order of the images.

    The sub-batches of keys hold other images than those of queries, or BatchNorm would give away which belong together.

    Args:
        encoder: the momentum copy, with BatchNorm over sub-batches.
        x: (n, C, H, W) of this process.
        splits: S of all processes.
    """
    x = distributed.gather(x)  # (N, C, H, W)
    n, splits = len(x), max(splits, distributed.size())
    z = encoder(x[spread_order(n, splits, x.device)[distributed.rows(n)]])
    keys = distributed.gather(F.normalize(exact(z), dim=1))
    return keys[spread_order(n, n // splits, x.device)]
