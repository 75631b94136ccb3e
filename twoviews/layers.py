"""The layers of our ResNets: convolutions, and BatchNorm with what follows it, as torch has them, or hastened on a CPU in bfloat16."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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
    if not _is_plain(convolution, x) or _together(convolution, x) == 1:
        return convolution(x)  # type: ignore[no-any-return]
    y: Tensor = _Convolution.apply(x, convolution.weight, _how(convolution, x))
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
        whole, means, variances = made
        _follow(bn, means, variances, x)
        return whole
    y: Tensor = bn(x)
    if shortcut is not None:
        y += shortcut
    return F.relu(y, inplace=True) if relu else y


def norm_convolve(bn: nn.BatchNorm2d, convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """convolution(relu(bn(x))).

    Hastened, what lies between the two is not kept but made again on the way back, where the gradient by x takes the place of the one
    by it: a fourth of the maps of a block of two convolutions, for one more pass. Values are those of `norm` and `convolve`, bit for bit.

    Args:
        bn: of C channels; may see the batch in parts.
        convolution: without groups, dilation and bias for the smaller way.
        x: (N, C, H, W).
    """
    if not _is_plain(convolution, x) or not _in_one_piece(bn, x, None):
        return convolve(convolution, norm(bn, x))
    parts = getattr(bn, "splits", 1)
    made: tuple[Tensor, Tensor, Tensor] = _NormConvolution.apply(
        x, bn.weight, bn.bias, parts, bn.eps, convolution.weight, _how(convolution, x)
    )
    y, means, variances = made
    _follow(bn, means, variances, x)
    return y


class _How(NamedTuple):
    stride: tuple[int, int]
    padding: tuple[int, int]
    together: int  # maps that lie side by side; 1: each by itself


def _how(convolution: nn.Conv2d, x: Tensor) -> _How:
    return _How(convolution.stride, convolution.padding, _together(convolution, x))  # type: ignore[arg-type]


def _is_plain(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether it is hastened, the functions below are what it does to x, in bfloat16 on a CPU, and its weights learn."""
    if not getattr(convolution, HASTENED, False) or x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    if convolution.groups != 1 or convolution.dilation != (1, 1) or convolution.bias is not None:
        return False
    if not isinstance(convolution.padding, tuple) or convolution.padding_mode != "zeros":
        return False
    return torch.is_grad_enabled() and convolution.weight.requires_grad and torch.is_autocast_enabled("cpu")


def _together(convolution: nn.Conv2d, x: Tensor) -> int:
    padding = int(convolution.padding[1])
    narrow = (x.shape[3] - 1) // convolution.stride[1] < NARROW and 2 * padding + 1 == convolution.kernel_size[1]
    return math.gcd(len(x), TOGETHER) if narrow and torch.cpu._is_amx_tile_supported() else 1


class _Convolution(torch.autograd.Function):
    """Maps side by side, for autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, how: _How) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return _forward(x, weight, how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *_gradients(grad, x, weight, ctx.how, by_x=ctx.needs_input_grad[0]), None


class _NormConvolution(torch.autograd.Function):
    """BatchNorm, ReLU and a convolution, for autograd: y, means and variances."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bn_weight: Tensor, bn_bias: Tensor, parts: int, epsilon: float, weight: Tensor, how: _How
    ) -> tuple[Tensor, Tensor, Tensor]:
        between, mean, variance = batchnorm.forward(x, None, bn_weight, bn_bias, parts=parts, relu=True, epsilon=epsilon)
        ctx.save_for_backward(x, bn_weight, bn_bias, mean, variance, weight)
        ctx.epsilon, ctx.how = epsilon, how
        ctx.mark_non_differentiable(mean, variance)
        return _forward(between, weight, how), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, bn_weight, bn_bias, mean, variance, weight = ctx.saved_tensors
        between = batchnorm.again(x, bn_weight, bn_bias, mean, variance, epsilon=ctx.epsilon)
        by_between, by_weight = _gradients(grad, between, weight, ctx.how)
        assert by_between is not None
        of = (by_between.contiguous(memory_format=torch.channels_last), x, between, bn_weight, mean, variance)
        by_x, _none, by_bn_weight, by_bn_bias = batchnorm.gradient(*of, shortcut=False, epsilon=ctx.epsilon, in_place=True)
        return by_x, by_bn_weight, by_bn_bias, None, None, by_weight, None


def _forward(x: Tensor, weight: Tensor, how: _How) -> Tensor:
    width, weight = _width_out(x, how), weight.bfloat16()
    if how.together == 1 or width > NARROWEST:
        return F.conv2d(x, weight, stride=how.stride, padding=how.padding)
    y = F.conv2d(_beside(x, how.together, _pitch(x, how) * how.stride[1]), weight, stride=how.stride, padding=how.padding)
    return _apart(y, how.together, width)


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, how: _How, *, by_x: bool = True) -> tuple[Tensor | None, Tensor]:
    """Of a convolution, by x and by its weights."""
    width = x.shape[3]
    if how.together > 1:
        pitch = _pitch(x, how)
        grad, x = _beside(grad, how.together, pitch), _beside(x, how.together, pitch * how.stride[1])
    kind = (None, how.stride, how.padding, (1, 1), False, (0, 0), 1, (by_x, True, False))
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight.bfloat16(), *kind)
    return _apart(of_x, how.together, width) if by_x and how.together > 1 else of_x, of_weight.to(weight.dtype)


def _width_out(x: Tensor, how: _How) -> int:
    return (x.shape[3] - 1) // how.stride[1] + 1


def _pitch(x: Tensor, how: _How) -> int:
    """From one map to the next, on the way out: zeros enough for the padding of one neighbour and of the other, and every map begins where
    the stride steps."""
    return -(-(x.shape[3] + how.padding[1]) // how.stride[1])


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
def _follow(bn: nn.BatchNorm2d, means: Tensor, variances: Tensor, x: Tensor) -> None:
    """The running statistics, as torch moves them: towards the unbiased variance. Means and variances are (parts, C), of x."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.num_batches_tracked is not None
    assert bn.momentum is not None
    count = x.numel() // means.numel()
    bn.running_mean.lerp_(means.mean(0), bn.momentum)
    bn.running_var.lerp_(variances.mean(0) * (count / (count - 1)), bn.momentum)
    bn.num_batches_tracked.add_(1)
