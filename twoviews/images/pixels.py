"""The pixels of one image file as 8-bit RGB: transparency gets a background, and wide values are scaled, never clipped silently."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from twoviews.images import pillow_warnings
from twoviews.images.formats import RAW_SUFFIXES, needs, open_image

BACKGROUNDS = {"white": 255, "gray": 128, "black": 0}  # the gray level behind transparent pixels
WIDE = 65535  # the largest 16-bit value
DARK = 8  # values that use less than this share of their range are refused: 12 bits in 16 are one sixteenth


class _Refused(ValueError):
    """An image whose pixels have no meaning that is sure."""


@dataclass(frozen=True)
class Reading:
    """How the pixels of a file are read.

    Args:
        size: side in pixels of the square that an image becomes: its centre, resized (bilinear, antialiased). None: its own size.
        background: the colour behind transparent pixels, one of `BACKGROUNDS`.
        value_range: values of wide and float images that become black and white; values beyond it are clipped. None: 0 to
            1 for floats, 0 to 65535 for integers.

    Raises:
        ValueError: for another background, or a range that is none.
    """

    size: int | None
    background: str = "white"
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background={self.background}: expected one of {', '.join(BACKGROUNDS)}")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            low, high = self.value_range
            raise ValueError(f"value_range=[{low},{high}]: expected [low,high], low below high")


@dataclass(frozen=True)
class Decoded:
    """An image, and what is to be known about its file.

    Args:
        pixels: (3, H, W) uint8.
        wide: for images of more than 8 bits: `float`, `16-bit` or `32-bit`, the smallest and the largest value.
        warnings: kinds of what Pillow warned about, without the file's name.
    """

    pixels: np.ndarray
    wide: tuple[str, float, float] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def one_colour(self) -> bool:
        """Whether all pixels are equal."""
        flat = self.pixels.reshape(3, -1)
        return bool((flat == flat[:, :1]).all())


def decode(path: Path, reading: Reading) -> Decoded | str:
    """Return the image of a file, or the reason why there is none. It raises nothing, and is safe in many threads at once.

    The image is turned by its EXIF data, becomes RGB on a background, and is cropped and resized. Of an animation, the
    first image is used.
    """
    if not path.is_file():  # opening a pipe would block
        return "a broken link" if path.is_symlink() else "not a regular file"
    if path.suffix.lower() in RAW_SUFFIXES:
        return needs(path)
    with pillow_warnings.collect() as heard:
        try:
            with open_image(path) as image:
                if reading.size is not None:
                    image.draft("RGB", (reading.size, reading.size))  # a large JPEG is decoded at a fraction of its size
                decoded = _decode(image, _raw_mode(image), getattr(image, "tag_v2", {}), reading)
        except Exception as error:  # decoders can raise anything, and every bad file must be listed
            return _reason(path, error)
        return _with_warnings(decoded, heard)


def decode_image(image: Image.Image, reading: Reading) -> Decoded | str:
    """Return an image of Pillow as `decode` returns that of a file, or the reason why it cannot be used; `image` is not changed."""
    with pillow_warnings.collect() as heard:
        try:
            raw, tags = _raw_mode(image), dict(getattr(image, "tag_v2", {}))
            decoded = _decode(image.copy(), raw, tags, reading)
        except Exception as error:
            return _text(error)
        return _with_warnings(decoded, heard)


def decode_array(values: np.ndarray, reading: Reading) -> Decoded | str:
    """Return an image in an array as `decode` returns that of a file, or the reason why it cannot be used.

    Args:
        values: (H, W) or (H, W, C), C 1, 3 or 4, the fourth for opacity; uint8, or wide: floats or other integers.
        reading: see `Reading`.
    """
    if values.dtype == bool:
        values = values * np.uint8(255)
    wide = None
    try:
        if values.dtype != np.uint8:
            name = "float" if values.dtype.kind == "f" else "16-bit" if values.dtype.itemsize == 2 else "32-bit"
            values, wide = _scale(values, name, reading)
        decoded = _decode(Image.fromarray(values[:, :, 0] if values.shape[2:] == (1,) else values), "", {}, reading)
    except Exception as error:
        return _text(error)
    return Decoded(decoded.pixels, wide)


def check_ranges(wide: Sequence[tuple[str, float, float]], reading: Reading, where: str) -> None:
    """Refuse wide images of a data set whose black and white can only be guessed.

    Args:
        wide: `Decoded.wide` of its images.
        reading: how they were read; nothing is refused if it has a `value_range`.
        where: the data set, for the message.

    Raises:
        ValueError: with the range that was found and the key to type.
    """
    if reading.value_range is not None:
        return
    for name in sorted({name for name, _, _ in wide}):
        low = min(low for kind, low, _ in wide if kind == name)
        high = max(high for kind, _, high in wide if kind == name)
        limit = 1 if name == "float" else WIDE
        found = f"{where}: its {name} images have values from {_number(low)} to {_number(high)}"
        if low < 0 or high > limit:
            raise ValueError(f"{found}, expected 0 to {limit}: type {_range(low, high)}, or the values that are black and white")
        if high < limit / DARK:
            raise ValueError(
                f"{found}, which would be nearly black in the range 0 to {limit}: type {_range(low, high)}, "
                f"or value_range=[0,{limit}] if they are so dark"
            )


def _range(low: float, high: float) -> str:
    """Return the key that fits values from low to high: for values that fill whole bits, up to the largest one."""
    top = next((2**bits - 1 for bits in (8, 10, 12, 14, 16) if low >= 0 and 2 ** (bits - 1) <= high < 2**bits), high)
    return f"value_range=[{_number(min(low, 0))},{_number(top)}]"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.4g}"


def _decode(image: Image.Image, raw: str, tags: Mapping[int, Any], reading: Reading) -> Decoded:
    """Return the pixels of an image, which is changed.

    Args:
        image: opened, or in memory.
        raw: how its pixels lie in the file.
        tags: of a TIFF file, by number.
        reading: see `Reading`.

    Raises:
        _Refused: if its pixels have no meaning that is sure.
    """
    if tags.get(339) == (2,) and image.mode == "L":
        raise _Refused("8 bits with a sign: convert it to unsigned values")
    image.load()
    warnings: tuple[str, ...] = ()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # the pixels are there; only the data about them are damaged
        warnings = ("corrupt metadata, such as EXIF data",)
    wide = None
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        image, wide = _scale_wide(image, raw, inverted=tags.get(262) == 0, reading=reading)
    elif ";16" in raw and image.mode in ("L", "LA", "RGB", "RGBA"):
        image, wide = _scale_upper_bytes(image, reading)
    elif raw in ("L;2", "L;4") and isinstance(image.info.get("transparency"), int):  # Pillow scales the pixels, not the transparent value
        image.info["transparency"] *= 255 // (2 ** int(raw[2]) - 1)
    if reading.size is not None:
        # crop before resizing: resizing a long strip first could fill the memory
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        if image.size != (side, side):
            image = image.crop((left, top, left + side, top + side))
    image = _on_background(image, BACKGROUNDS[reading.background])
    if reading.size is not None:
        image = image.resize((reading.size, reading.size), Image.Resampling.BILINEAR)
    if not image.size[0] or not image.size[1]:
        raise _Refused("an image without pixels")
    return Decoded(np.asarray(image).transpose(2, 0, 1), wide, warnings)


def _raw_mode(image: Image.Image) -> str:
    """Return how the pixels lie in the file, such as `RGB;16B`; nothing for an image that is in memory."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def _scale_wide(image: Image.Image, raw: str, *, inverted: bool, reading: Reading) -> tuple[Image.Image, tuple[str, float, float]]:
    """Return an image of floats or wide integers with 8 bits, and the kind and range of its values.

    Args:
        image: of mode F, I or I;16.
        raw: how its pixels lie in the file.
        inverted: white is 0, which Pillow regards for 8 bits only.
        reading: with the range of values.
    """
    values = np.asarray(image)
    if raw.startswith("I;32") and not raw.endswith("S"):
        values = values.view(np.uint32)  # Pillow stores unsigned values as signed ones
    name = "float" if image.mode == "F" else "16-bit" if ";16" in raw or image.mode != "I" or image.format == "PPM" else "32-bit"
    scaled, wide = _scale(values, name, reading)
    gray = Image.fromarray(255 - scaled if inverted else scaled)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray, wide


