"""What a momentum encoder needs: the copy that follows, the queue of its keys, and BatchNorm that does not tell keys from queries."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Net = TypeVar("Net", bound=nn.Module)


def momentum_copy(module: Net) -> Net:
    """A copy that no gradient reaches; it stays in train mode, as MoCo's does: its BatchNorm takes the statistics of its own batch.

    Args:
        module: left as it is.
    """
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, decay: float) -> None:
    """target <- decay x target + (1 - decay) x online, over parameters (He et al. 2020, eq. 2).

    Buffers are left alone: the running statistics of the copy come from its own forwards.

    Args:
        target: the momentum copy.
        online: what it follows: the same parameters in the same order.
        decay: MoCo's m, in [0, 1]: 0 copies, 1 stands still.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - decay)


class Queue(nn.Module):
    """The last K keys (He et al. 2020, section 3.2), oldest overwritten first. Keys and cursor are buffers, so a resumed run has both.

    Args:
        size: K.
        dim: D of a key.
    """

    keys: Tensor
    cursor: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))  # random directions until real keys fill it
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write keys (N, D) of unit length, N <= K, at the cursor, around the end if need be."""
        size = len(self.keys)
        places = (self.cursor + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, places, keys.detach().to(self.keys.dtype))
        self.cursor.copy_((self.cursor + len(keys)) % size)


class SplitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over S consecutive parts of the batch, as S devices would compute it (He et al. 2020, section 3.3).

    A BatchNorm over the whole batch lets query and key recognise each other by the statistics that they share; that is why MoCo on one
    device needs parts, and keys in another order than queries. In train mode it equals S forwards of the parts, values and gradients;
    running statistics move once a forward, towards the mean of the parts' means and of their unbiased variances.

    Args:
        channels: C.
        splits: S; the batch must be a multiple of it.
    """

    def __init__(self, channels: int, splits: int) -> None:
        super().__init__(channels)
        self.splits = splits

    def _check_input_dim(self, x: Tensor) -> None:
        """(N, C) and (N, C, H, W) alike."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) or (N, C, H, W) to the same shape and memory format.

        Raises:
            ValueError: if N is no multiple of the parts.
        """
        if not self.training:
            return super().forward(x)
        if len(x) % self.splits:
            raise ValueError(f"SplitBatchNorm: a batch of {len(x)} does not divide into {self.splits} parts")
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        means = self.running_mean.new_zeros(self.splits, self.num_features)
        variances = torch.zeros_like(means)
        parts = [  # with momentum 1 the op leaves each part's own statistics in the row that it is given
            F.batch_norm(part, means[i], variances[i], self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for i, part in enumerate(x.chunk(self.splits))
        ]
        with torch.no_grad():
            self.running_mean.lerp_(means.mean(0), self.momentum)
            self.running_var.lerp_(variances.mean(0), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return torch.cat(parts)


def split_batchnorm(module: nn.Module, splits: int) -> None:
    """Put `SplitBatchNorm` in place of every BatchNorm1d and 2d of a module, with its weights and statistics.

    Args:
        module: changed in place.
        splits: S; with 1 nothing changes.
    """
    for name, child in module.named_children() if splits > 1 else ():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            split = SplitBatchNorm(child.num_features, splits)
            split.eps, split.momentum = child.eps, child.momentum
            split.load_state_dict(child.state_dict())
            setattr(module, name, split)
        else:
            split_batchnorm(child, splits)


def spread_order(n: int, splits: int, device: torch.device) -> Tensor:
    """An order of n rows in which each of S equal parts holds rows from all S parts of the old order: MoCo's shuffle, without chance.

    The batch is in random order already, so a fixed order mixes as well as a drawn one, and a resumed run needs no more state.
    The order that undoes it is `spread_order(n, n // splits)`.

    Args:
        n: rows, a multiple of `splits`.
        splits: S.
        device: where the order is needed.

    Returns:
        (n,) int64.
    """
    return torch.arange(n, device=device).view(splits, -1).T.reshape(-1)
