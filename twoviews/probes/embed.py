"""Features of images from a frozen module."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twoviews.device import send
from twoviews.progress import Progress

MOST, LEAST = 1000, 16  # images in one forward pass
SIDE = 64  # of raw pixels as features: at 224 x 224, 5,000 images would be 3 GB, and a linear probe would have a weight for every pixel
PIXELS = 2**20  # in one forward pass, which bounds the memory: 1,000 images of 32 x 32 pixels, or 20 of 224 x 224


def at_once(area: int, most: int | None = None) -> int:
    """Return how many images of `area` pixels, H x W, to compute in one forward pass: at most `most`, or `MOST`."""
    return min(most or MOST, max(LEAST, PIXELS // area))


@torch.no_grad()
def embed(
    module: nn.Module,
    images: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    name: str = "embed",
) -> Tensor:
    """Return features of whole images without augmentation. BatchNorm uses its running statistics.

    The module runs in eval mode, and its modes are restored. No parameter or buffer changes (a test compares all).

    Args:
        module: (N, C, H, W) to (N, D).
        images: (N, C, H, W) uint8.
        mean, std: the normalisation that the module was trained with.
        device: of the module.
        autocast: returns the context of the forward pass.
        name: for the progress bar.

    Returns:
        (N, D) float32 on the CPU.

    Raises:
        ValueError: if a feature is NaN or infinite.
    """
    parameter = next(module.parameters(), None)
    dtype = parameter.dtype if parameter is not None else torch.float32
    shift = torch.tensor(mean, dtype=dtype, device=device).view(-1, 1, 1)
    scale = torch.tensor(std, dtype=dtype, device=device).view(-1, 1, 1)
    out = []
    with frozen(module), Progress(name, len(images), "images") as bar:
        for part in torch.split(images, at_once(math.prod(images.shape[2:]))):
            x = ((send(part, device).to(dtype) / 255 - shift) / scale).contiguous(memory_format=torch.channels_last)
            with autocast():
                h = module(x)
            out.append(h.float())
            bar.add(len(part))
    features = torch.cat(out).cpu()
    if not finite(features):
        raise ValueError(f"{name}: {int((~torch.isfinite(features)).any(1).sum())} of {len(features)} images have NaN or infinite features")
    return features


def finite(x: Tensor) -> bool:
    """Return whether no entry of x is NaN or infinite, in one pass without a copy: NaN and infinities show in the extremes.

    Args:
        x: floating point, of any shape; may be empty.
    """
    return not x.numel() or all(math.isfinite(extreme) for extreme in torch.aminmax(x))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Put the module in eval mode and restore its modes: BatchNorm uses its running statistics and does not update them."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def pixels(images: Tensor) -> Tensor:
    """Return raw pixels as features. Images larger than `SIDE` are averaged down to it.

    Args:
        images: (N, C, H, W) uint8.

    Returns:
        (N, C * min(H, SIDE) * min(W, SIDE)) float32 in [0, 1].
    """
    size = min(images.shape[2], SIDE), min(images.shape[3], SIDE)
    parts = torch.split(images, at_once(math.prod(images.shape[2:])))
    return torch.cat([F.adaptive_avg_pool2d(part.float() / 255, size).flatten(1) for part in parts])
