"""Random views: `draw` makes uniform numbers from (seed, step), `Views` turns images and these numbers into views.

Shapes: N images, V views, C channels, H x W pixels, P numbers for one view of one image.

One process or many, a fresh or a resumed run, a CPU or a GPU see the same pixels. Every image has its own parameters,
and its own order of the jitter operations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twoviews.rng import uniform
from twoviews.views.ops import ORDERS, ViewParams, augment

TRIES = 10  # torchvision's RandomResizedCrop tries ten boxes before it uses the centre
NAMES = ("top", "left", "flip", "jitter", "brightness", "contrast", "saturation", "hue", "order", "grayscale", "blur", "sigma", "solarize")
COLUMN = {name: 2 * TRIES + i for i, name in enumerate(NAMES)}  # columns 0..9: crop areas, 10..19: crop ratios
P = 2 * TRIES + len(NAMES)


def draw(seed: int, step: int, views: int, images: int, start: int = 0) -> Tensor:
    """Return the uniform numbers that decide the views of one batch, or of some of its images.

    Args:
        seed, step: of the run, >= 0.
        views: V.
        images: N.
        start: position of the first of them in the batch of all processes.

    Returns:
        (V, N, P) float32 in [0, 1).
    """
    numbers = np.stack([uniform(seed, step, 1 + view, images * P, start * P) for view in range(views)])
    return torch.from_numpy(numbers).view(views, images, P)


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """Size and augmentation of one view: SimCLR's (Chen et al. 2020, appendix A) with torchvision's semantics.

    RandomResizedCrop, horizontal flip, ColorJitter, grayscale, Gaussian blur, solarize.

    Args:
        size: side of the view in pixels.
        crop_scale: smallest and largest area of the crop, as a fraction of the image's area, in (0, 1].
        crop_ratio: smallest and largest width / height of the crop, > 0.
        interpolation: of the crop, `bilinear` or `bicubic`, both with antialias as PIL's.
        flip_p, jitter_p, grayscale_p, blur_p, solarize_p: probabilities in [0, 1].
        brightness, contrast, saturation: the factor is uniform in [max(0, 1 - a), 1 + a], a >= 0.
        hue: the shift is uniform in [-hue, hue] turns, hue in [0, 0.5].
        blur_kernel: width of the Gaussian in pixels, odd. SimCLR takes a tenth of the image's side.
        blur_sigma: smallest and largest standard deviation in pixels, > 0.

    Raises:
        ValueError: if a value is out of its range.
    """

    size: int
    crop_scale: Sequence[float]
    crop_ratio: Sequence[float]
    interpolation: str
    flip_p: float
    jitter_p: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale_p: float
    blur_p: float
    blur_kernel: int
    blur_sigma: Sequence[float]
    solarize_p: float

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"view size: expected at least 1 pixel, got {self.size}")
        for name, top in (("crop_scale", 1.0), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= top:
                raise ValueError(f"{name}: expected 0 < low <= high <= {top:g}, got {[low, high]}")
        for name in ("flip_p", "jitter_p", "grayscale_p", "blur_p", "solarize_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {getattr(self, name)}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation: expected bilinear or bicubic, got {self.interpolation!r}")
        strengths = (self.brightness, self.contrast, self.saturation)
        if min(strengths) < 0 or not 0 <= self.hue <= 0.5:
            raise ValueError(f"jitter: expected strengths >= 0 and hue in [0, 0.5], got {strengths} and {self.hue}")
        if self.blur_kernel % 2 == 0 or self.blur_kernel < 1 or (self.blur_p > 0 and self.blur_kernel // 2 >= self.size):
            raise ValueError(f"blur_kernel: expected an odd width below twice the view's size, got {self.blur_kernel}")

    @property
    def bicubic(self) -> bool:
        return self.interpolation == "bicubic"


class Views:
    """V views of a batch of images, each augmented by its own specification and normalised.

    Float arithmetic throughout: equal to torchvision on float tensors; torchvision on PIL images rounds to 8 bits after each
    operation. With one channel, saturation, hue and grayscale change nothing, as in torchvision.

    Args:
        image_shape: (C, H, W) of the images; C is 1 or 3 if saturation, hue or grayscale are used.
        specs: one per view.
        mean, std: per channel, of pixels in [0, 1]; std > 0.

    Raises:
        ValueError: if there is no view, or the channels do not fit.
    """

    def __init__(
        self, *, image_shape: tuple[int, int, int], specs: Sequence[ViewSpec], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        channels = image_shape[0]
        if not specs:
            raise ValueError("specs: expected at least one view, got none")
        if channels not in (1, 3) and any(spec.saturation or spec.hue or spec.grayscale_p for spec in specs):
            raise ValueError(f"saturation, hue and grayscale need images of 1 or 3 channels, got {channels}: set them to 0")
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ValueError(f"mean and std: expected {channels} values each, std > 0, got {list(mean)}, {list(std)}")
        self.image_shape, self.specs = image_shape, tuple(specs)
        self.mean, self.std = tuple(mean), tuple(std)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side of each view in pixels."""
        return tuple(spec.size for spec in self.specs)

    def draw(self, seed: int, step: int, images: int, start: int = 0) -> Tensor:
        """Return the numbers for one batch: (V, N, P) float32 in [0, 1), a pure function of its arguments, those of `draw`."""
        return draw(seed, step, len(self.specs), images, start)

    def __call__(self, images: Tensor, u: Tensor) -> list[Tensor]:
        """Return the views of a batch: a pure function of images and `u`, of static shape, safe to compile into one graph.

        Args:
            images: (N, C, H, W) uint8.
            u: (V, N, P) from `draw`, on the same device; its dtype, float32 or float64, is that of the arithmetic.

        Returns:
            V tensors (N, C, size, size) of u's dtype, normalised.
        """
        x = images.to(u.dtype) / 255
        rows = enumerate(zip(u.unbind(0), self.specs, strict=True))
        return [augment(x, self.params(i, row), spec, self.mean, self.std) for i, (row, spec) in rows]

    def params(self, view: int, u: Tensor) -> ViewParams:
        """Return the augmentation parameters of one view from its numbers (N, P).

        Args:
            view: index of the view.
            u: its rows of `draw`.
        """
        spec, colour = self.specs[view], self.image_shape[0] == 3
        jittered = u[:, COLUMN["jitter"]] < spec.jitter_p

        def factor(name: str, strength: float) -> Tensor:
            low = max(0.0, 1 - strength)
            return torch.where(jittered, low + (1 + strength - low) * u[:, COLUMN[name]], 1.0)

        def chosen(name: str, p: float) -> Tensor:
            return u[:, COLUMN[name]] < p

        low, high = spec.blur_sigma
        return ViewParams(
            *crop_box(u, self.image_shape[1:], spec),
            flip=chosen("flip", spec.flip_p),
            order=torch.floor(u[:, COLUMN["order"]] * len(ORDERS)).long(),
            brightness=factor("brightness", spec.brightness),
            contrast=factor("contrast", spec.contrast),
            saturation=factor("saturation", spec.saturation if colour else 0.0),
            hue=torch.where(jittered, (2 * u[:, COLUMN["hue"]] - 1) * (spec.hue if colour else 0.0), 0.0),
            gray=chosen("grayscale", spec.grayscale_p if colour else 0.0),
            sigma=torch.where(chosen("blur", spec.blur_p), low + (high - low) * u[:, COLUMN["sigma"]], 0.0),
            solarize=chosen("solarize", spec.solarize_p),
        )


