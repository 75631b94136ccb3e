"""The pixel operations of the views, for a whole batch: crop, jitter, blur, solarize.

Colour operations work on planes: C tensors (N, H, W).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from twoviews.views.spec import ViewSpec

SOLARIZE_THRESHOLD = 128 / 255  # BYOL (Grill et al. 2020, appendix B)
LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green, blue in a grayscale image

# A batch has a static shape, so every image runs through the same sequence of operations and switches off what it does not need. Each of
# the 24 orders of brightness B, contrast C, saturation S and hue H is a subsequence of these slots. Hue, the slowest, is in it once;
# contrast, the only one that needs a mean over the image, twice.
_SLOTS = "BSBCBSBHBSBCBSB"
ORDERS = ["".join(order) for order in itertools.permutations("BCSH")]


def _slots_on(order: str) -> list[bool]:
    """Return which slots an order uses: the first one for each operation, from left to right."""
    on, start = [False] * len(_SLOTS), 0
    for op in order:
        start = _SLOTS.index(op, start) + 1
        on[start - 1] = True
    return on


# For each slot, which orders use it: bit n for order n. Integers, not a tensor, which would be copied to the device at every step.
_ON = [sum(on << n for n, on in enumerate(column)) for column in zip(*map(_slots_on, ORDERS), strict=True)]


class ViewParams(NamedTuple):
    """The augmentation parameters of each image, (N,) each. A factor of 1, a hue of 0 and a sigma of 0 change nothing."""

    top: Tensor  # of the crop, in pixels, as are the next three
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # bool
    order: Tensor  # int64: index in `ORDERS`
    brightness: Tensor  # factors >= 0
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # turns
    gray: Tensor  # bool
    sigma: Tensor  # of the blur, in pixels
    solarize: Tensor  # bool


def augment(x: Tensor, params: ViewParams, spec: ViewSpec, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return one view of each image: crop, flip, jitter, grayscale, blur, solarize, normalise.

    Args:
        x: (N, C, H, W) float in [0, 1].
        params: of each image.
        spec: size of the view, and which operations are used at all.
        mean, std: per channel.

    Returns:
        (N, C, size, size) like x.
    """
    # From here on C planes (N, size, size): all but the blur is pointwise in them, and a compiler makes one pass of it.
    planes = list(crop_and_flip(x, params, spec.size, cubic=spec.bicubic).unbind(1))
    strengths = {"B": spec.brightness, "C": spec.contrast, "S": spec.saturation, "H": spec.hue}
    if len(planes) != 3:
        strengths |= {"S": 0.0, "H": 0.0}
    if spec.jitter_p > 0:
        planes = jitter(planes, params, used=[op for op, strength in strengths.items() if strength > 0])
    if spec.grayscale_p > 0 and len(planes) == 3:
        gray, chosen = luma(planes), params.gray[:, None, None]
        planes = [torch.where(chosen, gray, plane) for plane in planes]
    if spec.blur_p > 0:
        planes = list(blur(torch.stack(planes, 1), params.sigma, spec.blur_kernel).unbind(1))
    if spec.solarize_p > 0:
        planes = [torch.where(params.solarize[:, None, None], solarize(plane), plane) for plane in planes]
    return torch.stack([(plane - m) / s for plane, m, s in zip(planes, mean, std, strict=True)], 1)


def crop_and_flip(x: Tensor, params: ViewParams, size: int, *, cubic: bool = False) -> Tensor:
    """Return the crops, resized and flipped: (N, C, H, W) to (N, C, size, size), bilinear or bicubic, with antialias."""
    top, left, h, w, flip = params[:5]
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


def jitter(planes: list[Tensor], params: ViewParams, used: Collection[str]) -> list[Tensor]:
    """Apply brightness B, contrast C, saturation S and hue H to each image in its own order; only those in `used`."""
    values = {"B": params.brightness, "C": params.contrast, "S": params.saturation, "H": params.hue}
    off = {"B": 1.0, "C": 1.0, "S": 1.0, "H": 0.0}
    # One (15, N) tensor, so that a compiler stores 15 numbers per image and does not recompute them per pixel.
    factors = torch.stack([torch.where((_ON[i] >> params.order) & 1 == 1, values[op], off[op]) for i, op in enumerate(_SLOTS)])
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
    """Apply a Gaussian blur of `sigma` (N,) pixels to x (N, C, S, S); a sigma of 0 changes nothing."""
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
    """Invert bright pixels."""
    return torch.where(plane >= SOLARIZE_THRESHOLD, 1 - plane, plane)


def luma(planes: list[Tensor]) -> Tensor:
    """Return the gray image (N, H, W) of C planes: luma of three, else the mean."""
    if len(planes) != 3:
        return torch.stack(planes).mean(0)
    return LUMA[0] * planes[0] + LUMA[1] * planes[1] + LUMA[2] * planes[2]


def sample(x: Tensor, along: Tensor, down: Tensor) -> Tensor:
    """Return bilinear samples of x (N, C, H, W) at columns `along` (N, w) and rows `down` (N, h) in [-1, 1]: (N, C, h, w)."""
    shape = (len(x), down.shape[1], along.shape[1])
    grid = torch.stack([along[:, None, :].expand(shape), down[:, :, None].expand(shape)], 3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def centres(start: Tensor, length: Tensor, size: int, reverse: Tensor) -> Tensor:
    """Return where `size` outputs sample the pixels of [start, start + length): (N, size), the first pixel's centre at 0.5.

    important: clamped to the centres of the crop's own pixels. Without this the border reads up to half a pixel outside the
    crop: a mean error of 0.3 levels of 255 against PIL and torchvision, at most 24.
    """
    out = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    out = torch.where(reverse[:, None], size - out, out)
    inside = (out * (length / size)[:, None]).clamp(min=0.5).minimum(length[:, None] - 0.5)
    return start[:, None] + inside


def resampler(start: Tensor, length: Tensor, source: int, size: int, reverse: Tensor, *, cubic: bool) -> Tensor:
    """Return the matrices that resample the pixels [start, start + length) of `source` pixels to `size`: (N, size, source).

    With antialias as in PIL and torchvision: a triangle, or Keys' cubic (1981, a = -1/2), around each output's centre. Its
    width is the scale, at least one pixel; it covers only pixels *inside the crop* and is normalised. `reverse` flips the
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
    """Return the cubic convolution kernel at distances x >= 0 (Keys 1981, eq. 4, a = -1/2); 0 from 2 on."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def blend(planes: list[Tensor], factor: Tensor, other: Tensor | None) -> list[Tensor]:
    """Return factor x image + (1 - factor) x other, clamped to [0, 1].

    `other` is black (None) for brightness, the mean gray for contrast, the gray image for saturation. A factor (N,) of 1
    changes nothing.
    """
    f = factor.view(-1, 1, 1)
    if other is None:
        return [(f * plane).clamp(max=1) for plane in planes]
    rest = (1 - f) * other
    return [(f * plane + rest).clamp(0, 1) for plane in planes]


def shift_hue(planes: list[Tensor], shift: Tensor) -> list[Tensor]:
    """Rotate the hue of red, green and blue planes in [0, 1] by `shift` (N,) turns, as in HSV, without branches."""
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
