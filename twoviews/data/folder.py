"""Read folders of images (`dataset=folder`, CIFAR as files): decode once, in parallel, and cache as uint8."""

import contextlib
import hashlib
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import numpy as np

from twoviews.data.arrays import Arrays
from twoviews.progress import Progress
from twoviews.runs.files import cache_folder, write_atomic

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
MORE = {".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"}
LOSSY = {".jpg", ".jpeg"}
LISTED = 20  # largest number of names in a message


def read(data_dir: str | None, *, image_size: int | None, on_bad: str) -> Arrays:
    """Return the images of any folder: `[train/ and test/] [<class>/...] file`.

    Without `test/` or `val/`, the test split is empty. Without class folders, all images have one class. Links to
    folders are followed. An image becomes RGB after its EXIF rotation; of an animation the first frame is used; 16 bits
    per channel are scaled to 8. The central square is resized to `image_size` (bilinear, antialiased).

    Args:
        data_dir: the folder.
        image_size: width and height in pixels, >= 8.
        on_bad: `stop` raises an error that lists the files that are not images; `skip` leaves them out and records them.

    Raises:
        ValueError: if the folder or the size is missing, classes differ, there are too few images, or files are bad.
    """
    if not data_dir or not Path(data_dir).is_dir():
        value = f"{data_dir}, which is not a folder" if data_dir else "none"
        raise ValueError(f"dataset=folder: expected data_dir=<folder of images>, got {value}")
    if image_size is None:
        raise ValueError("dataset=folder: expected image_size=<width and height in pixels>, such as image_size=32")
    root = Path(data_dir)
    parts = [root / "train", next((root / name for name in ("test", "val") if (root / name).is_dir()), None)]
    if not (root / "train").is_dir():
        parts = [root, None]
    files = [[] if part is None else _walk(part) for part in parts]
    classes = sorted({name for name, _ in files[0]})
    if unknown := sorted({name for name, _ in files[1]} - set(classes)):
        raise ValueError(f"{parts[1]}: contains classes that {parts[0]} lacks: {', '.join(unknown[:LISTED])}")
    n = len(files[0])
    if n < 20:
        raise ValueError(f"{parts[0]}: contains {n} images ({', '.join(SUFFIXES | MORE)}): expected at least 20")
    paths = [path for part in files for _, path in part]
    images, bad = _images(paths, root, root.name, image_size)
    if bad and on_bad == "stop":
        raise ValueError(f"{_listed(bad, paths)}: repair or remove them, or leave them out with on_bad=skip")
    good = [i for i in range(len(paths)) if i not in bad]
    cut = sum(i < n for i in good)
    labels = np.array([classes.index(name) for part in files for name, _ in part], np.int64)[good]
    if bad:
        print(f"{len(bad)} of {len(paths)} files are not images and are left out: the run's manifest lists them")
    title = f"{root.resolve().name}, {image_size} pixels"
    skipped = tuple(f"{_name(paths[i])}: {reason}" for i, reason in bad.items())
    return Arrays(title, images[:cut], labels[:cut], images[cut:], labels[cut:], tuple(classes), skipped)


def _walk(folder: Path) -> list[tuple[str, Path]]:
    """Return (class, path) of every image file, sorted; the class is the first folder of its path, if any."""
    suffixes = SUFFIXES | MORE
    files: list[Path] = []

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename}: cannot be read ({error.strerror})")

    for current, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        inside = Path(current).relative_to(folder)
        if Path(current).resolve() in [(folder / parent).resolve() for parent in inside.parents if inside.parts]:
            folders.clear()  # a link to one of its own parents
            continue
        files += [inside / name for name in names if Path(name).suffix.lower() in suffixes and not name.startswith(".")]
    loose = sorted(path for path in files if len(path.parts) == 1)
    if loose and len(loose) < len(files):
        raise ValueError(
            f"{folder}: {loose[0]} and {len(loose) - 1} more are outside the class folders: move all images into class folders, or none"
        )
    return sorted(("images" if loose else path.parts[0], folder / path) for path in files)


