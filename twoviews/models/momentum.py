"""Parts of momentum methods: the EMA copy, the queue of keys, and BatchNorm over sub-batches."""

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


class SplitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with separate statistics for each of S consecutive sub-batches, as S devices compute it (He et al. 2020, section 3.3).

    With one BatchNorm over the whole batch, query and key share statistics and can be matched by them. MoCo on one device
    therefore needs sub-batches, and keys in another order than queries. In train mode, values and gradients equal those of S
    forward passes. One forward pass updates the running statistics once, with the means over sub-batches of mean and unbiased
    variance.

    Args:
        channels: C.
        splits: S; the batch must be a multiple of it.
    """

    def __init__(self, channels: int, splits: int) -> None:
        super().__init__(channels)
        self.splits = splits

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept (N, C) and (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised: (N, C) or (N, C, H, W) in the same memory format.

        Raises:
            ValueError: if N is not a multiple of S.
        """
        if not self.training:
            return super().forward(x)
        if len(x) % self.splits:
            raise ValueError(f"SplitBatchNorm: a batch of {len(x)} does not divide into {self.splits} parts")
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        y, means, variances = (self._at_once if torch.compiler.is_compiling() else self._one_by_one)(x)
        with torch.no_grad():
            self.running_mean.lerp_(means.mean(0), self.momentum)
            self.running_var.lerp_(variances.mean(0), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return y

    def _one_by_one(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (normalised x, means (S, C), unbiased variances (S, C)), by one fast kernel for each sub-batch."""
        assert self.running_mean is not None
        means = self.running_mean.new_zeros(self.splits, self.num_features)
        variances = torch.zeros_like(means)
        parts = [  # with momentum 1, batch_norm writes each sub-batch's own statistics into its row
            F.batch_norm(part, means[i], variances[i], self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for i, part in enumerate(x.chunk(self.splits))
        ]
        return torch.cat(parts), means, variances

    def _at_once(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same for torch.compile, which makes S times as many kernels of a loop."""
        assert self.running_mean is not None
        parts = torch.unflatten(x, 0, (self.splits, -1)).to(self.running_mean.dtype)  # (S, N / S, C, ...)
        over = (1, *range(3, parts.ndim))
        variance, mean = torch.var_mean(parts, dim=over, correction=0, keepdim=True)
        shape = (1, 1, -1, *[1] * (parts.ndim - 3))
        y = (parts - mean) * torch.rsqrt(variance + self.eps)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        n = parts.numel() // (self.splits * self.num_features)
        unbiased = variance.detach() * (n / max(1, n - 1))
        return y.to(x.dtype).flatten(0, 1), mean.detach().reshape(self.splits, -1), unbiased.reshape(self.splits, -1)


def split_batchnorm(module: nn.Module, splits: int) -> None:
    """Replace every BatchNorm1d and BatchNorm2d of a module by `SplitBatchNorm` with the same parameters, buffers and mode.

    Args:
        module: changed in place.
        splits: S; 1 changes nothing.

    Raises:
        ValueError: if a BatchNorm has no running statistics, or averages them over all batches.
    """
    for name, child in module.named_children() if splits > 1 else ():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            if child.running_mean is None or child.momentum is None:
                raise ValueError(f"split_batchnorm: {name} has no running statistics or no momentum: expected both")
            split = SplitBatchNorm(child.num_features, splits)
            vars(split).update(vars(child))  # the same parameters and buffers, so their dtype and device, and the mode
            setattr(module, name, split)
        else:
            split_batchnorm(child, splits)


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
