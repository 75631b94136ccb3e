"""The layers of our ResNets: convolutions, and BatchNorm with what follows it, as torch has them, or hastened on a CPU in bfloat16."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from twoviews import batchnorm

HASTENED = "hastened"  # the mark on a layer
# oneDNN fills AMX's tiles of 16 rows along one row of a map. Pixels up to which maps are laid side by side on the way back, and on the way
# forward, and how many: more is no faster.
NARROW, NARROWEST, TOGETHER = 8, 4, 16


def hasten(module: nn.Module) -> None:
    """Let the convolutions and BatchNorms of a module take the faster ways below, where those are for them. They round differently.

    Args:
        module: changed in place; copies of it are hastened too. Its forward needs `native.library(native.NORM)`.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.modules.batchnorm._BatchNorm):
            setattr(layer, HASTENED, True)


def convolve(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """convolution(x).

    Hastened, on a processor with AMX, maps that come out at most eight pixels wide (four on the way forward) are laid side by side, with
    zeros between them, and are one wide map to the convolution: for 256 maps of 512 x 4 x 4 on two cores, forward and backward, 35 ms,
    where they take 135 one by one. The gradient by the weights rounds differently; as many maps lie together as divide the batch and 16.

    Args:
        convolution: as wide as its padding asks for, without groups, dilation and bias for the faster way.
        x: (N, C, H, W).
    """
    if not _side_by_side(convolution, x):
        return convolution(x)  # type: ignore[no-any-return]
    y: Tensor = _Convolution.apply(x, convolution.weight.bfloat16(), convolution.stride, convolution.padding)
    return y


def norm(bn: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None = None, *, relu: bool = True) -> Tensor:
    """relu(bn(x) + shortcut).

    Hastened, it is one piece of C++ in train mode (`batchnorm.py`): on a processor with AMX torch's own operations between convolutions
    are nearly half of a thin net's step, most of it waiting for memory. It rounds to bfloat16 once, not after each operation.

    Args:
        bn: of C channels; may see the batch in parts (`momentum.SplitBatchNorm`).
        x: (N, C, H, W).
        shortcut: (N, C, H, W) or None.
        relu: whether there is one.
    """
    if _in_one_piece(bn, x, shortcut):
        parts = getattr(bn, "splits", 1)
        made: tuple[Tensor, Tensor, Tensor] = batchnorm.Piece.apply(x, shortcut, bn.weight, bn.bias, parts, bn.eps, relu)
        whole, mean, variance = made
        _follow(bn, mean.mean(0), variance.mean(0), x.numel() // x.shape[1] // parts)
        return whole
    y: Tensor = bn(x)
    if shortcut is not None:
        y += shortcut
    return F.relu(y, inplace=True) if relu else y


def _side_by_side(convolution: nn.Conv2d, x: Tensor) -> bool:
    if not getattr(convolution, HASTENED, False) or x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    plain = convolution.groups == 1 and convolution.dilation == (1, 1) and convolution.bias is None
    if not plain or not isinstance(convolution.padding, tuple) or convolution.padding_mode != "zeros":
        return False
    if not torch.is_grad_enabled() or not convolution.weight.requires_grad or 2 * convolution.padding[1] + 1 != convolution.kernel_size[1]:
        return False
    narrow = (x.shape[3] - 1) // convolution.stride[1] < NARROW and math.gcd(len(x), TOGETHER) > 1
    return narrow and torch.is_autocast_enabled("cpu") and torch.cpu._is_amx_tile_supported()


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.together = stride, padding, math.gcd(len(x), TOGETHER)
        ctx.width, ctx.out_width = x.shape[3], (x.shape[3] - 1) // stride[1] + 1
        # Zeros enough for the padding of one neighbour and of the other, and every map begins where the stride steps.
        ctx.out_pitch = -(-(ctx.width + padding[1]) // stride[1])
        ctx.pitch = ctx.out_pitch * stride[1]
        if ctx.out_width > NARROWEST:
            return F.conv2d(x, weight, stride=stride, padding=padding)
        y = F.conv2d(_beside(x, ctx.together, ctx.pitch), weight, stride=stride, padding=padding)
        return _apart(y, ctx.together, ctx.out_width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, x = _beside(grad, ctx.together, ctx.out_pitch), _beside(x, ctx.together, ctx.pitch)
        how = (None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (ctx.needs_input_grad[0], True, False))
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, *how)
        return _apart(by_x, ctx.together, ctx.width) if ctx.needs_input_grad[0] else None, by_weight, None, None


def _beside(x: Tensor, together: int, pitch: int) -> Tensor:
    """(N, C, H, W) to (N / together, C, H, together x pitch): maps side by side, zeros behind each."""
    n, channels, height, width = x.shape
    out = x.new_zeros(n // together, height, together, pitch, channels)
    out[:, :, :, :width] = x.permute(0, 2, 3, 1).reshape(n // together, together, height, width, channels).transpose(1, 2)
    return out.flatten(2, 3).permute(0, 3, 1, 2)


def _apart(x: Tensor, together: int, width: int) -> Tensor:
    """(N / together, C, H, together x pitch) to (N, C, H, width), the opposite."""
    rows, channels, height, whole = x.shape
    maps = x.permute(0, 2, 3, 1).reshape(rows, height, together, whole // together, channels)[:, :, :, :width].transpose(1, 2)
    # No view of another tensor: autograd lets nobody change in place a view that one of its functions made.
    out = torch.empty((rows * together, channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    out.permute(0, 2, 3, 1).view(maps.shape).copy_(maps)
    return out


def _in_one_piece(bn: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None) -> bool:
    """It needs two pixels of a channel in every part, which `bn` itself asks for in words."""
    if not getattr(bn, HASTENED, False) or not bn.training or x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    if not bn.affine or not bn.track_running_stats or bn.momentum is None:
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
