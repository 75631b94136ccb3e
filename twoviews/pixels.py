"""What the views do to pixels: resampling, gray, blends and hue. Colour works on planes, C tensors (N, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green, blue in a grayscale image


def luma(planes: list[Tensor]) -> Tensor:
    """The gray image (N, H, W) of C planes. Images of other than three channels have no colour: their mean."""
    if len(planes) != 3:
        return torch.stack(planes).mean(0)
    return LUMA[0] * planes[0] + LUMA[1] * planes[1] + LUMA[2] * planes[2]


@torch.library.custom_op("twoviews::sample", mutates_args=())
def sample(x: Tensor, along: Tensor, down: Tensor) -> Tensor:
    """Bilinear samples of (N, C, H, W) where columns `along` (N, w) meet rows `down` (N, h), both in [-1, 1]: (N, C, h, w).

    An operator of its own, because a compiler takes `grid_sample` apart on a CPU: 31 us a view, against 9 as it is.
    """
    shape = (len(x), down.shape[1], along.shape[1])
    grid = torch.stack([along[:, None, :].expand(shape), down[:, :, None].expand(shape)], 3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@sample.register_fake
def _(x: Tensor, along: Tensor, down: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], down.shape[1], along.shape[1])


def centres(start: Tensor, length: Tensor, size: int, reverse: Tensor) -> Tensor:
    """Where `size` outputs sample the pixels of [start, start + length), (N, size), the first pixel's centre at 0.5.

    important: kept within the centres of the crop's own pixels; without this the border reads up to half a pixel beyond the
    crop, a mean error of 0.3 levels of 255 against PIL and torchvision, at most 24.
    """
    out = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    out = torch.where(reverse[:, None], size - out, out)
    inside = (out * (length / size)[:, None]).clamp(min=0.5).minimum(length[:, None] - 0.5)
    return start[:, None] + inside


def resampler(start: Tensor, length: Tensor, source: int, size: int, reverse: Tensor) -> Tensor:
    """The matrices that cut [start, start + length) out of `source` pixels and resample it to `size`: (N, size, source).

    Bilinear with antialias, as PIL and torchvision do it: a triangle as wide as the scale (at least one pixel) around
    each output's centre, over the pixels *inside the crop* only, normalised. `reverse` flips the output.
    """
    out = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    out = torch.where(reverse[:, None], size - out, out)  # (N, size)
    scale = (length / size)[:, None]
    centre = start[:, None] + out * scale
    pixel = torch.arange(source, device=start.device, dtype=start.dtype) + 0.5
    weight = 1 - (pixel - centre[:, :, None]).abs() / scale.clamp(min=1)[:, :, None]
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])  # (N, source)
    weight = weight.clamp(min=0) * inside[:, None, :]
    return weight / weight.sum(2, keepdim=True)


def blend(planes: list[Tensor], factor: Tensor, other: Tensor | None) -> list[Tensor]:
    """factor x image + (1 - factor) x other, clamped: other is black (None) for brightness, the mean gray for contrast, the
    gray image for saturation. A factor (N,) of 1 leaves an image as it is."""
    f = factor.view(-1, 1, 1)
    if other is None:
        return [(f * plane).clamp(max=1) for plane in planes]
    rest = (1 - f) * other
    return [(f * plane + rest).clamp(0, 1) for plane in planes]


def shift_hue(planes: list[Tensor], shift: Tensor) -> list[Tensor]:
    """Rotate the hue of red, green and blue planes in [0, 1] by `shift` (N,) turns, through HSV, without branches."""
    r, g, b = planes
    top, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = top - low
    inverse = 1 / spread.clamp(min=1e-20)  # where the spread is 0, so is what it multiplies
    hue = torch.where(top == r, (g - b) * inverse, torch.where(top == g, 2 + (b - r) * inverse, 4 + (r - g) * inverse))
    hue = hue + 6 * shift.view(-1, 1, 1)  # in sixths of a turn
    out = []
    for n in (5, 3, 1):
        k = n + hue
        k = k - 6 * torch.floor(k * (1 / 6))
        out.append(top - spread * torch.minimum(k, 4 - k).clamp(0, 1))
    return out
