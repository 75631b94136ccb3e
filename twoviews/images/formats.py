"""Which files are images: by their names, then by their first bytes; and which package reads what Pillow cannot."""

import contextlib
import functools
import importlib
import importlib.util
import threading
from pathlib import Path

from PIL import Image, ImageFile

from twoviews.images.pillow_warnings import collect

# Formats that are believed by the ending of the name alone: a file that is then not an image is a bad file.
COMMON = {"PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF", "JXL", "JPEG2000", "PPM", "TGA"}
# Formats that run another program, that Pillow only identifies, or that hold something else.
REFUSED = {"EPS", "PDF", "WMF", "HDF5", "BUFR", "GRIB", "MPEG", "FPX", "MIC", "IPTC"}
WEAK = {"PCX", "DIB", "SGI", "GBR", "FLI", "CUR", "MCIDAS", "XBM"}  # formats whose first bytes other files have, too
PLUGINS = ("pillow_heif", "pillow_jxl", "pillow_avif")  # packages that add formats to Pillow

HEIF = "needs the package pillow-heif: pip install pillow-heif"
JXL = "needs the package pillow-jxl-plugin: pip install pillow-jxl-plugin"
PLUGIN_FORMATS = {HEIF: "HEIF", JXL: "JXL"}  # the formats that these packages add
RAW = "needs converting to JPEG or PNG (the package rawpy reads raw photographs)"
DICOM = "needs converting to PNG (the package pydicom reads DICOM)"
ARRAY = "needs converting to images: it holds a numpy array"
SVG = "needs converting to PNG (the package cairosvg reads SVG)"
EXR = "needs converting to TIFF or PNG (the package imageio reads EXR and HDR)"
PAGES = "needs converting to PNG (the package pymupdf reads PDF)"
POSTSCRIPT = "needs converting to PNG (the program ghostscript reads PostScript)"
METAFILE = "needs converting to PNG (the program inkscape reads metafiles)"
HDF = "needs converting to images (the package h5py reads HDF5)"
LAYERED = "needs converting to PNG (the program gimp reads it)"

RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".crw", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")
NEEDS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIF),
    ".jxl": JXL,
    **dict.fromkeys((".dcm", ".dicom"), DICOM),
    **dict.fromkeys((".npy", ".npz"), ARRAY),
    **dict.fromkeys((".svg", ".svgz"), SVG),
    **dict.fromkeys((".exr", ".hdr"), EXR),
    ".pdf": PAGES,
    **dict.fromkeys((".eps", ".ps"), POSTSCRIPT),
    **dict.fromkeys((".wmf", ".emf"), METAFILE),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), HDF),
    **dict.fromkeys((".xcf", ".kra"), LAYERED),
}
# (position, bytes) at which a file without a telling name is recognised.
SIGNATURES = {
    **{(4, b"ftyp" + brand): HEIF for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")},
    (0, b"\xff\x0a"): JXL,
    (0, b"\0\0\0\x0cJXL \r\n\x87\n"): JXL,
    (128, b"DICM"): DICOM,
    (0, b"\x93NUMPY"): ARRAY,
    (0, b"v/1\x01"): EXR,
    (0, b"#?RADIANCE"): EXR,
    (0, b"%PDF"): PAGES,
    (0, b"%!PS"): POSTSCRIPT,
    (0, b"\xd7\xcd\xc6\x9a"): METAFILE,
    (0, b"\x89HDF\r\n\x1a\n"): HDF,
    (0, b"gimp xcf"): LAYERED,
    (0, b"FUJIFILMCCD-RAW"): RAW,
}

_lock = threading.Lock()


@functools.cache
def _formats() -> tuple[dict[str, str], tuple[str, ...]]:
    """Return {ending: format} and the formats to try by content, of everything that Pillow reads here."""
    with _lock, collect():
        Image.init()
        for name in PLUGINS:
            if importlib.util.find_spec(name) is not None:
                with contextlib.suppress(Exception):  # a broken plugin: its files are then listed
                    module = importlib.import_module(name)
                    if name == "pillow_heif":
                        module.register_heif_opener()
    readable = [name for name in Image.ID if name not in REFUSED]
    telling = [name for name in readable if Image.OPEN[name][1] is not None and name not in WEAK]
    telling.sort(key=("JPEG", "PNG").__contains__, reverse=True)
    return {suffix: name for suffix, name in Image.registered_extensions().items() if name in readable}, tuple(telling)


def readable() -> tuple[str, ...]:
    """Return the names of the formats that are tried by content: with Pillow's version, they decide what can be read here."""
    return _formats()[1]


def open_image(path: Path) -> ImageFile.ImageFile:
    """Return the image of a file, opened but not read, whatever its name says; close it after use.

    Raises:
        Exception: whatever Pillow raises for a file that is not an image, or is a damaged one.
    """
    by_name, by_content = _formats()
    named = by_name.get(path.suffix.lower())
    return Image.open(path, formats=(*by_content, named) if named else by_content)


def kind(path: Path) -> str:
    """Return what a file is: `image`; `other`, which is no picture; or `needs ...`, a picture that cannot be read here, and what would.

    A name with a common ending, such as `.png`, counts as an image: if it is none, `pixels.decode` returns why. Other
    files are opened, so that an image with an unknown ending, or none, is found.
    """
    suffix = path.suffix.lower()
    if _formats()[0].get(suffix) in COMMON:
        return "image"
    if suffix in RAW_SUFFIXES:  # many are TIFF files whose first image is a thumbnail
        return RAW
    if not path.is_file():  # opening a pipe would block
        return "other"
    try:
        with collect(), open_image(path):
            return "image"
    except Exception:  # not an image, or a damaged one, for which Pillow raises anything
        return needs(path) or "other"


def needs(path: Path) -> str:
    """Return `needs ...`: what would read a picture that Pillow cannot read here; or nothing, if the file is no such picture."""
    suffix = path.suffix.lower()
    if suffix in RAW_SUFFIXES:
        return RAW
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return ""
    for (position, signature), text in SIGNATURES.items():
        if start[position:].startswith(signature) and PLUGIN_FORMATS.get(text) not in Image.OPEN:
            return text
    if b"<svg" in start:
        return SVG
    for name in _formats()[1]:
        accept = Image.OPEN[name][1]
        if accept and isinstance(accept(start[:16]), str):  # Pillow's words for a format that it was built without
            return f"needs a Pillow with {name}: pip install --upgrade pillow"
    return "" if suffix in _formats()[0] else NEEDS.get(suffix, "")
