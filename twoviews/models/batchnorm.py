"""BatchNorm over sub-batches of one process, and over the batches of all processes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews import distributed


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
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight.view(shape)
        y = (parts - mean) * scale
        if self.affine:  # a bias for each part, so that the backward pass has sums over parts only, which are one kernel
            y = y + self.bias.view(shape).expand_as(scale)
        n = parts.numel() // (self.splits * self.num_features)
        unbiased = variance.detach() * (n / max(1, n - 1))
        return y.to(x.dtype).flatten(0, 1), mean.detach().reshape(self.splits, -1), unbiased.reshape(self.splits, -1)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with the statistics of the batches of all processes, whose gradients then equal those of one process.

    torch's own refuses tensors of the CPU. In a single process it is torch's BatchNorm.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept (N, C) and (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised: (n, C) or (n, C, H, W), with equal n in all processes."""
        if not self.training or distributed.size() == 1:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        over = (0, *range(2, x.ndim))
        y = x.to(self.running_mean.dtype)
        own = torch.stack(torch.var_mean(y, dim=over, correction=0))  # (2, C)
        variances, means = distributed.gather(own[None]).unbind(1)  # of each process: (processes, C)
        mean = means.mean(0)
        variance = variances.mean(0) + means.var(0, correction=0)
        with torch.no_grad():
            count = distributed.size() * (x.numel() // x.shape[1])
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        shape = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(shift.view(shape), y, scale.view(shape)).to(x.dtype)


def own_splits(splits: int, *batch_sizes: int) -> int:
    """Return the number of sub-batches of this process.

    Args:
        splits: S of all processes.
        batch_sizes: of all processes; 0: no such batch.

    Raises:
        ValueError: if the sub-batches cannot be equal.
    """
    processes = distributed.size()
    if splits > 1 and splits % processes:
        raise ValueError(f"bn_splits={splits}: {processes} processes cannot share them: choose a multiple of {processes}, or 1")
    for size in batch_sizes:
        if size % splits:
            raise ValueError(f"bn_splits={splits}: does not divide a batch of {size}: choose a divisor, or 1")
    return max(1, splits // processes)


def split_batchnorm(module: nn.Module, splits: int) -> None:
    """Replace every BatchNorm1d and BatchNorm2d of a module by `SplitBatchNorm` with the same parameters, buffers and mode.

    Args:
        module: changed in place.
        splits: S; with 1, values are those of BatchNorm, and `sync_batchnorm` leaves it as it is.

    Raises:
        ValueError: if a BatchNorm has no running statistics, or averages them over all batches.
    """
    _replace(module, lambda channels: SplitBatchNorm(channels, splits))


def sync_batchnorm(module: nn.Module) -> None:
    """Replace every BatchNorm1d and BatchNorm2d of a module by `SyncBatchNorm`, as `split_batchnorm`. Sub-batches stay as they are."""
    _replace(module, SyncBatchNorm)


def _replace(module: nn.Module, make: Callable[[int], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            if child.running_mean is None or child.momentum is None:
                raise ValueError(f"BatchNorm {name}: has no running statistics or no momentum: expected both")
            new = make(child.num_features)
            vars(new).update(vars(child))  # the same parameters and buffers, so their dtype and device, and the mode
            setattr(module, name, new)
        else:
            _replace(child, make)
