"""Trees of images, decoded once in parallel, then cached as uint8 with a checksum: `dataset=folder`, and CIFAR unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from twoviews.data.arrays import Arrays
from twoviews.progress import Progress

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
MORE = {".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"}
LOSSY = {".jpg", ".jpeg"}
LISTED = 20  # bad files that a message names


def read(data_dir: str | None, *, image_size: int | None, on_bad: str) -> Arrays:
    """Any tree of images: `[train/ and test/] [<class>/...] file`.

    Without `test/` (or `val/`) a part of the images is held out by `dataset.load`; without class folders there is one class, and
    nothing to read out. Links to folders are followed. Pixels become RGB as they are shown: turned as EXIF says, the first frame of
    several, 16 bits a channel scaled to 8; then the middle square is kept and becomes `image_size` wide and high (bilinear, antialiased).

    Args:
        data_dir: the tree.
        image_size: pixels, >= 8.
        on_bad: `stop` lists the files that are no images and refuses; `skip` leaves them out and records them.

    Raises:
        ValueError: if the tree or the size is missing, classes do not fit, there are too few images, or files are bad.
    """
    if not data_dir or not Path(data_dir).is_dir():
        there = "no folder there" if data_dir else "got nothing"
        raise ValueError(f"dataset=folder: data_dir= must name a folder of images, {there}{f': {data_dir}' if data_dir else ''}")
    if image_size is None:
        raise ValueError("dataset=folder: image_size= must say how many pixels wide and high the images become, such as image_size=32")
    root = Path(data_dir)
    parts = [root / "train", next((root / name for name in ("test", "val") if (root / name).is_dir()), None)]
    if not (root / "train").is_dir():
        parts = [root, None]
    found = [[] if part is None else _walk(part) for part in parts]
    classes = sorted({name for name, _ in found[0]})
    if unknown := sorted({name for name, _ in found[1]} - set(classes)):
        raise ValueError(f"{parts[1]}: holds classes that {parts[0]} has not: {', '.join(unknown[:LISTED])}")
    listings = [[(path, classes.index(name)) for name, path in part] for part in found]
    if len(listings[0]) < 20:
        raise ValueError(f"{parts[0]}: holds {len(listings[0])} images ({', '.join(SUFFIXES | MORE)}): expected 20 at least")
    paths = [path for listing in listings for path, _ in listing]
    images, bad = _images(paths, root, root.name, image_size)
    if bad and on_bad == "stop":
        raise ValueError(f"{_listed(bad, paths)}: mend or remove them, or leave them out with on_bad=skip")
    good = [i for i in range(len(paths)) if i not in bad]
    cut = sum(i < len(listings[0]) for i in good)
    labels = np.array([label for listing in listings for _, label in listing], np.int64)[good]
    if bad:
        print(f"{len(bad)} of {len(paths)} files are no images and left out: the run's manifest lists them")
    title = f"{root.resolve().name}, {image_size} pixels"
    skipped = tuple(f"{_name(paths[i])}: {reason}" for i, reason in bad.items())
    return Arrays(title, images[:cut], labels[:cut], images[cut:], labels[cut:], tuple(classes), skipped)


def _walk(folder: Path) -> list[tuple[str, Path]]:
    """Class and path of every image file, sorted; the class is the first folder on the way, or one name for all where there are none."""
    suffixes = SUFFIXES | MORE
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename}: cannot be read ({error.strerror})")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        inside = Path(place).relative_to(folder)
        if Path(place).resolve() in [(folder / above).resolve() for above in inside.parents if inside.parts]:  # a link in a circle
            folders.clear()
            continue
        found += [inside / name for name in names if Path(name).suffix.lower() in suffixes and not name.startswith(".")]
    loose = sorted(path for path in found if len(path.parts) == 1)
    if loose and len(loose) < len(found):
        raise ValueError(f"{folder}: {loose[0]} and {len(loose) - 1} more lie beside class folders: put every image into one, or none")
    return sorted(("images" if loose else path.parts[0], folder / path) for path in found)


def read_tree(root: Path, *, title: str) -> Arrays:
    """Images of one size in `root/train/<class>/*` and `root/test/<class>/*`, classes in the order of their names.

    The decoded arrays are cached under `$XDG_CACHE_HOME/twoviews` (or `~/.cache/twoviews`), keyed by the path, size and
    time of every file: a changed tree is decoded again, and so is a cache whose checksum does not hold.

    Args:
        root: the tree.
        title: of the data set; a tree of JPEGs is called a copy, because its pixels are not the original ones.

    Raises:
        ValueError: naming the classes that differ between the splits, or the first files that are no images of one size.
    """
    classes = sorted(d.name for d in (root / "train").iterdir() if d.is_dir())
    other = sorted(d.name for d in (root / "test").iterdir() if d.is_dir())
    if not classes or classes != other:
        raise ValueError(f"{root}: train/ and test/ must hold the same class folders, got {classes} and {other}")
    listing = {
        split: [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / split / name).iterdir())
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ]
        for split in ("train", "test")
    }
    paths = [path for split in ("train", "test") for path, _ in listing[split]]
    if not listing["train"] or not listing["test"]:
        raise ValueError(f"{root}: no images ({', '.join(SUFFIXES)}) under train/ or test/")
    if any(path.suffix.lower() in LOSSY for path in paths):
        title += " (JPEG copy)"
    images, bad = _images(paths, root, title, None)
    if bad:
        raise ValueError(_listed(bad, paths))
    n = len(listing["train"])
    labels = {split: np.array([label for _, label in listing[split]], np.int64) for split in listing}
    return Arrays(title, images[:n], labels["train"], images[n:], labels["test"], tuple(classes))


def _listed(bad: dict[int, str], paths: list[Path]) -> str:
    named = "; ".join(f"{_name(paths[i])}: {reason}" for i, reason in list(bad.items())[:LISTED])
    more = f"; and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    return f"{len(bad)} of {len(paths)} files are no images of one size: {named}{more}"


def _name(path: Path) -> str:
    return str(path).encode(errors="backslashreplace").decode()  # a name need not be Unicode


def _images(paths: list[Path], root: Path, title: str, size: int | None) -> tuple[np.ndarray, dict[int, str]]:
    """The good images (n, 3, H, W) uint8 in the order of the paths, and why others are bad; from the cache where nothing has changed."""
    key = hashlib.sha256(os.fsencode(root.resolve()) + f"\0{size}\0".encode())
    for path in paths:
        try:
            stat = path.stat()
            about = f"\0{stat.st_size}\0{stat.st_mtime_ns}\0"
        except OSError:  # a link to nothing: decoding says so
            about = "\0nothing\0"
        key.update(os.fsencode(path.relative_to(root)) + about.encode())
    cache = _cache_folder() / f"tree-{key.hexdigest()[:32]}.npy"
    images = _read_cache(cache, key.digest())
    if images is not None:
        return images, {}
    images, bad = _decode(paths, title, size)
    if not bad:
        _write_cache(cache, images, key.digest())
    return images, bad


def _decode(paths: list[Path], title: str, size: int | None) -> tuple[np.ndarray, dict[int, str]]:
    images: np.ndarray | None = None
    bad: dict[int, str] = {}
    with Progress(f"decode {title}", len(paths), "images") as bar, contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(os.cpu_count())
        stack.callback(pool.shutdown, cancel_futures=True)  # at Ctrl-C, wherever it comes: else all images would be waited for
        for i, pixels in enumerate(pool.map(lambda path: _open(path, size), paths, chunksize=256)):
            bar.add()
            if isinstance(pixels, str):
                bad[i] = pixels
                continue
            if images is None:
                images = np.empty((len(paths), *pixels.shape), np.uint8)
            if pixels.shape != images.shape[1:]:
                (_, height, width), (_, first_height, first_width) = pixels.shape, images.shape[1:]
                bad[i] = f"{width} x {height} pixels, the first image has {first_width} x {first_height}"
                continue
            images[i - len(bad)] = pixels
    if images is None:
        raise ValueError(_listed(bad, paths))
    return images[: len(paths) - len(bad)], bad


def _open(path: Path, size: int | None) -> np.ndarray | str:
    """Pixels (3, H, W) uint8, or why there are none."""
    from PIL import Image, ImageOps

    if not path.is_file():  # a pipe would be waited for
        return "a link to nothing" if path.is_symlink() else "not a regular file"
    formats = SUFFIXES if size is None else SUFFIXES | MORE
    try:
        with Image.open(path, formats=tuple(set(formats.values()))) as image:
            if size is None:
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            image.draft("RGB", (size, size))  # a JPEG far larger than needed is decoded at a fraction
            shown = ImageOps.exif_transpose(image)
            if shown.mode.startswith("I"):  # 16 bits a pixel: PIL's own conversion would cut them off at 255
                shown = Image.fromarray((np.asarray(shown) / 257).clip(0, 255).round().astype(np.uint8))
            side = min(shown.size)
            left, top = ((length - side) // 2 for length in shown.size)
            square = shown.crop((left, top, left + side, top + side)).convert("RGB")  # first: a strip blown up could fill the memory
            return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    except Exception as error:  # a decoder fed with garbage raises whatever it likes, and a file must not end the listing
        return " ".join(str(error).split())[:200] or type(error).__name__


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twoviews"


def _read_cache(path: Path, key: bytes) -> np.ndarray | None:
    """The cached array, or None if there is none whose checksum, over it and what it was made of, holds."""
    try:
        blob = path.read_bytes()
    except OSError:
        return None
    digest, _, payload = blob.partition(b"\n")
    if hashlib.sha256(key + payload).hexdigest().encode() != digest:
        print(f"cache {path} is damaged: decoding again")
        return None
    return np.load(io.BytesIO(payload), allow_pickle=False)  # type: ignore[no-any-return]


def _write_cache(path: Path, images: np.ndarray, key: bytes) -> None:
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    payload = buffer.getvalue()
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(hashlib.sha256(key + payload).hexdigest().encode() + b"\n" + payload)
        os.replace(beside, path)
    except OSError as error:  # a cache that cannot be kept costs the next run its decoding, no more
        print(f"cache {path} not written ({error}): the images will be decoded again next time")
        with contextlib.suppress(OSError):
            beside.unlink()
