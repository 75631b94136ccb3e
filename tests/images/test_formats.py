"""Which files are images, which package reads the others, and what a damaged file or a warning of Pillow becomes."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from picture_files import SIZE, mean_on, picture, write_tiff
from PIL import Image

from twoviews.images import pillow_warnings
from twoviews.images.formats import kind
from twoviews.images.pixels import Decoded, Reading, decode

OWN_SIZE = Reading(None)


def read(path: Path, reading: Reading = OWN_SIZE) -> Decoded:
    """Return a file's image, which must be readable."""
    decoded = decode(path, reading)
    assert isinstance(decoded, Decoded), decoded
    return decoded


def difference(path: Path) -> float:
    """Return how far the mean colour of a file is from that of the picture."""
    return float(np.abs(read(path).pixels.mean((1, 2)) - mean_on(0, *picture("RGB")[1:])).max())


# ---- which files are images ----


def blob(name: str, **options: str) -> bytes:
    """Return the bytes of a picture in a format."""
    buffer = io.BytesIO()
    picture("RGB")[0].save(buffer, name, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a.avif", "a", "a.txt", "a.jpeg~", "a.png", "a.heic", "a.xyz.1"])
def test_an_image_is_found_by_its_content(name: str, tmp_path: Path) -> None:
    for made in ("JPEG", "AVIF", "PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "PPM"):
        (tmp_path / name).write_bytes(blob(made))
        assert kind(tmp_path / name) == "image"
        assert difference(tmp_path / name) <= 3


@pytest.mark.parametrize("name", ["a.tga", "a.dib", "a.pcx", "a.sgi", "a.im"])
@pytest.mark.filterwarnings("ignore:IM image format")  # of writing it
def test_formats_with_weak_signatures_are_found_by_their_ending(name: str, tmp_path: Path) -> None:
    picture("RGB")[0].save(tmp_path / name)
    assert kind(tmp_path / name) == "image"
    assert difference(tmp_path / name) <= 2


OTHERS = {
    "notes.txt": b"BM is how this text begins",
    "p5.txt": b"P5 is how this one begins",
    "labels.csv": b"name,label\na,1\n",
    "Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "code.h": b"#define width_of_it 3\n",
    "film.mp4": b"\0\0\0\x20ftypisom" + bytes(100),
    "archive.zip": b"PK\3\4" + bytes(100),
    "empty": b"",
    "run.fit": b"\x0e\x10\xd9\x07.FIT",
}
NEEDED = {
    "a.heic": (b"\0\0\0\x18ftypheic" + bytes(100), "pip install pillow-heif"),
    "renamed.jpg": (b"\0\0\0\x18ftypheic" + bytes(100), "pip install pillow-heif"),
    "a.jxl": (b"\xff\x0a" + bytes(100), "pip install pillow-jxl-plugin"),
    "a.dng": (b"II*\0" + bytes(100), "rawpy"),
    "a.nef": (b"", "rawpy"),
    "a.dcm": (bytes(128) + b"DICM" + bytes(100), "pydicom"),
    "IM0001": (bytes(128) + b"DICM" + bytes(100), "pydicom"),
    "a.npy": (b"\x93NUMPY\1\0" + bytes(100), "numpy array"),
    "a.svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "cairosvg"),
    "a.exr": (b"v/1\x01" + bytes(100), "imageio"),
    "a.pdf": (b"%PDF-1.4" + bytes(100), "pymupdf"),
    "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "ghostscript"),
    "a.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "h5py"),
    "a.wmf": (b"\xd7\xcd\xc6\x9a\0\0" + bytes(100), "inkscape"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_picture_is_something_else(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(OTHERS[name])
    assert kind(tmp_path / name) == "other"
    reason = decode(tmp_path / name, OWN_SIZE)
    assert str(reason).startswith(("not an image, or of a kind that Pillow cannot read", "damaged ("))


@pytest.mark.parametrize("name", NEEDED)
def test_a_picture_that_cannot_be_read_here_names_the_package(name: str, tmp_path: Path) -> None:
    content, package = NEEDED[name]
    (tmp_path / name).write_bytes(content)
    reason = decode(tmp_path / name, OWN_SIZE)
    assert isinstance(reason, str)
    assert reason.startswith("needs ")
    assert package in reason
    assert kind(tmp_path / name) == ("image" if name == "renamed.jpg" else reason)


@pytest.mark.parametrize("name", ["AVIF", "WEBP"])
def test_a_pillow_without_a_format_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(blob(name))
    (tmp_path / f"b.{name.lower()}").write_bytes(blob(name))
    factory, accept = Image.OPEN[name]
    monkeypatch.setitem(Image.OPEN, name, (factory, lambda prefix: "support not installed" if accept and accept(prefix) else False))
    expected = f"needs a Pillow with {name}: pip install --upgrade pillow"
    assert decode(tmp_path / "a", OWN_SIZE) == decode(tmp_path / f"b.{name.lower()}", OWN_SIZE) == expected
    assert kind(tmp_path / "a") == expected


# ---- damaged files and warnings ----


def corrupt_exif(path: Path) -> None:
    """Write an image whose EXIF data end too early."""
    picture("RGB")[0].save(path, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")


def test_corrupt_metadata_are_named_in_our_words_and_the_image_is_kept(tmp_path: Path) -> None:
    corrupt_exif(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg").warnings == ("corrupt metadata, such as EXIF data",)


def test_a_large_image_is_a_warning_and_a_bomb_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture("RGB")[0].save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE * SIZE - 1)
    assert read(tmp_path / "a.png").warnings == ("very large image (over 89 million pixels)",)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE)
    assert str(decode(tmp_path / "a.png", OWN_SIZE)).startswith("too large: Pillow reads at most 64 pixels")


def test_warnings_are_collected_in_many_threads_and_nothing_else_changes(tmp_path: Path) -> None:
    corrupt_exif(tmp_path / "bad.jpg")
    picture("RGB")[0].save(tmp_path / "good.jpg")
    before = list(warnings.filters)
    stop = threading.Event()
    raised = []

    def warn_elsewhere() -> None:  # a thread of the user's, whose warnings are errors in this test
        while not stop.is_set():
            try:
                warnings.warn("Corrupt EXIF data of the user's own", stacklevel=1)
            except UserWarning as error:
                raised.append(error)
            else:
                raised.append(None)

    other = threading.Thread(target=warn_elsewhere)
    other.start()
    paths = [tmp_path / name for name in ("bad.jpg", "good.jpg") * 100]
    with ThreadPoolExecutor(8) as pool:
        kinds = [read(path).warnings for path in pool.map(lambda path: path, paths)]
        kinds += [decoded.warnings for decoded in pool.map(read, paths)]
    stop.set()
    other.join()
    assert kinds == [("corrupt metadata, such as EXIF data",), ()] * 200
    assert None not in raised
    assert raised
    assert list(warnings.filters) == before
    assert not logging.getLogger("PIL.TiffImagePlugin").filters


def test_what_pillow_logs_does_not_reach_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tiff(tmp_path / "a.tif", np.zeros((4, 4, 9), np.uint8))
    assert isinstance(decode(tmp_path / "a.tif", OWN_SIZE), str)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_warning_is_one_kind_whatever_its_numbers() -> None:
    assert pillow_warnings.kind("Odd tag\n 12 of 7") == pillow_warnings.kind("Odd tag 3 of 99") == "Pillow warns: Odd tag N of N"


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI", "TIFF, LZW"])
def test_a_damaged_file_raises_nothing_and_prints_nothing(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = blob("TIFF", compression="tiff_lzw") if name == "TIFF, LZW" else blob(name)  # libtiff prints its own messages
    random = np.random.default_rng(0)
    for i in range(60):
        damaged = bytearray(content[: random.integers(1, len(content) + 1)] if i % 2 else content)
        for at in random.integers(0, len(damaged), 4):
            damaged[at] = random.integers(256)
        (tmp_path / "a.img").write_bytes(damaged)
        decoded = decode(tmp_path / "a.img", Reading(16))
        assert isinstance(decoded, str) or decoded.pixels.shape == (3, 16, 16)
        if isinstance(decoded, str):
            assert "\n" not in decoded
            assert str(tmp_path) not in decoded
    assert capfd.readouterr() == ("", "")
