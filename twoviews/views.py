"""Random views of images: `draw` makes uniform numbers from (seed, step), `Views` turns images and those numbers into views.

Shapes: N images, V views, C channels, H x W pixels, P numbers for one view of one image.

Randomness is a function of (seed, step, view), never a state: one process or many, a fresh or a resumed run, a CPU
or a GPU see the same pixels. Every image has parameters of its own, and an order of the jitter operations of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from twoviews import native
from twoviews.pixels import ORDERS, Choices, blur, crop_and_flip, jitter, luma, solarize

TRIES = 10  # torchvision's RandomResizedCrop tries ten boxes before it falls back to the centre
COLUMNS = (
    "top",
    "left",
    "flip",
    "jitter",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "order",
    "grayscale",
    "blur",
    "sigma",
    "solarize",
)
COLUMN = {name: 2 * TRIES + i for i, name in enumerate(COLUMNS)}  # columns 0..9: crop areas, 10..19: crop ratios
P = 2 * TRIES + len(COLUMNS)


def philox(seed: int, step: int, stream: int, count: int) -> np.ndarray:
    """Random 32-bit words as a pure function of (seed, step, stream) (Philox4x64-10, Salmon et al. 2011).

    Args:
        seed, step: the two 64-bit words of the key, >= 0.
        stream: which of the independent sequences of this key; sits in the counter's top word.
        count: how many words.

    Returns:
        (count,) uint32.
    """
    raw = np.random.Philox(key=np.array([seed, step], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64)).random_raw(
        (count + 1) // 2
    )
    return raw.view(np.uint32)[:count]


def draw(seed: int, step: int, views: int, images: int) -> Tensor:
    """The uniform numbers that decide the views of one global batch.

    Args:
        seed, step: of the run, >= 0.
        views: V.
        images: N of the *global* batch; a rank takes its rows.

    Returns:
        (V, N, P) float32 in [0, 1).
    """
    words = np.stack([philox(seed, step, 1 + view, images * P) for view in range(views)])
    return torch.from_numpy((words >> 8).astype(np.float32) * np.float32(2**-24)).view(views, images, P)


class Views:
    """SimCLR's augmentation (Chen et al. 2020, appendix A) with torchvision's semantics, for a whole batch at once.

    RandomResizedCrop, horizontal flip, ColorJitter in an order of its own per image, grayscale, Gaussian blur, solarize,
    normalise. Float arithmetic throughout: equal to torchvision on float tensors; its PIL path rounds to 8 bits after
    each operation. With one channel, saturation, hue and grayscale are identities, as in torchvision.

    Args:
        image_shape: (C, H, W) of the images; C is 1 or 3 if saturation, hue or grayscale are used.
        view_sizes: side in pixels of each view, one entry a view; any number of views.
        crop_scale: smallest and largest area of the crop, as a fraction of the image's area, in (0, 1].
        crop_ratio: smallest and largest width / height of the crop, > 0.
        interpolation: of the crop, `bilinear` or `bicubic`, both with antialias as PIL's.
        flip_p, jitter_p, grayscale_p, blur_p, solarize_p: probabilities in [0, 1].
        brightness, contrast, saturation: the factor is uniform in [max(0, 1 - a), 1 + a], a >= 0.
        hue: the shift is uniform in [-hue, hue] turns, hue in [0, 0.5].
        blur_kernel: width of the Gaussian in pixels, odd. SimCLR takes a tenth of the image's side.
        blur_sigma: smallest and largest standard deviation in pixels, > 0.
        mean, std: of each channel, in units of a pixel in [0, 1].

    Raises:
        ValueError: if a value is out of its range, or a colour operation is asked of images that have no colour model.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        view_sizes: Sequence[int],
        crop_scale: Sequence[float],
        crop_ratio: Sequence[float],
        interpolation: str,
        flip_p: float,
        jitter_p: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        grayscale_p: float,
        blur_p: float,
        blur_kernel: int,
        blur_sigma: Sequence[float],
        solarize_p: float,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        channels = image_shape[0]
        if not view_sizes or min(view_sizes) < 1:
            raise ValueError(f"view_sizes: expected at least one size >= 1, got {list(view_sizes)}")
        for name, (low, high), top in (
            ("crop_scale", crop_scale, 1.0),
            ("crop_ratio", crop_ratio, math.inf),
            ("blur_sigma", blur_sigma, math.inf),
        ):
            if not 0 < low <= high <= top:
                raise ValueError(f"{name}: expected 0 < low <= high <= {top:g}, got {[low, high]}")
        for name, p in (
            ("flip_p", flip_p),
            ("jitter_p", jitter_p),
            ("grayscale_p", grayscale_p),
            ("blur_p", blur_p),
            ("solarize_p", solarize_p),
        ):
            if not 0 <= p <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {p}")
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation: expected bilinear or bicubic, got {interpolation!r}")
        if min(brightness, contrast, saturation) < 0 or not 0 <= hue <= 0.5:
            raise ValueError(f"jitter: expected strengths >= 0 and hue in [0, 0.5], got {brightness}, {contrast}, {saturation}, {hue}")
        if blur_kernel % 2 == 0 or blur_kernel < 1 or (blur_p > 0 and blur_kernel // 2 >= min(view_sizes)):
            raise ValueError(f"blur_kernel: expected an odd width below twice the smallest view, got {blur_kernel}")
        if channels not in (1, 3) and (saturation or hue or grayscale_p):
            raise ValueError(f"saturation, hue and grayscale need images of 1 or 3 channels, got {channels}: set them to 0")
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ValueError(f"mean and std: expected {channels} values each, std > 0, got {list(mean)}, {list(std)}")
        self.image_shape = image_shape
        self.view_sizes = tuple(view_sizes)
        self.crop_scale, self.crop_ratio, self.interpolation = tuple(crop_scale), tuple(crop_ratio), interpolation
        self.flip_p, self.jitter_p, self.grayscale_p, self.blur_p, self.solarize_p = (
            flip_p,
            jitter_p,
            grayscale_p,
            blur_p,
            solarize_p,
        )
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = (saturation, hue) if channels == 3 else (0.0, 0.0)
        self.blur_kernel, self.blur_sigma = blur_kernel, tuple(blur_sigma)
        self.mean, self.std = tuple(mean), tuple(std)

    def draw(self, seed: int, step: int, images: int) -> Tensor:
        """The numbers for one batch of `images`: (V, N, P) float32 in [0, 1), a pure function of its arguments."""
        return draw(seed, step, len(self.view_sizes), images)

    def __call__(self, images: Tensor, u: Tensor) -> list[Tensor]:
        """Views of a batch: a pure function of images and `u`, of static shape, safe to compile into one graph.

        Args:
            images: (N, C, H, W) uint8.
            u: (V, N, P) from `draw`, on the same device; its dtype, float32 or float64, is that of the arithmetic.

        Returns:
            V tensors (N, C, size, size) of u's dtype, normalised.
        """
        x = images.to(u.dtype) / 255
        return [self._view(x, self.choices(row), size) for row, size in zip(u, self.view_sizes, strict=True)]

    def on_cpu(self, images: Tensor, u: Tensor) -> list[Tensor]:
        """The same function by `pixels.cpp`, where each image goes through its own operations only, in cache.

        Args and Returns: those of `__call__`; the views are channels_last.

        Raises:
            ValueError: if the images have another shape than these views are for.
            RuntimeError: without `native.library()`.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"views: expected images of shape (N, {', '.join(map(str, self.image_shape))}), got {tuple(images.shape)}")
        return [
            native.view(
                images,
                self.choices(row).table(),
                size=size,
                blur_kernel=self.blur_kernel,
                cubic=self.interpolation == "bicubic",
                mean=self.mean,
                std=self.std,
            )
            for row, size in zip(u, self.view_sizes, strict=True)
        ]

    def choices(self, u: Tensor) -> Choices:
        """What the numbers (N, P) of one view mean for each image."""
        jittered = u[:, COLUMN["jitter"]] < self.jitter_p
        order = torch.floor(u[:, COLUMN["order"]] * len(ORDERS)).long()

        def factor(name: str, strength: float) -> Tensor:
            low = max(0.0, 1 - strength)
            return torch.where(jittered, low + (1 + strength - low) * u[:, COLUMN[name]], 1.0)

        def chosen(name: str, p: float) -> Tensor:
            return u[:, COLUMN[name]] < p

        low, high = self.blur_sigma
        return Choices(
            *self.crop_box(u),
            flip=chosen("flip", self.flip_p),
            order=order,
            brightness=factor("brightness", self.brightness),
            contrast=factor("contrast", self.contrast),
            saturation=factor("saturation", self.saturation),
            hue=torch.where(jittered, (2 * u[:, COLUMN["hue"]] - 1) * self.hue, 0.0),
            gray=chosen("grayscale", self.grayscale_p if self.image_shape[0] == 3 else 0.0),
            sigma=torch.where(chosen("blur", self.blur_p), low + (high - low) * u[:, COLUMN["sigma"]], 0.0),
            solarize=chosen("solarize", self.solarize_p),
        )

    def _view(self, x: Tensor, choices: Choices, size: int) -> Tensor:
        # From here on C planes (N, size, size): all but the blur is pointwise in them, and a compiler makes one pass of it.
        planes = list(crop_and_flip(x, choices, size, cubic=self.interpolation == "bicubic").unbind(1))
        strengths = {"B": self.brightness, "C": self.contrast, "S": self.saturation, "H": self.hue}
        if self.jitter_p > 0:
            planes = jitter(planes, choices, used=[op for op, strength in strengths.items() if strength > 0])
        if self.grayscale_p > 0 and len(planes) == 3:
            gray, chosen = luma(planes), choices.gray[:, None, None]
            planes = [torch.where(chosen, gray, plane) for plane in planes]
        if self.blur_p > 0:
            planes = list(blur(torch.stack(planes, 1), choices.sigma, self.blur_kernel).unbind(1))
        if self.solarize_p > 0:
            planes = [torch.where(choices.solarize[:, None, None], solarize(plane), plane) for plane in planes]
        return torch.stack([(plane - mean) / std for plane, mean, std in zip(planes, self.mean, self.std, strict=True)], 1)

    def crop_box(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height, width in pixels of the crop, (N,) each: torchvision's RandomResizedCrop.get_params, batched."""
        _, height, width = self.image_shape
        (s0, s1), (r0, r1) = self.crop_scale, self.crop_ratio
        area = height * width * (s0 + (s1 - s0) * u[:, :TRIES])  # (N, 10)
        ratio = torch.exp(math.log(r0) + (math.log(r1) - math.log(r0)) * u[:, TRIES : 2 * TRIES])
        w, h = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        first = fits.int().argmax(1, keepdim=True)  # the first try that fits
        # The fallback, taken about once in 10^9: the centre, its ratio clamped into the range.
        whole = width / height
        w_all = round(height * r1) if whole > r1 else width
        h_all = round(width / r0) if whole < r0 else height
        none = ~fits.any(1)
        h = torch.where(none, float(h_all), h.gather(1, first).squeeze(1))
        w = torch.where(none, float(w_all), w.gather(1, first).squeeze(1))
        top = torch.where(none, float((height - h_all) // 2), torch.floor(u[:, COLUMN["top"]] * (height - h + 1)))
        left = torch.where(none, float((width - w_all) // 2), torch.floor(u[:, COLUMN["left"]] * (width - w + 1)))
        return top, left, h, w
