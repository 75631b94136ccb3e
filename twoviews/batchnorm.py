"""BatchNorm in train mode, a shortcut's sum and ReLU as one piece with its gradient: `batchnorm.cpp` on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from twoviews import native


class Piece(torch.autograd.Function):
    """`forward` below, for autograd: (x, shortcut, weight, bias, parts, epsilon, relu) to (y, means, variances)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, parts: int, epsilon: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, variance = forward(x, shortcut, weight, bias, parts=parts, relu=relu, epsilon=epsilon)
        ctx.save_for_backward(x, y if relu else None, weight, mean, variance)
        ctx.how = {"shortcut": shortcut is not None, "epsilon": epsilon}
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *gradient(grad.contiguous(memory_format=torch.channels_last), *ctx.saved_tensors, **ctx.how), None, None, None


def forward(
    x: Tensor,
    shortcut: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    parts: int,
    relu: bool,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm by the statistics of x (Ioffe & Szegedy 2015, algorithm 1), a shortcut's sum and ReLU, on torch's number of threads.

    Args:
        x: (N, C, H, W) bfloat16, channels_last, on the CPU.
        shortcut: the same shape and kind, or None.
        weight, bias: (C,) float32.
        parts: of the batch, one after another, each with its own statistics; divides N.
        relu: whether what is below zero becomes zero.
        epsilon: added to variances, > 0.

    Returns:
        (y like x; means (parts, C) float32; variances, of the population (parts, C)).

    Raises:
        ValueError: if a tensor has another form: memory is read and written unchecked below.
        RuntimeError: if there is no library, or it ran out of memory.
    """
    mean, variance = weight.new_empty(parts, x.shape[1]), weight.new_empty(parts, x.shape[1])
    sizes = _sizes([x] if shortcut is None else [x, shortcut], [weight, bias], [mean, variance], parts, epsilon)
    y = torch.empty_like(x)
    pointers = [t if t is None else t.data_ptr() for t in (x, shortcut, y, weight, bias, mean, variance)]
    if _library().norm_forward(*pointers, relu, False, sizes):
        raise RuntimeError("BatchNorm: out of memory")
    return y, mean, variance


def again(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float) -> Tensor:
    """What `forward` returned for x with ReLU and without a shortcut, bit for bit, by the statistics that it found.

    Args:
        x, weight, bias, epsilon: what `forward` was given.
        mean, variance: what it returned.

    Returns:
        y like x.

    Raises:
        ValueError, RuntimeError: as `forward`.
    """
    sizes = _sizes([x], [weight, bias], [mean, variance], len(mean), epsilon)
    y = torch.empty_like(x)
    if _library().norm_forward(x.data_ptr(), None, *(t.data_ptr() for t in (y, weight, bias, mean, variance)), True, True, sizes):
        raise RuntimeError("BatchNorm: out of memory")
    return y


def gradient(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    shortcut: bool,
    epsilon: float,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of `forward` by x, by the shortcut where there was one, by weight and by bias (section 3 there).

    Args:
        grad: by y: (N, C, H, W) bfloat16, channels_last.
        x, weight, epsilon: what `forward` was given.
        y, mean, variance: what it returned; y is None where there was no ReLU.
        shortcut: whether there was one.
        in_place: whether the gradient by x is written over `grad`.

    Raises:
        ValueError, RuntimeError: as `forward`.
    """
    sizes = _sizes([x, grad] if y is None else [x, grad, y], [weight], [mean, variance], len(mean), epsilon)
    by_x, by_shortcut = grad if in_place else torch.empty_like(x), torch.empty_like(x) if shortcut else None
    by_weight, by_bias = torch.empty_like(weight), torch.empty_like(weight)
    tensors = (x, y, grad, by_x, by_shortcut, weight, mean, variance, by_weight, by_bias)
    if _library().norm_backward(*(t if t is None else t.data_ptr() for t in tensors), sizes):
        raise RuntimeError("BatchNorm: out of memory")
    return by_x, by_shortcut, by_weight, by_bias


def _library() -> ctypes.CDLL:
    found = native.library(native.NORM)
    if found is None:
        raise RuntimeError("batchnorm.cpp could not be compiled on this machine")
    return found


def _sizes(maps: Sequence[Tensor], channels: Sequence[Tensor], moments: Sequence[Tensor], parts: int, epsilon: float) -> native.Sizes:
    x = maps[0]
    fits = x.ndim == 4 and x.numel() > 0 and parts >= 1 and len(x) % parts == 0 and epsilon > 0
    for t in maps:
        fits = fits and t.shape == x.shape and t.dtype == torch.bfloat16 and t.is_contiguous(memory_format=torch.channels_last)
    for shape, tensors in ((x.shape[1:2], channels), ((parts, *x.shape[1:2]), moments)):
        fits = fits and all(t.shape == shape and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    if not fits or any(t.device.type != "cpu" for t in (*maps, *channels, *moments)):
        found = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in (*maps, *channels, *moments))
        found += f"; {parts} parts, epsilon {epsilon:g}"
        raise ValueError(f"BatchNorm: expected bfloat16 maps in channels_last, float32 numbers a channel, on the CPU, got {found}")
    count, width, height, length = x.shape
    return native.Sizes(parts, count // parts * height * length, width, torch.get_num_threads(), epsilon)
