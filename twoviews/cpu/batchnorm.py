"""BatchNorm in train mode, a shortcut's sum and ReLU, fused, with their gradient: `batchnorm.cpp` on tensors."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from twoviews.cpu.build import load

_SIZES = [(name, ctypes.c_int64) for name in ("parts", "rows", "channels", "threads")] + [("epsilon", ctypes.c_double)]


class Forward(ctypes.Structure):
    """`Forward` in batchnorm.cpp."""

    _pointers = ("x", "shortcut", "y", "weight", "bias", "mean", "variance")
    _fields_ = [*((name, ctypes.c_void_p) for name in _pointers), ("relu", ctypes.c_int64), *_SIZES]


class Backward(ctypes.Structure):
    """`Backward` in batchnorm.cpp."""

    _pointers = ("x", "y", "grad", "grad_x", "grad_shortcut", "weight", "mean", "variance", "grad_weight", "grad_bias")
    _fields_ = [*((name, ctypes.c_void_p) for name in _pointers), *_SIZES]


SIGNATURE: dict[str, list[Any]] = {"norm_forward": [Forward], "norm_backward": [Backward]}


def library() -> ctypes.CDLL | None:
    """Return the compiled `batchnorm.cpp`, or None where it cannot be compiled."""
    return load("batchnorm.cpp", SIGNATURE)


class FusedBatchNormAddReLU(torch.autograd.Function):
    """`forward` below, for autograd: (x, shortcut, weight, bias, parts, epsilon, relu) to (y, means, variances)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, parts: int, epsilon: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, variance = forward(x, shortcut, weight, bias, parts=parts, relu=relu, epsilon=epsilon)
        ctx.save_for_backward(x, y if relu else None, weight, mean, variance)
        ctx.options = {"shortcut": shortcut is not None, "epsilon": epsilon}
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(grad.contiguous(memory_format=torch.channels_last), *ctx.saved_tensors, **ctx.options), None, None, None


def forward(
    x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, *, parts: int, relu: bool, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return relu(batchnorm(x) + shortcut) with x's own statistics (Ioffe & Szegedy 2015, algorithm 1).

    It runs on torch's number of threads.

    Args:
        x: (N, C, H, W) bfloat16, channels_last, on the CPU.
        shortcut: like x, or None.
        weight, bias: (C,) float32.
        parts: statistics are computed separately for each of so many consecutive parts of the batch; divides N.
        relu: whether to apply ReLU.
        epsilon: added to variances, > 0.

    Returns:
        (y like x; means (parts, C) float32; variances of the population (parts, C) float32).

    Raises:
        ValueError: if a tensor has another form: C++ reads and writes memory without checks.
        RuntimeError: if there is no library, or memory ran out.
    """
    mean, variance = weight.new_empty(parts, x.shape[1]), weight.new_empty(parts, x.shape[1])
    sizes = _sizes([x] if shortcut is None else [x, shortcut], [weight, bias], [mean, variance], parts, epsilon)
    y = torch.empty_like(x)
    tensors = {"x": x, "shortcut": shortcut, "y": y, "weight": weight, "bias": bias, "mean": mean, "variance": variance}
    if _loaded().norm_forward(Forward(**_addresses(tensors), relu=relu, **sizes)):
        raise RuntimeError("BatchNorm: out of memory")
    return y, mean, variance


def backward(
    grad: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, mean: Tensor, variance: Tensor, *, shortcut: bool, epsilon: float
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return the gradients of `forward` with respect to x, shortcut (if any), weight and bias (section 3 of the paper).

    Args:
        grad: with respect to y: (N, C, H, W) bfloat16, channels_last.
        x, weight, epsilon: the arguments of `forward`.
        y, mean, variance: what it returned; y is None without ReLU.
        shortcut: whether there was one.

    Raises:
        ValueError, RuntimeError: as `forward`.
    """
    sizes = _sizes([x, grad] if y is None else [x, grad, y], [weight], [mean, variance], len(mean), epsilon)
    grad_x, grad_shortcut = torch.empty_like(x), torch.empty_like(x) if shortcut else None
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    tensors = {"x": x, "y": y, "grad": grad, "grad_x": grad_x, "grad_shortcut": grad_shortcut, "weight": weight}
    tensors |= {"mean": mean, "variance": variance, "grad_weight": grad_weight, "grad_bias": grad_bias}
    if _loaded().norm_backward(Backward(**_addresses(tensors), **sizes)):
        raise RuntimeError("BatchNorm: out of memory")
    return grad_x, grad_shortcut, grad_weight, grad_bias


def _loaded() -> ctypes.CDLL:
    lib = library()
    if lib is None:
        raise RuntimeError("batchnorm.cpp could not be compiled on this machine")
    return lib


def _addresses(tensors: dict[str, Tensor | None]) -> dict[str, int | None]:
    return {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}


def _sizes(maps: Sequence[Tensor], per_channel: Sequence[Tensor], moments: Sequence[Tensor], parts: int, epsilon: float) -> dict[str, Any]:
    """Check the tensors and return the sizes that both functions need."""
    x = maps[0]
    fits = x.ndim == 4 and x.numel() > 0 and parts >= 1 and len(x) % parts == 0 and epsilon > 0
    for t in maps:
        fits = fits and t.shape == x.shape and t.dtype == torch.bfloat16 and t.is_contiguous(memory_format=torch.channels_last)
    for shape, tensors in ((x.shape[1:2], per_channel), ((parts, *x.shape[1:2]), moments)):
        fits = fits and all(t.shape == shape and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    if not fits or any(t.device.type != "cpu" for t in (*maps, *per_channel, *moments)):
        given = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in (*maps, *per_channel, *moments))
        raise ValueError(
            "BatchNorm: expected bfloat16 feature maps in channels_last and float32 numbers per channel, on the CPU, "
            f"got {given}; {parts} parts, epsilon {epsilon:g}"
        )
    n, channels, height, width = x.shape
    threads = torch.get_num_threads()
    return {"parts": parts, "rows": n // parts * height * width, "channels": channels, "threads": threads, "epsilon": epsilon}
