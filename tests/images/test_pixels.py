"""What becomes of the pixels of one file: every mode in every format, transparency, wide values, and what cannot be read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import PIL
import pytest
from picture_files import MODES, mean_on, picture, write_png, write_tiff
from PIL import Image

from twoviews.images import formats
from twoviews.images.pixels import Decoded, Reading, check_ranges, decode, decode_image

Image.init()
ENDINGS = {name: suffix for suffix, name in reversed(Image.registered_extensions().items()) if name in Image.SAVE}
OWN_SIZE = Reading(None)
BLACK = Reading(None, background="black")
LOST = {("P", "ICNS")}  # Pillow loses the palette when it reads them
LOST |= {("YCbCr", "TIFF")} if int(PIL.__version__.split(".")[0]) < 13 else set()  # Pillow 12 cannot read what it writes
WIDE = ("F", "I", "I;16", "I;16B")


def read(path: Path, reading: Reading = OWN_SIZE) -> Decoded:
    """Return a file's image, which must be readable."""
    decoded = decode(path, reading)
    assert isinstance(decoded, Decoded), decoded
    return decoded


def mean(decoded: Decoded) -> np.ndarray:
    return np.asarray(decoded.pixels.mean((1, 2)))


# ---- every mode in every format ----


def written(folder: Path, mode: str, name: str) -> Path | None:
    """Return a file of the picture in this mode and format, or None if Pillow cannot write it."""
    path = folder / f"picture{ENDINGS[name]}"
    try:
        picture(mode)[0].save(path, format=name, quality=95)
    except Exception:
        return None
    return path


def refused(decoded: Decoded) -> bool:
    """Return whether a data set of this image would be refused because of its range of values."""
    try:
        check_ranges([decoded.wide] if decoded.wide else [], BLACK, "tree")
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("name", ENDINGS)
def test_every_mode_in_this_format_has_the_right_mean_colour_or_is_refused(name: str, tmp_path: Path) -> None:
    for mode in MODES:
        path = written(tmp_path, mode, name)
        if path is None:
            continue
        decoded = decode(path, BLACK)
        if isinstance(decoded, str):
            assert name in formats.REFUSED or name not in Image.OPEN or (mode, name) in LOST, f"{mode}: {decoded}"
            assert decoded.startswith(("needs ", "not an image", "damaged")), decoded
            continue
        with Image.open(path) as image:
            kept = image.has_transparency_data  # some formats write the colours without their opacity
            clipped = mode in WIDE and image.mode in ("L", "P", "RGB")  # of wide values, others write only 0 and 255
        if clipped or refused(decoded):
            continue
        _, colours, opacity = picture(mode)
        expected = mean_on(0, colours, opacity if kept else np.ones_like(opacity))
        assert np.abs(mean(decoded) - expected).max() <= 2, f"{mode}: {mean(decoded)}, expected {expected}"