def _scale(values: np.ndarray, name: str, reading: Reading) -> tuple[np.ndarray, tuple[str, float, float]]:
    """Return values as uint8, from black to white, with their kind and range.

    Raises:
        _Refused: if a value is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise _Refused("it has pixels that are NaN or infinite")
    low, high = reading.value_range or (0, 1 if name == "float" else WIDE)
    share = ((values.astype(np.float64) - low) / (high - low)).clip(0, 1)
    return (share * 255).round().astype(np.uint8), (name, float(values.min()), float(values.max()))


def _scale_upper_bytes(image: Image.Image, reading: Reading) -> tuple[Image.Image, tuple[str, float, float]]:
    """Return an image of which Pillow keeps the upper 8 of 16 bits, and the range of its values.

    Raises:
        _Refused: if 8 bits are too few for the range of values, or for a transparent colour.
    """
    if "transparency" in image.info:
        raise _Refused("a transparent colour of 16 bits per channel: convert it to 8 bits")
    bands = image.getbands()
    colours = [image.getchannel(band).getextrema() for band in bands if band != "A"]
    lowest, highest = (257.0 * choose(cast(tuple[int, int], pair)[i] for pair in colours) for i, choose in enumerate((min, max)))
    if reading.value_range is not None:
        low, high = reading.value_range
        if high - low < WIDE / DARK:
            raise _Refused(
                "16 bits per channel in colour, of which Pillow reads the upper 8: too few for this value_range: convert it to 8 bits"
            )
        table = ((np.arange(256) * 257 - low) / (high - low) * 255).clip(0, 255).round().astype(int).tolist()
        unchanged = list(range(256))
        image = image.point([value for band in bands for value in (unchanged if band == "A" else table)])
    return image, ("16-bit", lowest, highest)


def _on_background(image: Image.Image, gray: int) -> Image.Image:
    """Return an image as RGB, its transparent parts on a background, whatever its mode."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    background = Image.new("RGB", image.size, (gray, gray, gray))
    background.paste(image, mask=image.getchannel("A"))
    return background


def _with_warnings(decoded: Decoded, heard: Iterable[str]) -> Decoded:
    kinds = dict.fromkeys((*decoded.warnings, *map(pillow_warnings.kind, heard)))
    return Decoded(decoded.pixels, decoded.wide, tuple(kinds))


def _reason(path: Path, error: Exception) -> str:
    """Return why a file cannot be read, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return needs(path) or "not an image, or of a kind that Pillow cannot read"
    return _text(error)


def _text(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        most = f" {2 * Image.MAX_IMAGE_PIXELS:,}" if Image.MAX_IMAGE_PIXELS else ""
        return f"too large: Pillow reads at most{most} pixels, to protect the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, _Refused) else f"damaged ({text})" if text else "damaged"
