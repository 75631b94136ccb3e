"""BatchNorm with what follows it in a ResNet, a shortcut's sum and ReLU: as torch's operations, or as one piece where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews import native


def norm(bn: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None = None, *, relu: bool = True) -> Tensor:
    """relu(bn(x) + shortcut).

    In train mode on a CPU in bfloat16 one piece of C++ (`norm.cpp`): between convolutions on a processor with AMX, torch's own operations
    are nearly half of a thin net's step, most of it waiting for memory. It rounds to bfloat16 once, not after each operation.

    Args:
        bn: of C channels; may see the batch in parts (`momentum.SplitBatchNorm`).
        x: (N, C, H, W).
        shortcut: (N, C, H, W) or None.
        relu: whether there is one.
    """
    if _fused(bn, x, shortcut):
        parts = getattr(bn, "splits", 1)
        made: tuple[Tensor, Tensor, Tensor] = _Norm.apply(x, shortcut, bn.weight, bn.bias, parts, bn.eps, relu)
        fused, mean, variance = made
        _follow(bn, mean.mean(0), variance.mean(0), x.numel() // x.shape[1] // parts)
        return fused
    y: Tensor = bn(x)
    if shortcut is not None:
        y += shortcut
    return F.relu(y, inplace=True) if relu else y


def _fused(bn: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None) -> bool:
    """Whether the C++ is for this: it needs two pixels of a channel in every part, which `bn` itself asks for in words."""
    if not bn.training or x.device.type != "cpu" or x.dtype != torch.bfloat16 or native.library(native.NORM) is None:
        return False
    parts = getattr(bn, "splits", 1)
    maps = [x] if shortcut is None else [x, shortcut]
    alike = all(t.shape == x.shape and t.dtype == x.dtype and t.is_contiguous(memory_format=torch.channels_last) for t in maps)
    return alike and len(x) % parts == 0 and x.numel() > parts * x.shape[1] and bn.weight.dtype == torch.float32


@torch.no_grad()
def _follow(bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """The running statistics, as torch moves them: towards the unbiased variance."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.num_batches_tracked is not None
    assert bn.momentum is not None
    bn.running_mean.lerp_(mean, bn.momentum)
    bn.running_var.lerp_(variance * (count / (count - 1)), bn.momentum)
    bn.num_batches_tracked.add_(1)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, parts: int, epsilon: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, variance = native.norm(x, shortcut, weight, bias, parts=parts, relu=relu, epsilon=epsilon)
        ctx.save_for_backward(x, y if relu else None, weight, mean, variance)
        ctx.shortcut, ctx.epsilon = shortcut is not None, epsilon
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous(memory_format=torch.channels_last)
        by = native.norm_gradient(grad, *ctx.saved_tensors, shortcut=ctx.shortcut, epsilon=ctx.epsilon)
        return *by, None, None, None
