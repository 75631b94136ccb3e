"""Decode many image files in parallel, once: the result is cached."""

import contextlib
import hashlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import PIL

from twoviews.images import cache, formats, pixels
from twoviews.images.names import plural, shown, with_reasons
from twoviews.progress import Progress

AHEAD = 256  # files that are decoded before their images are taken, so that decoded images do not pile up


@dataclass
class DecodedFiles:
    """The images of a list of files. Files are numbers in that list.

    Args:
        images: of the good files, in their order, (n, 3, H, W) uint8.
        bad: the reason of each file that has no image.
        one_colour: files whose pixels are all equal.
        warnings: files by the kind of what Pillow warned about.
        wide: number of images, smallest and largest value by kind, for those of more than 8 bits per channel.
    """

    images: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)
    one_colour: list[int] = field(default_factory=list)
    warnings: dict[str, list[int]] = field(default_factory=dict)
    wide: dict[str, tuple[int, float, float]] = field(default_factory=dict)


def decode_all(paths: Sequence[Path], root: Path, title: str, reading: pixels.Reading) -> DecodedFiles:
    """Return the images of files, from the cache if nothing changed.

    The cache is in `runs.files.cache_file`. A changed path, size, time or mode of a file, or a wrong checksum of the
    cache, means that all files are decoded again. Bad files and their reasons are cached too.

    Args:
        paths: the files.
        root: a folder that contains them.
        title: of the data set, for the progress bar and messages.
        reading: size and meaning of the pixels.

    Raises:
        ValueError: if no file is an image, or `pixels.check_ranges` refuses their values.
    """
    key = _key(paths, root, reading)
    if stored := cache.read(key):
        images, notes = stored
        numbered = {int(number): reason for number, reason in notes.pop("bad").items()}  # JSON has texts as keys
        return DecodedFiles(images, numbered, **notes)
    decoded, wide = _decode(paths, title, reading)
    pixels.check_ranges(wide, reading, title)
    for kind in sorted({kind for kind, _, _ in wide}):
        ranges = [(low, high) for name, low, high in wide if name == kind]
        decoded.wide[kind] = (len(ranges), min(low for low, _ in ranges), max(high for _, high in ranges))
    notes = {name: value for name, value in vars(decoded).items() if name != "images"}
    cache.write(key, decoded.images, notes)
    return decoded


def list_bad(bad: dict[int, str], paths: Sequence[Path], what: str) -> str:
    """Return one line with the number of bad files and the first of them, each with its reason.

    Args:
        bad: reason of each bad file, by its number in `paths`.
        paths: all files.
        what: they should be, such as `images of one size`.
    """
    reasons = with_reasons((shown(paths[i]), reason) for i, reason in bad.items())
    return f"{len(bad)} of {plural(len(paths), 'file')} cannot be read as {what}: {reasons}"


def _key(paths: Sequence[Path], root: Path, reading: pixels.Reading) -> bytes:
    """Return a digest of everything that decides the pixels: the files, how they are read, and what reads them."""
    readable = " ".join(formats.readable())
    key = hashlib.sha256(os.fsencode(root.resolve()) + f"\0{reading}\0{PIL.__version__}\0{readable}\0".encode())
    for path in paths:
        try:
            stat = path.stat()
            state = f"\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_mode}\0{stat.st_uid}\0"
        except OSError:  # a broken link, which `pixels.decode` reports
            state = "\0nothing\0"
        key.update(os.fsencode(path.relative_to(root)) + state.encode())
    return key.digest()


def _decode(paths: Sequence[Path], title: str, reading: pixels.Reading) -> tuple[DecodedFiles, list[tuple[str, float, float]]]:
    """Return the images, and the range of values of each wide one."""
    found = DecodedFiles(np.empty(0, np.uint8))
    wide: list[tuple[str, float, float]] = []
    images: np.ndarray | None = None
    results = in_parallel(lambda path: pixels.decode(path, reading), paths)
    with Progress(f"decode {title}", len(paths), "images") as bar, contextlib.closing(results):
        for i, decoded in enumerate(results):
            bar.add()
            if isinstance(decoded, str):
                found.bad[i] = decoded
                continue
            if images is None:
                images = np.empty((len(paths), *decoded.pixels.shape), np.uint8)
            if decoded.pixels.shape != images.shape[1:]:
                (_, height, width), (_, first_height, first_width) = decoded.pixels.shape, images.shape[1:]
                found.bad[i] = f"{width} x {height} pixels, the first image has {first_width} x {first_height}"
                continue
            images[i - len(found.bad)] = decoded.pixels
            _note(found, i, decoded)
            wide += [decoded.wide] * (decoded.wide is not None)
    if images is None:
        raise ValueError(list_bad(found.bad, paths, "images"))
    found.images = images[: len(paths) - len(found.bad)]
    return found, wide


def _note(found: DecodedFiles, file: int, decoded: pixels.Decoded) -> None:
    if decoded.one_colour:
        found.one_colour.append(file)
    for kind in decoded.warnings:
        found.warnings.setdefault(kind, []).append(file)


def in_parallel(function: Callable[[Path], Any], paths: Sequence[Path]) -> Generator[Any, None, None]:
    """Yield `function(path)` for each path, in order, computed by one thread per processor. Ctrl-C does not wait for the rest."""
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(os.cpu_count())
        stack.callback(pool.shutdown, cancel_futures=True)
        raise_if_interrupted = stack.enter_context(delayed_interrupt())
        left = iter(paths)
        started = deque(pool.submit(function, path) for path in islice(left, AHEAD))
        while started:
            result = started.popleft().result()
            raise_if_interrupted()
            started.extend(pool.submit(function, path) for path in islice(left, 1))
            yield result


@contextlib.contextmanager
def delayed_interrupt() -> Iterator[Callable[[], None]]:
    """Return a function that raises KeyboardInterrupt after Ctrl-C was pressed; pressed again, it is raised at once.

    An exception inside the code of a thread pool can leave a lock of the pool acquired, and the pool then never ends.

    Raises:
        KeyboardInterrupt: at the end, after Ctrl-C.
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
