"""Images in whatever form a user has them: a folder, paths, images of Pillow, arrays, tensors or rows of numbers."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twoviews.images import scan
from twoviews.images.decoding import in_parallel
from twoviews.images.names import plural, shown, with_reasons
from twoviews.images.pixels import Decoded, Reading, decode, decode_array, decode_image
from twoviews.progress import Progress

FORMS = (
    "a folder, a list of paths, images of Pillow, or an array or tensor of shape (N, H, W), (N, H, W, C), (N, C, H, W) "
    "or, of square images, (N, H*W) or (N, 3*H*W)"
)


@dataclass(frozen=True)
class Inputs:
    """Images that can be decoded, in their order.

    Args:
        items: files, images or arrays.
        read: returns the pixels of one of them, or the reason why there are none.
        names: of files: below their folder, or as they were given. None: the images are not files.
        where: they come from, for messages.
        ignored: what else is in the folder, one phrase for each kind.
    """

    items: Sequence[Any]
    read: Callable[[Any], Decoded | str]
    names: tuple[str, ...] | None
    where: str
    ignored: tuple[str, ...] = ()

    def decoded(self) -> Generator[Decoded | str, None, None]:
        """Yield the pixels of each image, or the reason why there are none; files are decoded in parallel threads."""
        if self.names is None:
            yield from map(self.read, self.items)
            return
        with closing(in_parallel(self.read, self.items)) as results:
            yield from results

    def list_bad(self, bad: dict[int, str]) -> str:
        """Return one line with the number of bad images and the first of them, each with its reason."""
        reasons = with_reasons((self.name(i), reason) for i, reason in bad.items())
        return f"{self.where}: {len(bad)} of {plural(len(self.items), 'image')} cannot be read: {reasons}"

    def name(self, i: int) -> str:
        """Return how a message names an image."""
        return shown(self.names[i]) if self.names is not None else f"image {i}"


def inputs(images: Any, reading: Reading) -> Inputs:
    """Return a user's images as a sequence that can be decoded.

    Args:
        images: as in `FORMS`. Folders are searched to any depth, and their images are sorted by name.
        reading: see `Reading`.

    Raises:
        ValueError: if there are none, or it is not clear what they are.
    """
    if isinstance(images, str | os.PathLike):
        return _of_path(home(images), reading)
    if isinstance(images, Image.Image):
        images = [images]
    if hasattr(images, "detach"):  # a tensor of torch
        images = images.detach().cpu().numpy()
    if hasattr(images, "toarray"):
        raise ValueError("images: a sparse matrix: expected its array: images.toarray()")
    if hasattr(images, "__array__"):
        images = np.asarray(images)
        if images.dtype.kind not in "OUS":
            return _of_array(images, reading)
        images = images.reshape(-1).tolist()
    images = list(images)
    if not images:
        raise ValueError(f"images: none: expected {FORMS}")
    first = images[0]
    if isinstance(first, str | os.PathLike):
        _check_all(images, str | os.PathLike, "a path")
        return Inputs([home(image) for image in images], lambda path: decode(path, reading), tuple(map(os.fspath, images)), "the images")
    if isinstance(first, Image.Image):
        _check_all(images, Image.Image, "an image of Pillow")
        return Inputs(images, lambda image: decode_image(image, reading), None, "the images")
    arrays = [np.asarray(image.detach().cpu() if hasattr(image, "detach") else image) for image in images]
    if len({array.shape for array in arrays}) == 1:
        return _of_array(np.stack(arrays), reading)
    single = [_of_array(array[None], reading).items[0] for array in arrays]  # each of its own size
    return Inputs(single, lambda values: decode_array(values, reading), None, "the images")


def home(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder in place of `~`."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path raises an error where there is no home folder


def _check_all(images: list[Any], kind: Any, words: str) -> None:
    for i, image in enumerate(images):
        if not isinstance(image, kind):
            raise ValueError(f"image {i}: expected {words}, as the images before it, got {type(image).__name__}")


def _of_path(path: Path, reading: Reading) -> Inputs:
    """Return all images in a folder, or a single file."""
    if not path.is_dir():
        if not path.exists() and not path.is_symlink():
            raise ValueError(f"{shown(path)}: no such file or folder: expected a folder of images")
        return Inputs([path], lambda file: decode(file, reading), (path.name,), shown(path))
    tree, ignored = scan.scan(path)
    files = tree.all_images
    if not files:
        more = f" (ignored: {'; '.join(ignored.phrases())})" if ignored.phrases() else ""
        raise ValueError(f"{shown(path)}: contains no images{more}: expected a folder of images; folders inside it are searched too")
    names = {file.relative_to(path).as_posix(): file for file in files}
    ordered = tuple(sorted(names))
    return Inputs([names[name] for name in ordered], lambda file: decode(file, reading), ordered, shown(path), tuple(ignored.phrases()))


def _of_array(values: np.ndarray, reading: Reading) -> Inputs:
    """Return the images of an array, each of shape (H, W, C).

    Raises:
        ValueError: if its shape is not one of `FORMS`, or has two meanings.
    """
    shape = " x ".join(map(str, values.shape))
    if values.dtype.kind not in "buif":
        raise ValueError(f"images: an array of {values.dtype}: expected uint8, or other numbers")
    if not values.size:
        raise ValueError(f"images: an array without elements ({shape}): expected {FORMS}")
    if values.ndim == 2:
        channels = next((c for c in (1, 3) if isqrt(values.shape[1] // c) ** 2 * c == values.shape[1]), 0)
        if not channels:
            raise ValueError(f"images: rows of {values.shape[1]} numbers are no square images: expected H*H or 3*H*H numbers in a row")
        side = isqrt(values.shape[1] // channels)
        values = values.reshape(len(values), channels, side, side).transpose(0, 2, 3, 1)
    elif values.ndim == 3:
        if values.shape[2] in (3, 4):
            raise ValueError(f"images: {shape} is one image in colour: expected a first axis over images: images[None]")
        values = values[:, :, :, None]
    elif values.ndim == 4:
        first, last = values.shape[1] in (1, 3), values.shape[3] in (1, 3, 4)
        if first == last:
            problem = "the channels may be second or last" if first else "neither the second nor the last axis is one of channels"
            raise ValueError(f"images: {shape}: {problem}: expected {FORMS}")
        values = values.transpose(0, 2, 3, 1) if first else values
    else:
        raise ValueError(f"images: an array of shape {shape}: expected {FORMS}")
    return Inputs(list(values), lambda image: decode_array(np.ascontiguousarray(image), reading), None, "the images")


@dataclass
class Notes:
    """What is to be known about images, by their numbers: why they are bad, ranges of values, and what may be a mistake."""

    bad: dict[int, str] = field(default_factory=dict)
    wide: list[tuple[str, float, float]] = field(default_factory=list)
    warnings: dict[str, list[int]] = field(default_factory=dict)

    def add(self, i: int, decoded: Decoded | str) -> None:
        """Note an image."""
        if isinstance(decoded, str):
            self.bad[i] = decoded
            return
        if decoded.wide is not None:
            self.wide.append(decoded.wide)
        for kind in (*["one colour everywhere"] * decoded.one_colour, *decoded.warnings):
            self.warnings.setdefault(kind, []).append(i)


def batches(source: Inputs, size: int, notes: Notes, *, stop: bool) -> Generator[np.ndarray, None, None]:
    """Yield the good images as batches (n, 3, H, W) uint8. Threads decode the next images while the caller works.

    Args:
        source: the images.
        size: of a batch.
        notes: gets what is to be known about each image.
        stop: after a bad image no more batches follow; the other images are only looked at, so that all bad ones are known.
    """
    batch: list[np.ndarray] = []
    with Progress("embed", len(source.items), "images") as bar, closing(source.decoded()) as results:
        for i, decoded in enumerate(results):
            bar.add()
            notes.add(i, decoded)
            if isinstance(decoded, str) or (stop and notes.bad):
                continue
            batch.append(decoded.pixels)
            if len(batch) == size:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)
