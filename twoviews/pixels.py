"""What the views do to pixels, for a whole batch: crop, jitter, blur. Colour works on planes, C tensors (N, H, W).

`pixels.cpp` is the same for a CPU, image by image.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SOLARIZE_THRESHOLD = 128 / 255  # BYOL (Grill et al. 2020, appendix B)
LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green, blue in a grayscale image

# Every order of brightness B, contrast C, saturation S and hue H is a subsequence of the slots; it switches on what it needs. Hue, the
# dearest, stands there once; contrast, the only one that needs a mean over the image, twice.
_SLOTS = "BSBCBSBHBSBCBSB"
ORDERS = ["".join(order) for order in itertools.permutations("BCSH")]


def _slots_on(order: str) -> list[bool]:
    """Which slots an order switches on: the first that fits each operation, from left to right."""
    on, place = [False] * len(_SLOTS), 0
    for op in order:
        place = _SLOTS.index(op, place) + 1
        on[place - 1] = True
    return on


# Of each slot, which orders switch it on: bit n for order n. Numbers, not a table, which would be copied to the device at every step.
_ON = [sum(on << n for n, on in enumerate(column)) for column in zip(*map(_slots_on, ORDERS), strict=True)]


class Choices(NamedTuple):
    """What is done to each image, (N,) each. A factor of 1, a hue of 0 and a sigma of 0 leave it as it is."""

    top: Tensor  # of the crop, in pixels, as are the next three
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # bool
    order: Tensor  # int64: which of `ORDERS`
    brightness: Tensor  # factors >= 0
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # turns
    gray: Tensor  # bool
    sigma: Tensor  # of the blur, in pixels
    solarize: Tensor  # bool

    def table(self) -> Tensor:
        """(N, 16) in the dtype of the crop, as `pixels.cpp` reads it: the order stands there as its four operations."""
        operations = torch.tensor([["BCSH".index(op) for op in order] for order in ORDERS]).to(self.top)[self.order]
        before, behind = (torch.stack([t.to(self.top.dtype) for t in part], 1) for part in (self[:5], self[6:]))
        return torch.cat([before, operations, behind], 1)


def crop_and_flip(x: Tensor, choices: Choices, size: int, *, cubic: bool = False) -> Tensor:
    """(N, C, H, W) to (N, C, size, size), bilinear or bicubic, with antialias."""
    top, left, h, w, flip = choices[:5]
    n, c, height, width = x.shape
    if size >= max(height, width) and not cubic:  # no crop is larger than the view: two taps an axis, no antialias
        along = centres(left, w, size, flip) * (2 / width) - 1
        down = centres(top, h, size, torch.zeros_like(flip)) * (2 / height) - 1
        return sample(x, along, down)
    rows = resampler(top, h, height, size, torch.zeros_like(flip), cubic=cubic)  # (N, size, H)
    cols = resampler(left, w, width, size, flip, cubic=cubic)  # (N, size, W)
    x = torch.bmm(rows, x.transpose(1, 2).reshape(n, height, c * width))  # (N, size, C*W)
    x = torch.bmm(x.view(n, size * c, width), cols.transpose(1, 2))  # (N, size*C, size)
    x = x.view(n, size, c, size).transpose(1, 2)  # (N, C, size, size)
    return x.clamp(0, 1) if cubic else x  # a cubic overshoots at edges; PIL's 8 bits cut that off


def jitter(planes: list[Tensor], choices: Choices, used: Collection[str]) -> list[Tensor]:
    """Brightness B, contrast C, saturation S and hue H of each image in its own order; those in `used`, the others change nothing."""
    values = {"B": choices.brightness, "C": choices.contrast, "S": choices.saturation, "H": choices.hue}
    off = {"B": 1.0, "C": 1.0, "S": 1.0, "H": 0.0}
    # One (15, N) tensor, so that a compiler keeps it: 15 numbers an image, not 15 choices a pixel.
    factors = torch.stack([torch.where((_ON[i] >> choices.order) & 1 == 1, values[op], off[op]) for i, op in enumerate(_SLOTS)])
    for i, op in enumerate(_SLOTS):
        if op not in used:
            continue
        if op == "H":
            planes = shift_hue(planes, factors[i])
            continue
        other = None if op == "B" else luma(planes) if op == "S" else luma(planes).mean((1, 2), keepdim=True)
        planes = blend(planes, factors[i], other)
    return planes


def blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur of (N, C, S, S) with a standard deviation of `sigma` (N,) pixels; 0 leaves an image as it is."""
    n, c, size, _ = x.shape
    taps = torch.arange(-(kernel // 2), kernel // 2 + 1, device=x.device)
    weights = torch.softmax(-0.5 * (taps / sigma.clamp(min=1e-3)[:, None]) ** 2, 1)  # (N, K), the Gaussian, normalised
    weights = torch.where(sigma[:, None] > 0, weights, (taps == 0).to(x.dtype))
    source = (torch.arange(size, device=x.device)[:, None] + taps).abs()  # (size, K), reflected at both borders
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    band = F.one_hot(source, size).to(x.dtype)  # (size, K, size)
    matrix = torch.einsum("nk,okx->nox", weights, band)  # (N, size, size): blur along one axis
    x = torch.bmm(x.reshape(n, c * size, size), matrix.transpose(1, 2)).view(n, c, size, size)
    return torch.matmul(matrix.unsqueeze(1), x)


def solarize(plane: Tensor) -> Tensor:
    """Bright pixels inverted."""
    return torch.where(plane >= SOLARIZE_THRESHOLD, 1 - plane, plane)


def luma(planes: list[Tensor]) -> Tensor:
    """The gray image (N, H, W) of C planes. Images of other than three channels have no colour: their mean."""
    if len(planes) != 3:
        return torch.stack(planes).mean(0)
    return LUMA[0] * planes[0] + LUMA[1] * planes[1] + LUMA[2] * planes[2]


def sample(x: Tensor, along: Tensor, down: Tensor) -> Tensor:
    """Bilinear samples of (N, C, H, W) where columns `along` (N, w) meet rows `down` (N, h), both in [-1, 1]: (N, C, h, w)."""
    shape = (len(x), down.shape[1], along.shape[1])
    grid = torch.stack([along[:, None, :].expand(shape), down[:, :, None].expand(shape)], 3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def centres(start: Tensor, length: Tensor, size: int, reverse: Tensor) -> Tensor:
    """Where `size` outputs sample the pixels of [start, start + length), (N, size), the first pixel's centre at 0.5.

    important: kept within the centres of the crop's own pixels; without this the border reads up to half a pixel beyond the
    crop, a mean error of 0.3 levels of 255 against PIL and torchvision, at most 24.
    """
    out = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    out = torch.where(reverse[:, None], size - out, out)
    inside = (out * (length / size)[:, None]).clamp(min=0.5).minimum(length[:, None] - 0.5)
    return start[:, None] + inside


def resampler(start: Tensor, length: Tensor, source: int, size: int, reverse: Tensor, *, cubic: bool) -> Tensor:
    """The matrices that cut [start, start + length) out of `source` pixels and resample it to `size`: (N, size, source).

    With antialias, as PIL and torchvision do it: a triangle, or Keys' cubic (1981, a = -1/2), as wide as the scale (at
    least one pixel) around each output's centre, over the pixels *inside the crop* only, normalised. `reverse` flips the
    output.
    """
    out = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    out = torch.where(reverse[:, None], size - out, out)  # (N, size)
    scale = (length / size)[:, None]
    centre = start[:, None] + out * scale
    pixel = torch.arange(source, device=start.device, dtype=start.dtype) + 0.5
    distance = (pixel - centre[:, :, None]).abs() / scale.clamp(min=1)[:, :, None]
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])  # (N, source)
    weight = (keys(distance) if cubic else (1 - distance).clamp(min=0)) * inside[:, None, :]
    return weight / weight.sum(2, keepdim=True)


def keys(x: Tensor) -> Tensor:
    """The cubic convolution kernel at distances x >= 0 (Keys 1981, eq. 4, a = -1/2): 0 from 2 on."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


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
