"""The views of a batch in C++: `views.cpp` on tensors. One image at a time, so that its pixels stay in cache."""

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from twoviews.cpu.build import load
from twoviews.views.ops import ORDERS, ViewParams
from twoviews.views.spec import Views, ViewSpec


class Geometry(ctypes.Structure):
    """`Geometry` in views.cpp: shape of an image, side of a view, taps of the blur, whether crops are bicubic."""

    _fields_ = [(name, ctypes.c_int64) for name in ("channels", "height", "width", "size", "blur", "cubic")]


class Params(ctypes.Structure):
    """`Params` in views.cpp: one array (N,) per field of `ops.ViewParams`; `order` holds four operations per image."""

    _fields_ = [(name, ctypes.c_void_p) for name in ViewParams._fields]


_ARGUMENTS = [ctypes.c_void_p, Params, ctypes.c_void_p, ctypes.c_int64, Geometry, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
SIGNATURE = {"views_float": _ARGUMENTS, "views_double": _ARGUMENTS}
_OPERATIONS = torch.tensor([["BCSH".index(op) for op in order] for order in ORDERS])  # (24, 4)


def library() -> ctypes.CDLL | None:
    """Return the compiled `views.cpp`, or None where it cannot be compiled."""
    return load("views.cpp", SIGNATURE)


def maker(views: Views) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Return a function that computes what `views` does: images and numbers to V tensors, channels_last.

    Args:
        views: whose shape, specifications and normalisation are used.

    Raises:
        RuntimeError: if there is no library.
    """
    if library() is None:
        raise RuntimeError("views.cpp could not be compiled on this machine")

    def make(images: Tensor, u: Tensor) -> list[Tensor]:
        if images.shape[1:] != views.image_shape:
            expected = ", ".join(map(str, views.image_shape))
            raise ValueError(f"views: expected images of shape (N, {expected}), got {tuple(images.shape)}")
        rows = zip(u, views.specs, strict=True)
        return [view(images, views.params(i, row), spec, mean=views.mean, std=views.std) for i, (row, spec) in enumerate(rows)]

    return make


def view(images: Tensor, params: ViewParams, spec: ViewSpec, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return one view of every image, as `ops.augment`, on torch's number of threads.

    Args:
        images: (N, C, H, W) uint8 on the CPU.
        params: of each image, float32 or float64 on the CPU; all floats have one dtype.
        spec: of the view.
        mean, std: per channel.

    Returns:
        (N, C, size, size) of the parameters' dtype, normalised, channels_last.

    Raises:
        ValueError: if an argument has another form, or a crop leaves its image: C++ reads memory without checks.
        RuntimeError: if there is no library, or memory ran out.
    """
    lib = library()
    if lib is None:
        raise RuntimeError("views.cpp could not be compiled on this machine")
    _check(images, params, spec, mean, std)
    count, channels, height, width = images.shape
    dtype, images = params.top.dtype, images.contiguous()
    arrays = [(_OPERATIONS[t] if name == "order" else t.to(dtype)).contiguous() for name, t in params._asdict().items()]
    moments = torch.tensor([mean, std], dtype=dtype)
    out = torch.empty(count, spec.size, spec.size, channels, dtype=dtype)
    failed = (lib.views_double if dtype == torch.float64 else lib.views_float)(
        images.data_ptr(),
        Params(*(array.data_ptr() for array in arrays)),
        out.data_ptr(),
        count,
        Geometry(channels, height, width, spec.size, spec.blur_kernel, spec.bicubic),
        moments[0].data_ptr(),
        moments[1].data_ptr(),
        max(1, min(torch.get_num_threads(), count)),
    )
    if failed:
        raise RuntimeError("views: out of memory")
    return out.permute(0, 3, 1, 2)


def _check(images: Tensor, params: ViewParams, spec: ViewSpec, mean: Sequence[float], std: Sequence[float]) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.device.type != "cpu":
        raise ValueError(f"views: expected uint8 images (N, C, H, W) on the CPU, got {images.dtype} {tuple(images.shape)}, {images.device}")
    count, channels, height, width = images.shape
    if params.top.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"views: expected float32 or float64 parameters, got {params.top.dtype}")
    for name, t in params._asdict().items():
        if t.shape != (count,) or t.device.type != "cpu":
            raise ValueError(f"views: expected {count} values of {name} on the CPU, got {tuple(t.shape)}, {t.device}")
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"views: expected {channels} means and deviations, got {len(mean)} and {len(std)}")
    if spec.blur_kernel // 2 >= spec.size and bool(params.sigma.any()):
        raise ValueError(f"views: blur_kernel {spec.blur_kernel} does not fit a view of {spec.size} pixels")
    inside = (params.top >= 0) & (params.left >= 0) & (params.height >= 1) & (params.width >= 1)
    inside &= (params.top + params.height <= height) & (params.left + params.width <= width)
    if not inside.all() or (channels != 3 and bool(params.hue.any())):
        raise ValueError("views: a crop leaves its image, or a hue is shifted in an image without colour")
    if not bool(((params.order >= 0) & (params.order < len(ORDERS))).all()):
        raise ValueError(f"views: expected orders in [0, {len(ORDERS)})")