def read_tree(root: Path, *, title: str) -> Arrays:
    """Return images of one size from `root/train/<class>/*` and `root/test/<class>/*`, sorted by class.

    The decoded arrays are cached in `$XDG_CACHE_HOME/twoviews` or `~/.cache/twoviews`. A changed path, size or time of
    a file, or a wrong checksum of the cache, means that all files are decoded again.

    Args:
        root: the folder.
        title: of the data set; "(JPEG copy)" is added to it if the files are JPEGs, whose pixels differ.

    Raises:
        ValueError: if the splits have different classes, or files are not images of one size.
    """
    classes = sorted(d.name for d in (root / "train").iterdir() if d.is_dir())
    other = sorted(d.name for d in (root / "test").iterdir() if d.is_dir())
    if not classes or classes != other:
        raise ValueError(f"{root}: train/ and test/ must contain the same class folders, got {classes} and {other}")
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
    return f"{len(bad)} of {len(paths)} files are not images of one size: {named}{more}"


def _name(path: Path) -> str:
    return str(path).encode(errors="backslashreplace").decode()  # file names may be invalid Unicode


def _images(paths: list[Path], root: Path, title: str, size: int | None) -> tuple[np.ndarray, dict[int, str]]:
    """Return the good images (n, 3, H, W) uint8 in order, and the error of each bad one by its row."""
    key = hashlib.sha256(os.fsencode(root.resolve()) + f"\0{size}\0".encode())
    for path in paths:
        try:
            stat = path.stat()
            state = f"\0{stat.st_size}\0{stat.st_mtime_ns}\0"
        except OSError:  # a broken link, which `_decode` reports
            state = "\0nothing\0"
        key.update(os.fsencode(path.relative_to(root)) + state.encode())
    cache = cache_folder() / f"tree-{key.hexdigest()[:32]}.npy"
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
        stack.callback(pool.shutdown, cancel_futures=True)  # Ctrl-C must not wait for the remaining images
        raise_if_interrupted = stack.enter_context(_delayed_interrupt())
        for i, pixels in enumerate(pool.map(lambda path: _open(path, size), paths, chunksize=256)):
            raise_if_interrupted()
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


@contextlib.contextmanager
def _delayed_interrupt() -> Iterator[Callable[[], None]]:
    """Return a function that raises KeyboardInterrupt after Ctrl-C was pressed; pressed again, it is raised at once.

    An exception inside the code of a thread pool can leave a lock of the pool acquired, and the pool then never ends.
    """
    pressed: list[int] = []

    def raise_if_interrupted() -> None:
        if pressed:
            raise KeyboardInterrupt

    def handle(number: int, frame: FrameType | None) -> None:
        raise_if_interrupted()
        pressed.append(number)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield raise_if_interrupted
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield raise_if_interrupted
    finally:
        signal.signal(signal.SIGINT, before)
    raise_if_interrupted()


def _open(path: Path, size: int | None) -> np.ndarray | str:
    """Return pixels (3, H, W) uint8, or the reason why there are none."""
    from PIL import Image, ImageOps

    if not path.is_file():  # opening a pipe would block
        return "a broken link" if path.is_symlink() else "not a regular file"
    formats = SUFFIXES if size is None else SUFFIXES | MORE
    try:
        with Image.open(path, formats=tuple(set(formats.values()))) as image:
            if size is None:
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            image.draft("RGB", (size, size))  # a large JPEG is decoded at a fraction of its size
            shown = ImageOps.exif_transpose(image)
            if shown.mode.startswith("I"):  # 16 bits per pixel, which PIL would clip at 255
                shown = Image.fromarray((np.asarray(shown) / 257).clip(0, 255).round().astype(np.uint8))
            side = min(shown.size)
            left, top = ((length - side) // 2 for length in shown.size)
            # crop before resizing: resizing a long strip first could fill the memory
            square = shown.crop((left, top, left + side, top + side)).convert("RGB")
            return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    except Exception as error:  # decoders can raise anything, and every bad file must be listed
        return " ".join(str(error).split())[:200] or type(error).__name__


def _read_cache(path: Path, key: bytes) -> np.ndarray | None:
    """Return the cached array, or None if it is missing or its checksum, which covers `key`, is wrong."""
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(key + payload).hexdigest().encode() + b"\n" + payload)
    except OSError as error:  # the next run decodes again, and works
        print(f"cache {path} could not be written ({error}): the next run decodes the images again")