def test_most_formats_and_all_modes_are_in_that_test(tmp_path: Path) -> None:
    pairs = [(mode, name) for name in ENDINGS for mode in MODES if written(tmp_path, mode, name)]
    readable = {name for _, name in pairs} - formats.REFUSED
    assert len(pairs) > 100
    assert readable >= {"PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "AVIF", "QOI"}
    assert {mode for mode, _ in pairs} >= set(MODES) - {"La", "RGBa"}  # no file holds these two; see the next test
    carried = {name for mode, name in pairs if mode == "RGBA" and name in readable}
    for name in carried:
        with Image.open(written(tmp_path, "RGBA", name) or "") as image:
            if not image.has_transparency_data:
                carried = carried - {name}
    assert carried >= {"PNG", "WEBP", "TIFF", "GIF", "TGA", "ICO", "JPEG2000", "AVIF", "QOI"}


@pytest.mark.parametrize("background", ["white", "gray", "black"])
@pytest.mark.parametrize("mode", MODES)
def test_an_image_in_memory_of_any_mode_has_the_right_mean_colour(mode: str, background: str) -> None:
    image, colours, opacity = picture(mode)
    before = image.tobytes()
    decoded = decode_image(image, Reading(None, background=background))
    assert isinstance(decoded, Decoded), decoded
    level = {"white": 255, "gray": 128, "black": 0}[background]
    assert np.abs(mean(decoded) - mean_on(level, colours, opacity)).max() <= 2
    assert image.tobytes() == before


# ---- transparency ----


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_gray_level_of_a_png_is_found_at_every_depth(bits: int, tmp_path: Path) -> None:
    top = 2**bits - 1
    row = np.array([top, 0] * 4)  # white is transparent
    packed = np.packbits(((row[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(-1)).tobytes()
    write_png(tmp_path / "a.png", (b"\0" + packed) * 8, width=8, height=8, bits=bits, colour=0, transparent=struct.pack(">H", top))
    assert (read(tmp_path / "a.png", BLACK).pixels == 0).all()
    assert set(read(tmp_path / "a.png").pixels.reshape(-1)) == {0, 255}


def test_a_transparent_colour_and_palettes_with_opacity_are_composited(tmp_path: Path) -> None:
    write_png(
        tmp_path / "rgb.png",
        (b"\0" + bytes([9, 8, 7, 1, 2, 3])) * 2,
        width=2,
        height=2,
        bits=8,
        colour=2,
        transparent=bytes([0, 9, 0, 8, 0, 7]),
    )
    assert read(tmp_path / "rgb.png").pixels[:, 0].tolist() == [[255, 1], [255, 2], [255, 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([100, 100, 100, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=bytes([255, 51]))
    assert read(tmp_path / "p.png").pixels[:, 0].tolist() == [[100, 244], [100, 204], [100, 204]]  # a fifth of the colour, the rest white
    palette.save(tmp_path / "p.gif", transparency=0)
    assert read(tmp_path / "p.gif", BLACK).pixels[:, 0].tolist() == [[0, 200], [0, 0], [0, 0]]
    palette.putpalette([100, 100, 100, 0, 200, 0, 0, 255], "RGBA")
    decoded = decode_image(palette, BLACK)
    assert isinstance(decoded, Decoded)
    assert decoded.pixels[:, 0].tolist() == [[0, 200], [0, 0], [0, 0]]


def test_a_transparent_colour_of_16_bits_is_refused_because_pillow_reads_8(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", b"\0" + bytes(6), width=1, height=1, bits=16, colour=2, transparent=bytes(6))
    assert decode(tmp_path / "a.png", OWN_SIZE) == "a transparent colour of 16 bits per channel: convert it to 8 bits"


def test_edges_do_not_take_the_colour_under_transparent_pixels(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :31] = 255  # opaque white beside transparent black
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png", Reading(8)).pixels == 255).all()
    stripes = Image.fromarray(np.tile(np.array([0, 1], np.uint8), (64, 32)))
    stripes = stripes.convert("P")
    stripes.putpalette([0, 0, 0, 255, 0, 0])
    stripes.save(tmp_path / "b.png", transparency=1)  # every second column is transparent
    mixed = read(tmp_path / "b.png", Reading(8)).pixels[:, :, 1:-1]
    assert np.abs(mixed.astype(int) - 128).max() < 8


# ---- wide and float values ----


def test_16_bits_are_scaled_by_257_in_both_byte_orders(tmp_path: Path) -> None:
    ramp = (np.arange(256, dtype=np.uint32) * 257).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp.astype(">u2")).save(tmp_path / "b.tif")
    write_tiff(tmp_path / "c.tif", ramp.astype(np.uint32))
    write_tiff(tmp_path / "d.tif", ramp.astype(np.int32), sample_format=2)
    kinds = []
    for name in ("a.png", "b.tif", "c.tif", "d.tif"):
        decoded = read(tmp_path / name)
        assert np.array_equal(decoded.pixels[0].reshape(-1), np.arange(256))
        assert decoded.wide is not None
        kinds.append(decoded.wide[0])
        assert decoded.wide[1:] == (0, 65535)
    assert kinds == ["16-bit", "16-bit", "32-bit", "32-bit"]


def test_floats_are_scaled_by_255_and_a_range_scales_everything_wide(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    write_tiff(tmp_path / "a.tif", values, sample_format=3)
    assert np.array_equal(read(tmp_path / "a.tif").pixels[0].reshape(-1), np.arange(256))
    write_tiff(tmp_path / "b.tif", values * 400 - 100, sample_format=3)
    scaled = read(tmp_path / "b.tif", Reading(None, value_range=(-100, 300)))
    assert np.abs(scaled.pixels[0].reshape(-1) - np.arange(256.0)).max() <= 1
    clipped = read(tmp_path / "b.tif", Reading(None, value_range=(0, 1)))
    assert set(clipped.pixels.reshape(-1)[[0, -1]]) == {0, 255}
    assert scaled.wide == ("float", -100, 300)
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / "c.png")
    assert read(tmp_path / "c.png", Reading(None, value_range=(0, 4095))).pixels[0].tolist() == [[0, 255]]
    Image.new("L", (2, 2), 100).save(tmp_path / "d.png")
    assert (read(tmp_path / "d.png", Reading(None, value_range=(0, 4095))).pixels == 100).all()


def test_values_beyond_31_bits_and_signed_ones_are_read_as_they_are(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", np.array([[0, 2**32 - 1]], np.uint32))
    assert read(tmp_path / "a.tif").wide == ("32-bit", 0, 2**32 - 1)
    write_tiff(tmp_path / "b.tif", np.array([[-1024, 3071]], np.int16), sample_format=2)
    assert read(tmp_path / "b.tif").wide == ("16-bit", -1024, 3071)
    write_tiff(tmp_path / "c.tif", np.array([[-1, 1]], np.int8), sample_format=2)
    assert decode(tmp_path / "c.tif", OWN_SIZE) == "8 bits with a sign: convert it to unsigned values"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_where_white_is_zero_the_image_is_inverted(dtype: type, tmp_path: Path) -> None:
    top = 1.0 if dtype is np.float32 else np.iinfo(dtype).max
    write_tiff(tmp_path / "a.tif", np.array([[0, top]], dtype), photometric=0, sample_format=3 if dtype is np.float32 else 1)
    assert read(tmp_path / "a.tif").pixels[0].tolist() == [[255, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_makes_a_bad_file(value: float, tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", np.array([[0, value]], np.float32), sample_format=3)
    assert decode(tmp_path / "a.tif", OWN_SIZE) == "it has pixels that are NaN or infinite"


def test_16_bits_per_channel_in_colour_have_a_range_too(tmp_path: Path) -> None:
    values = np.repeat(np.array([[0, 4095]], np.uint16)[:, :, None], 3, 2)
    write_tiff(tmp_path / "a.tif", values, photometric=2)
    decoded = read(tmp_path / "a.tif")
    assert decoded.wide == ("16-bit", 0, 15 * 257)
    with pytest.raises(ValueError, match=r"a: its 16-bit images have values from 0 to 3855, .*type value_range=\[0,4095\]"):
        check_ranges([decoded.wide], OWN_SIZE, "a")
    assert "too few for this value_range" in str(decode(tmp_path / "a.tif", Reading(None, value_range=(0, 4095))))
    assert read(tmp_path / "a.tif", Reading(None, value_range=(0, 65535))).pixels[0].tolist() == [[0, 15]]
    write_tiff(tmp_path / "b.tif", np.full((1, 1, 3), 16384, np.uint16), photometric=2)
    assert (read(tmp_path / "b.tif", Reading(None, value_range=(0, 32767))).pixels == 128).all()
    rows = b"\0" + struct.pack(">4H", 30000, 20000, 10000, 0)
    write_png(tmp_path / "c.png", rows, width=1, height=1, bits=16, colour=6)
    assert (read(tmp_path / "c.png", Reading(None, value_range=(0, 32767))).pixels == 255).all()  # its only pixel is transparent


@pytest.mark.parametrize(
    ("wide", "error"),
    [
        (("float", 0.0, 255.0), r"values from 0 to 255, expected 0 to 1: type value_range=\[0,255\]"),
        (("float", 0.0, 3.0), r"values from 0 to 3, expected 0 to 1: type value_range=\[0,3\]"),
        (("float", -1.0, 1.0), r"values from -1 to 1, expected 0 to 1: type value_range=\[-1,1\]"),
        (("float", 0.0, 0.001), r"values from 0 to 0.001, which would be nearly black in the range 0 to 1: type value_range=\[0,0.001\]"),
        (("32-bit", 0, 10_000_000), r"values from 0 to 10000000, expected 0 to 65535: type value_range=\[0,10000000\]"),
        (("32-bit", 0, 255), r"values from 0 to 255, which .*: type value_range=\[0,255\], or value_range=\[0,65535\]"),
        (("16-bit", -1024, 3071), r"values from -1024 to 3071, expected 0 to 65535: type value_range=\[-1024,3071\]"),
        (
            ("16-bit", 0, 4000),
            r"values from 0 to 4000, which would be nearly black .*: type value_range=\[0,4095\], or value_range=\[0,65535\]",
        ),
    ],
)
def test_a_range_that_is_a_guess_is_refused_with_the_key(wide: tuple[str, float, float], error: str) -> None:
    with pytest.raises(ValueError, match=f"^tree: its {wide[0]} images have {error}"):
        check_ranges([wide, (wide[0], 0.0, 0.0)], Reading(32), "tree")
    check_ranges([wide], Reading(32, value_range=(0, 1)), "tree")


def test_ranges_of_a_whole_set_are_accepted() -> None:
    check_ranges([], OWN_SIZE, "tree")
    check_ranges([("float", 0.4, 0.5), ("16-bit", 0, 100), ("16-bit", 0, 8192), ("32-bit", 0, 65535)], OWN_SIZE, "tree")


def test_a_reading_without_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="background=pink: expected one of white, gray, black"):
        Reading(8, background="pink")
    with pytest.raises(ValueError, match=r"value_range=\[1,1\]: expected \[low,high\], low below high"):
        Reading(8, value_range=(1, 1))
