"""Parts of momentum methods: the EMA copy, the queue of keys, and the order in which keys are computed."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Net = TypeVar("Net", bound=nn.Module)


def momentum_copy(module: Net) -> Net:
    """Return a copy without gradients, in train mode as in MoCo: its BatchNorm uses the statistics of its own batch.

    Args:
        module: not changed.
    """
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, decay: float) -> None:
    """Set each parameter of target to decay x target + (1 - decay) x online (He et al. 2020, eq. 2).

    Buffers do not change: the copy's running statistics come from its own forward passes.

    Args:
        target: the momentum copy.
        online: the trained module, with the same parameters in the same order.
        decay: MoCo's m, in [0, 1]: with 0 target becomes online, with 1 it does not change.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - decay)


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
