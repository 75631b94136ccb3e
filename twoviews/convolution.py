"""Convolutions whose gradient by the weights is one matrix product, where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = 4  # pixels: AMX's tiles have 16 rows, and oneDNN fills them along one row of the map


def convolve(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """convolution(x).

    On a processor with AMX oneDNN's gradient by the weights of a small map takes three times as long as its forward and the gradient by
    x together: 70 ms of 112 for 256 maps of 512 x 4 x 4 on two cores. As one product of the patches it takes 15.

    Args:
        convolution: without groups, dilation and bias for the faster way.
        x: (N, C, H, W).
    """
    by_product = _product(convolution, x)
    y: Tensor = _Convolution.apply(x, convolution.weight.bfloat16(), convolution) if by_product else convolution(x)
    return y


def _product(convolution: nn.Conv2d, x: Tensor) -> bool:
    plain = convolution.groups == 1 and convolution.dilation == (1, 1) and convolution.bias is None
    if not plain or not isinstance(convolution.padding, tuple) or convolution.padding_mode != "zeros":
        return False
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or not torch.is_grad_enabled() or not convolution.weight.requires_grad:
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        out, channels, *kernel = weight.shape
        grad = grad.contiguous(memory_format=torch.channels_last)
        by_x = None
        if ctx.needs_input_grad[0]:
            how = (None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False))
            by_x = torch.ops.aten.convolution_backward(grad, x, weight, *how)[0]
        patches = _patches(x, kernel, ctx.stride, ctx.padding)
        by_weight = grad.permute(0, 2, 3, 1).reshape(-1, out).T @ patches
        return by_x, by_weight.view(out, *kernel, channels).permute(0, 3, 1, 2), None


def _patches(x: Tensor, kernel: list[int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """(N, C, H, W) to (N H' W', kernel C): what each output pixel sees, in rows."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()
    n, height, width, channels = padded.shape
    rows, columns = ((side - k) // s + 1 for side, k, s in zip((height, width), kernel, stride, strict=True))
    image, line, pixel, _ = padded.stride()
    view = padded.as_strided((n, rows, columns, *kernel, channels), (image, stride[0] * line, stride[1] * pixel, line, pixel, 1))
    return view.reshape(n * rows * columns, -1)
