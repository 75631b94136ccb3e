"""Image files that Pillow does not write: uncompressed TIFF and PNG of any depth, and one picture in every mode."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32
LEFT, RIGHT = (230, 60, 30), (40, 200, 220)  # colours of the picture's halves
# "I;16L" and "I;16N" are other names of "I;16" or "I;16B" for an array
MODES = ("1", "CMYK", "F", "HSV", "I", "I;16", "I;16B", "L", "LA", "LAB", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr")


def luma(colours: np.ndarray) -> np.ndarray:
    """Return the gray levels (H, W) of colours (H, W, 3), as ITU-R 601 defines them."""
    return np.asarray(colours @ np.array([0.299, 0.587, 0.114])).round()


def lab_to_rgb(values: np.ndarray) -> np.ndarray:
    """Return the sRGB colours of CIE L*a*b* values in 8 bits (white point D50), by the formulas of the standards."""
    lightness = values[..., 0].astype(float) * 100 / 255
    a, b = (values[..., i].astype(np.int8).astype(float) for i in (1, 2))  # Pillow gives them with a sign
    y = (lightness + 16) / 116
    powers = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(powers > 6 / 29, powers**3, 3 * (6 / 29) ** 2 * (powers - 4 / 29)) * [0.96422, 1, 0.82521]
    matrix = [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    linear = (xyz @ np.transpose(matrix)).clip(0, 1)
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255)


def picture(mode: str) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Return one known picture in a mode of Pillow, its colours (H, W, 3) and its opacity (H, W), 0 or 1.

    Its left and right halves have two colours. Its lower quarter is transparent, if the mode can say so.
    """
    colours = np.empty((SIZE, SIZE, 3))
    colours[:, : SIZE // 2], colours[:, SIZE // 2 :] = LEFT, RIGHT
    opacity = np.ones((SIZE, SIZE))
    opacity[SIZE * 3 // 4 :] = 0
    rgb, alpha = Image.fromarray(colours.astype(np.uint8)), Image.fromarray((opacity * 255).astype(np.uint8))
    gray = luma(colours)
    levels = np.repeat(gray[:, :, None], 3, 2)
    level = Image.fromarray(gray.astype(np.uint8))
    if mode == "1":
        return level.convert("1", dither=Image.Dither.NONE), (levels >= 128) * 255.0, np.ones_like(opacity)
    if mode in ("LA", "La"):
        level.putalpha(alpha)
        return level.convert(mode), levels, opacity
    if mode in ("RGBA", "RGBa", "PA"):
        image = rgb.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "PA" else rgb
        image.putalpha(alpha)
        return image.convert(mode), colours, opacity
    opaque = np.ones_like(opacity)
    if mode == "P":
        return rgb.convert("P", palette=Image.Palette.ADAPTIVE), colours, opaque
    wide = {"I;16": gray.astype("<u2") * 257, "I;16B": (gray * 257).astype(">u2"), "I": (gray * 257).astype(np.int32)}
    wide |= {"F": (gray / 255).astype(np.float32), "L": gray.astype(np.uint8)}
    if mode in wide:
        return Image.fromarray(wide[mode]), levels, opaque
    image = rgb.convert(mode)
    return image, lab_to_rgb(np.asarray(image)) if mode == "LAB" else colours, opaque  # 8 bits of L*a*b* are another colour


def mean_on(background: int, colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Return the mean colour (3,) of a picture on a gray background."""
    return np.asarray((colours * opacity[:, :, None] + background * (1 - opacity[:, :, None])).mean((0, 1)))


def write_tiff(path: Path, values: np.ndarray, *, photometric: int = 1, sample_format: int = 1) -> None:
    """Write values (H, W) or (H, W, C), little-endian and uncompressed.

    Args:
        path: the file.
        values: of any type of numpy.
        photometric: 0: white is 0; 1: black is 0; 2: RGB.
        sample_format: 1: unsigned; 2: signed; 3: float.
    """
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    body = np.ascontiguousarray(values).tobytes()
    lists = 8 + 2 + 10 * 12 + 4  # where the lists of bits and formats begin, after the table
    bits = struct.pack(f"<{channels}H", *[values.dtype.itemsize * 8] * channels)
    formats = struct.pack(f"<{channels}H", *[sample_format] * channels)
    short = channels <= 2  # the table itself has room for four bytes
    tags = [(256, 4, 1, width), (257, 4, 1, height)]
    tags += [(258, 3, channels, int.from_bytes(bits, "little") if short else lists), (259, 3, 1, 1), (262, 3, 1, photometric)]
    tags += [(273, 4, 1, lists + 2 * len(bits)), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(body))]
    tags += [(339, 3, channels, int.from_bytes(formats, "little") if short else lists + len(bits))]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + table + bits + formats + body)


def write_png(path: Path, rows: bytes, *, width: int, height: int, bits: int, colour: int, transparent: bytes = b"") -> None:
    """Write a PNG file.

    Args:
        path: the file.
        rows: the pixels, each row after a byte 0.
        width, height: in pixels.
        bits: of a channel: 1, 2, 4, 8 or 16.
        colour: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGB and alpha.
        transparent: content of the chunk tRNS.
    """

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    blob = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    blob += chunk(b"tRNS", transparent) if transparent else b""
    path.write_bytes(blob + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