def crop_box(u: Tensor, image_size: tuple[int, int], spec: ViewSpec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return top, left, height and width of each crop in pixels: torchvision's RandomResizedCrop.get_params, batched.

    Args:
        u: (N, P) from `draw`.
        image_size: height and width of the images.
        spec: whose `crop_scale` and `crop_ratio` are used.

    Returns:
        four tensors (N,) of u's dtype.
    """
    height, width = image_size
    (s0, s1), (r0, r1) = spec.crop_scale, spec.crop_ratio
    area = height * width * (s0 + (s1 - s0) * u[:, :TRIES])  # (N, 10)
    ratio = torch.exp(math.log(r0) + (math.log(r1) - math.log(r0)) * u[:, TRIES : 2 * TRIES])
    w, h = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)  # the first try that fits
    # The fallback, used about once in 10^9: the centre, its ratio clamped into the range.
    whole = width / height
    w_all = round(height * r1) if whole > r1 else width
    h_all = round(width / r0) if whole < r0 else height
    none = ~fits.any(1)
    h = torch.where(none, float(h_all), h.gather(1, first).squeeze(1))
    w = torch.where(none, float(w_all), w.gather(1, first).squeeze(1))
    top = torch.where(none, float((height - h_all) // 2), torch.floor(u[:, COLUMN["top"]] * (height - h + 1)))
    left = torch.where(none, float((width - w_all) // 2), torch.floor(u[:, COLUMN["left"]] * (width - w + 1)))
    return top, left, h, w
