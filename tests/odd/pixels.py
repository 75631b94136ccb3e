"""Odd image files: transparent, wide, damaged, misnamed, or of a kind that cannot be read here."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from picture_files import write_png, write_tiff
from PIL import Image

from odd.odd import SIZE, Odd
from twoviews.data import folder

EXIF = b"Exif\0\0II*\0\x08\0\0\0\x05\0"  # it ends too early


def _folders(odd: Odd) -> Path:
    """Write two classes of ordinary images and return the folder of the first one."""
    odd.images("bus", "car")
    return odd.data / "bus"


def _printed(odd: Odd, *words: str) -> str:
    """Return what `twoviews data` prints, which must succeed without a word on standard error."""
    code, out, err = odd.run("data", *words)
    assert (code, err) == (0, "")
    return out


def _only(odd: Odd, values: Any, **options: Any) -> np.ndarray:
    """Return the pixels (3, SIZE, SIZE) of a wide image, written to all files of a folder, as they are trained on."""
    for i in range(24):
        (odd.data / "bus").mkdir(exist_ok=True)
        write_tiff(odd.data / f"bus/{i}.tif", values, **options)
    arrays = folder.read(str(odd.data), folder.Options(image_size=SIZE, value_range=(0, 4095)))
    assert len(arrays.train_images) == 24
    return np.asarray(arrays.train_images[0])


# ---- transparency ----


def transparent_pixels_are_white_or_of_the_background_that_is_asked_for(odd: Odd) -> None:
    path = _folders(odd) / "logo.png"
    Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0)).save(path)
    Image.new("LA", (SIZE, SIZE), (0, 0)).save(path.with_name("logo2.png"))
    Image.new("P", (SIZE, SIZE), 0).save(path.with_name("logo3.gif"), transparency=0)
    for background, level in (("white", 255), ("gray", 128), ("black", 0)):
        arrays = folder.read(str(odd.data), folder.Options(image_size=SIZE, background=background))
        for image in arrays.train_images[12:15]:
            assert (image == level).all()
    assert "one colour everywhere: 3 images (bus/logo.png, bus/logo2.png, bus/logo3.gif)" in _printed(odd, "background=gray")


def another_background_is_refused(odd: Odd) -> None:
    _folders(odd)
    assert "background=pink: background expects white or gray or black" in odd.refused("data", "background=pink")


# ---- wide values ----


def floats_beyond_0_to_1_are_refused_with_the_key_that_scales_them(odd: Odd) -> None:
    write_tiff(_folders(odd) / "scan.tif", np.linspace(-1000, 400, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE), sample_format=3)
    line = odd.refused("pretrain")
    assert "its float images have values from -1000 to 400, expected 0 to 1: type value_range=[-1000,400]" in line
    out = _printed(odd, "value_range=[-1000,400]")
    assert "scaled to 8 bits: 1 float image with values from -1000 to 400" in out
    assert "one colour" not in out


def an_x_ray_of_12_bits_in_16_is_refused_because_it_would_be_black(odd: Odd) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (SIZE, SIZE), np.uint16)
    Image.fromarray(pixels).save(_folders(odd) / "x-ray.png")
    line = odd.refused("pretrain")
    assert "nearly black in the range 0 to 65535: type value_range=[0,4095], or value_range=[0,65535] if they are so dark" in line
    assert "scaled to 8 bits: 1 16-bit image" in _printed(odd, "value_range=[0,65535]")


def integers_of_32_bits_are_not_clipped_to_white(odd: Odd) -> None:
    write_tiff(_folders(odd) / "deep.tif", np.arange(SIZE * SIZE, dtype=np.uint32).reshape(SIZE, SIZE) * 1000)
    assert "its 32-bit images have values from 0 to 255000, expected 0 to 65535: type value_range=[0,255000]" in odd.refused("pretrain")


def labels_of_8_bits_in_32_are_not_black(odd: Odd) -> None:
    write_tiff(_folders(odd) / "mask.tif", np.arange(SIZE * SIZE, dtype=np.int32).reshape(SIZE, SIZE) % 256, sample_format=2)
    assert "type value_range=[0,255]" in odd.refused("pretrain")


def a_range_of_values_scales_each_kind_of_wide_image(odd: Odd) -> None:
    ramp = np.linspace(0, 4095, SIZE * SIZE).reshape(SIZE, SIZE)
    expected = np.linspace(0, 255, SIZE * SIZE).reshape(SIZE, SIZE)
    for values, sample_format in ((ramp.astype(np.uint16), 1), (ramp.astype(np.int32), 2), (ramp.astype(np.float32), 3)):
        assert np.abs(_only(odd, values, sample_format=sample_format) - expected).max() <= 1
    assert np.abs(_only(odd, ramp.astype(np.uint16), photometric=0) - (255 - expected)).max() <= 1


def pixels_that_are_nan_are_a_bad_file(odd: Odd) -> None:
    write_tiff(_folders(odd) / "nan.tif", np.full((SIZE, SIZE), np.nan, np.float32), sample_format=3)
    assert "1 of 25 files cannot be read as images: " in (line := odd.refused("pretrain"))
    assert "bus/nan.tif: it has pixels that are NaN or infinite" in line
    assert "bus/nan.tif (it has pixels that are NaN or infinite)" in _printed(odd, "on_bad=skip")


def a_range_that_is_none_is_refused(odd: Odd) -> None:
    _folders(odd)
    assert "value_range" in odd.refused("data", "value_range=[5,5]")
    assert "value_range" in odd.refused("data", "value_range=[1]")


# ---- names ----


def images_are_found_whatever_their_ending(odd: Odd) -> None:
    path = _folders(odd)
    for name, form in {
        "a.jfif": "JPEG",
        "b.avif": "AVIF",
        "c": "PNG",
        "d.img": "WEBP",
        "e.PNG": "JPEG",
        "f.jp2": "JPEG2000",
        "g.tga": "TGA",
    }.items():
        Image.new("RGB", (SIZE, SIZE), (200, 0, 0)).save(path / name, form)
    assert "bus 17 2" in " ".join(_printed(odd).split())


def photographs_of_a_phone_name_the_package_that_reads_them(odd: Odd) -> None:
    path = _folders(odd)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(200)
    for name in ("a.HEIC", "b.jpg"):  # renamed, as some programs do
        (path / name).write_bytes(heic)
    line = odd.refused("pretrain")
    assert line.count("needs the package pillow-heif: pip install pillow-heif") == 2
    assert _printed(odd, "on_bad=skip").count("pillow-heif") >= 2


def raw_photographs_and_dicom_name_a_package(odd: Odd) -> None:
    path = _folders(odd)
    (path / "a.dng").write_bytes(b"II*\0" + bytes(200))
    (path / "b.dcm").write_bytes(bytes(128) + b"DICM" + bytes(200))
    line = odd.refused("pretrain")
    assert "rawpy" in line
    assert "pydicom" in line


def drawings_and_documents_are_listed(odd: Odd) -> None:
    path = _folders(odd)
    (path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (path / "b.pdf").write_bytes(b"%PDF-1.4 " + bytes(100))
    (path / "c.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    np.save(path / "d.npy", np.zeros(3))
    out = _printed(odd)
    for package in ("cairosvg", "pymupdf", "ghostscript", "numpy array"):
        assert package in out


# ---- damage ----


def damaged_metadata_are_one_line_and_the_image_is_used(odd: Odd) -> None:
    path = _folders(odd)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (SIZE, SIZE), (9, 9, 9)).save(path / name, exif=EXIF)
    out = _printed(odd)
    assert "corrupt metadata, such as EXIF data: 2 images (bus/a.jpg, bus/b.jpg)" in out
    assert out.count("EXIF") == 1


def a_bomb_and_a_cut_file_are_bad_files(odd: Odd) -> None:
    path = _folders(odd)
    write_png(path / "bomb.png", b"", width=20_000, height=20_000, bits=8, colour=2)
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    (path / "cut.jpg").write_bytes(buffer.getvalue()[:600])
    (path / "huge.bmp").write_bytes(b"BM" + bytes(16) + struct.pack("<ii", 100_000, 100_000) + bytes(60))
    line = odd.refused("pretrain")
    assert "3 of 27 files cannot be read as images" in line
    assert "bomb.png: too large: Pillow reads at most 178,956,970 pixels" in line
    assert "cut.jpg: " in line
    assert "Warning" not in line


def a_picture_that_lies_on_its_side_is_turned(odd: Odd) -> None:
    path = _folders(odd)
    turned = Image.new("RGB", (SIZE, SIZE))
    turned.paste((255, 255, 255), (0, 0, SIZE, SIZE // 2))  # its upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    turned.save(path / "a.png", exif=exif)
    image = folder.read(str(odd.data), folder.Options(image_size=SIZE)).train_images[12]
    assert (image[:, :, SIZE // 2 :] == 255).all()
    assert (image[:, :, : SIZE // 2] == 0).all()
    _printed(odd)
