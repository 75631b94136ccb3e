"""Images for the report, as data URIs, so that it is one file."""

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from twoviews.views import Views

JPEG_QUALITY = {"tile": 88, "sheet": 75}
LARGEST, LARGEST_MAPPED = 96, 48  # pixels of a tile, and of an image of the map: larger ones are shown smaller
PNG = 48  # pixels up to which a tile is stored without loss
SHAPES = (  # paths of a mark at the origin: circle, square, triangle, diamond
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
    "m-2.6-2.6h5.2v5.2h-5.2z",
    "m0-3.4l3.2 5.6h-6.4z",
    "m0-3.8l3.8 3.8l-3.8 3.8l-3.8-3.8z",
)
COLOURS = 8  # that the page has for classes


def picture(image: Tensor) -> str:
    """Return an image (C, H, W) uint8, at most `LARGEST` pixels high and wide."""
    image = _smaller(image[None], LARGEST)[0]
    return _uri(_pillow(image), None if image.shape[-1] <= PNG else JPEG_QUALITY["tile"])


def _smaller(images: Tensor, largest: int) -> Tensor:
    return images if images.shape[-1] <= largest else F.interpolate(images.float(), largest, mode="area").round().to(torch.uint8)


def _pillow(image: Tensor) -> Image.Image:
    array = image.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def _uri(image: Image.Image, quality: int | None) -> str:
    """Return an image as a JPEG of a quality, or as a PNG."""
    buffer, kind = io.BytesIO(), "PNG" if quality is None else "JPEG"
    image.save(buffer, kind, **({"optimize": True} if quality is None else {"quality": quality}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sheet(images: Tensor, columns: int) -> str:
    """Return images (N, C, H, W) uint8 side by side in one JPEG, row after row."""
    images = _smaller(images, LARGEST_MAPPED)
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    filled = torch.cat([images, images.new_zeros(rows * columns - n, channels, height, width)])
    grid = filled.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
    return _uri(_pillow(grid), JPEG_QUALITY["sheet"])


def filters(weight: Tensor, columns: int = 8) -> str:
    """Return the filters of a first convolution in one PNG, each from its lowest value (dark) to its highest (light).

    Args:
        weight: (O, C, k, k); with C other than 1 and 3, the mean over C is drawn.
        columns: filters in a row.
    """
    weight = weight.float() if weight.shape[1] in (1, 3) else weight.float().mean(1, keepdim=True)
    low, high = weight.amin((1, 2, 3), keepdim=True), weight.amax((1, 2, 3), keepdim=True)
    shown = (255 * (weight - low) / (high - low).clamp(min=1e-12)).to(torch.uint8)
    out, channels, height, width = shown.shape
    rows = -(-out // columns)
    padded = torch.full((rows * columns, channels, height + 1, width + 1), 128, dtype=torch.uint8)
    padded[:out, :, :height, :width] = shown
    grid = padded.view(rows, columns, channels, height + 1, width + 1).permute(2, 0, 3, 1, 4)
    return _uri(_pillow(grid.reshape(channels, rows * (height + 1), columns * (width + 1))), None)


def drawn_views(views: Views, images: Tensor, most: int) -> list[list[str]]:
    """Return for each image its picture and some random views of it.

    Args:
        views: whose augmentation is shown.
        images: (n, C, H, W) uint8.
        most: number of views of an image.
    """
    drawn: list[Tensor] = []
    for step in range(-(-most // len(views.specs))):
        drawn += views(images, views.draw(0, step, len(images)))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (views.mean, views.std))
    shown = [(255 * (view * std + mean)).round().clamp(0, 255).to(torch.uint8) for view in drawn[:most]]
    return [[picture(images[i]), *(picture(view[i]) for view in shown)] for i in range(len(images))]


def points(xy: list[list[float]], labels: list[int], size: float) -> list[dict[str, Any]]:
    """Return marks for positions in the plane: a path, and the number of a colour.

    Args:
        xy: positions in [0, 1] x [0, 1].
        labels: classes; with them, colour and shape change.
        size: of the drawing.
    """
    edge = 6
    return [
        {
            "path": f"M{edge + x * (size - 2 * edge):.1f} {edge + y * (size - 2 * edge):.1f}{SHAPES[shape(label)]}",
            "colour": label % COLOURS,
            "label": label,
        }
        for (x, y), label in zip(xy, labels, strict=True)
    ]


def shape(label: int) -> int:
    """Return the number of a class's shape: together with its colour, it tells 32 classes apart."""
    return (label + label // COLOURS) % len(SHAPES)
