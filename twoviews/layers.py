"""The layers of our ResNets: convolutions, and BatchNorm with what follows it, as torch has them, or hastened on a CPU in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from twoviews import batchnorm

HASTENED = "hastened"  # the mark on a layer
SMALL = 4  # pixels: AMX's tiles have 16 rows, which oneDNN fills along one row of the map


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

    Hastened, on a processor with AMX, the gradient by the weights of a small map is one product of what each pixel of the output sees:
    for 256 maps of 512 x 4 x 4 on two cores 15 ms, where oneDNN's takes 70, and its forward and its gradient by x 41 together.

    Args:
        convolution: without groups, dilation and bias for the faster way.
        x: (N, C, H, W).
    """
    by_product = _by_product(convolution, x)
    y: Tensor = _Convolution.apply(x, convolution.weight.bfloat16(), convolution) if by_product else convolution(x)
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


def _by_product(convolution: nn.Conv2d, x: Tensor) -> bool:
    if not getattr(convolution, HASTENED, False) or x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    plain = convolution.groups == 1 and convolution.dilation == (1, 1) and convolution.bias is None
    if not plain or not isinstance(convolution.padding, tuple) or convolution.padding_mode != "zeros":
        return False
    if not torch.is_grad_enabled() or not convolution.weight.requires_grad:
        return False
    width = (x.shape[3] + 2 * convolution.padding[1] - convolution.kernel_size[1]) // convolution.stride[1] + 1
    return width <= SMALL and torch.is_autocast_enabled("cpu") and torch.cpu._is_amx_tile_supported()


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, convolution: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = convolution.stride, convolution.padding
        return F.conv2d(x, weight, stride=ctx.stride, padding=ctx.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        out, channels, *kernel = weight.shape
        grad = grad.contiguous(memory_format=torch.channels_last)
        by_x = None
        if ctx.needs_input_grad[0]:
            how = (None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False))
            by_x = torch.ops.aten.convolution_backward(grad, x, weight, *how)[0]
        by_weight = grad.permute(0, 2, 3, 1).reshape(-1, out).T @ _patches(x, kernel, ctx.stride, ctx.padding)
        return by_x, by_weight.view(out, *kernel, channels).permute(0, 3, 1, 2), None


def _patches(x: Tensor, kernel: list[int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """(N, C, H, W) to (N H' W', kernel C): what each pixel of the output sees, in rows."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()
    n, height, width, channels = padded.shape
    rows, columns = ((side - k) // s + 1 for side, k, s in zip((height, width), kernel, stride, strict=True))
    image, line, pixel, _ = padded.stride()
    view = padded.as_strided((n, rows, columns, *kernel, channels), (image, stride[0] * line, stride[1] * pixel, line, pixel, 1))
    return view.reshape(n * rows * columns, -1)


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
