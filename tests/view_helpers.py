"""What the tests of the views share: specifications, images, random numbers, and torchvision's operations on one image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from twoviews.views.spec import COLUMN, Views, ViewSpec, crop_box, draw

ORDERS = list(itertools.permutations(range(4)))  # of brightness 0, contrast 1, saturation 2, hue 3
OFF: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "interpolation": "bilinear",
    "flip_p": 0.0,
    "jitter_p": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "grayscale_p": 0.0,
    "blur_p": 0.0,
    "blur_kernel": 3,
    "blur_sigma": (0.1, 2.0),
    "solarize_p": 0.0,
}
SIMCLR: dict[str, Any] = {
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "flip_p": 0.5,
    "jitter_p": 0.8,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale_p": 0.2,
    "blur_p": 0.5,
    "solarize_p": 0.2,
}


def spec_of(size: int, **changes: Any) -> ViewSpec:
    """Return the specification of one view with every operation off but the changed ones."""
    return ViewSpec(size=size, **{**OFF, **changes})


def views_of(
    shape: tuple[int, int, int], *sizes: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, **changes: Any
) -> Views:
    """Return views of pixels in [0, 1]: one per size, by default one of the image's side; all with the same changes."""
    specs = [spec_of(size, **changes) for size in sizes or (shape[1],)]
    return Views(image_shape=shape, specs=specs, mean=mean or (0.0,) * shape[0], std=std or (1.0,) * shape[0])


def pictures(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Return images (n, C, H, W) uint8, smooth and noisy at once, with all values from 0 to 255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, shape[0], 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    noise = torch.rand(n, *shape, generator=generator)
    return ((0.6 * smooth + 0.4 * noise) * 255).round().to(torch.uint8)


def numbers(n: int, seed: int = 0, **columns: float | Tensor) -> Tensor:
    """Return numbers (1, n, P) float64 from the real stream, with some columns set by hand."""
    u = draw(seed, 0, 1, n).double()
    for name, value in columns.items():
        u[0, :, COLUMN[name]] = torch.as_tensor(value, dtype=torch.float64)
    return u


def factor(u: Tensor, name: str, strength: float) -> float:
    """Return the jitter factor that the numbers (P,) of one image stand for."""
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * float(u[COLUMN[name]])


def torchvision_jitter(x: Any, u: Tensor, spec: ViewSpec) -> Any:
    """Apply ColorJitter's functional operations to one image, in the order that its numbers (P,) choose."""
    operations = [
        lambda x: TF.adjust_brightness(x, factor(u, "brightness", spec.brightness)),
        lambda x: TF.adjust_contrast(x, factor(u, "contrast", spec.contrast)),
        lambda x: TF.adjust_saturation(x, factor(u, "saturation", spec.saturation)),
        lambda x: TF.adjust_hue(x, (2 * float(u[COLUMN["hue"]]) - 1) * spec.hue) if spec.hue else x,
    ]
    for operation in ORDERS[int(u[COLUMN["order"]] * 24)]:
        x = operations[operation](x)
    return x


def torchvision_crop(x: Any, box: list[int], flip: bool, size: int, interpolation: str = "bilinear") -> Any:
    """Return one image's crop, resized and perhaps flipped by torchvision."""
    x = TF.resized_crop(x, *box, [size, size], TF.InterpolationMode(interpolation), antialias=True)
    x = x.clamp(0, 1) if interpolation == "bicubic" and isinstance(x, Tensor) else x  # as PIL's 8 bits cut it off
    return TF.hflip(x) if flip else x


def boxes(views: Views, u: Tensor, view: int = 0) -> list[list[int]]:
    """Return top, left, height and width of each image's crop in one view; its numbers are (N, P)."""
    return torch.stack(crop_box(u, views.image_shape[1:], views.specs[view]), 1).long().tolist()
