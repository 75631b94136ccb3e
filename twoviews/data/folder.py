"""Image trees `<split>/<class>/*`: decoded once in parallel, then cached as uint8 with a checksum."""

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
LOSSY = {".jpg", ".jpeg"}


def read_tree(root: Path, *, title: str) -> Arrays:
    """Images of `root/train/<class>/*` and `root/test/<class>/*`, classes in the order of their names.

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
    key = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        key.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    cache = _cache_folder() / f"tree-{key.hexdigest()[:32]}.npy"
    images = _read_cache(cache)
    if images is None:
        images = _decode(paths, title)
        _write_cache(cache, images)
    n = len(listing["train"])
    labels = {split: np.array([label for _, label in listing[split]], np.int64) for split in listing}
    return Arrays(title, images[:n], labels["train"], images[n:], labels["test"], tuple(classes))


def _decode(paths: list[Path], title: str) -> np.ndarray:
    from PIL import Image

    def one(path: Path) -> np.ndarray | str:
        try:
            with Image.open(path, formats=tuple(set(SUFFIXES.values()))) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            return f"{path}: {error}"
        return pixels.transpose(2, 0, 1)

    images: np.ndarray | None = None
    bad = []
    with Progress(f"decode {title}", len(paths), "images") as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, result in enumerate(pool.map(one, paths, chunksize=256)):
            bar.add()
            if isinstance(result, np.ndarray) and images is None:
                images = np.empty((len(paths), *result.shape), np.uint8)
            if isinstance(result, str):
                bad.append(result)
            elif images is not None and result.shape != images.shape[1:]:
                bad.append(
                    f"{paths[i]}: {result.shape[2]} x {result.shape[1]} pixels, the first image has {images.shape[3]} x {images.shape[2]}"
                )
            elif images is not None:
                images[i] = result
    if bad or images is None:
        raise ValueError(
            f"{len(bad)} of {len(paths)} files are no images of one size: {'; '.join(bad[:5])}{'; ...' if len(bad) > 5 else ''}"
        )
    return images


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twoviews"


def _read_cache(path: Path) -> np.ndarray | None:
    """The cached array, or None if there is none whose checksum holds."""
    try:
        blob = path.read_bytes()
    except OSError:
        return None
    digest, _, payload = blob.partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        print(f"cache {path} is damaged: decoding again")
        return None
    return np.load(io.BytesIO(payload), allow_pickle=False)  # type: ignore[no-any-return]


def _write_cache(path: Path, images: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    payload = buffer.getvalue()
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        os.replace(beside, path)
    except OSError as error:  # a cache that cannot be kept costs the next run its decoding, no more
        print(f"cache {path} not written ({error}): the images will be decoded again next time")
        with contextlib.suppress(OSError):
            beside.unlink()
