"""Images that a user's program has in memory: numpy arrays, tensors, and data sets such as torchvision's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from twoviews.data.arrays import Arrays
from twoviews.images.names import listed
from twoviews.images.pixels import Reading, decode_image
from twoviews.progress import Progress

FORMS = "(images, labels), a data set of (image, label), or a pair of these for train and test"
SHAPES = "(N, C, H, W), (N, H, W, C) or (N, H, W), C 1 or 3"
LEAST = 8  # pixels


@dataclass(frozen=True)
class _Split:
    images: np.ndarray  # (N, C, H, W) uint8
    labels: np.ndarray | None  # (N,) integers or texts
    names: tuple[str, ...] | None  # of classes, where the labels are their numbers


def read(data: Any, title: str) -> Arrays:
    """Return a data set from what a user's program has in memory.

    Args:
        data: `(images, labels)`; images alone; a data set with a length that returns `(image, label)` for each number, such as
            torchvision's; or a pair of two of these, train and test. Images are uint8 arrays or tensors in a shape of `SHAPES`;
            those of a data set are images of Pillow, or uint8 arrays (H, W, C) or tensors (C, H, W), all of one size. Labels are
            integers or texts, or None: the classes are the different labels in their order, named by `data.classes` if it has that.
        title: its name in tables.

    Raises:
        ValueError: if the images or labels have another form, with what to do.
    """
    if not title or not isinstance(title, str):
        raise ValueError(f"name={title!r}: expected a text")
    pair = isinstance(data, tuple | list) and len(data) == 2 and (_is_data_set(data[0]) or _is_split(data[0]))
    train = _split(data[0] if pair else data, "data, train" if pair else "data")
    test = _split(data[1], "data, test") if pair else _Split(train.images[:0], train.labels[:0] if train.labels is not None else None, None)
    if test.images.shape[1:] != train.images.shape[1:]:
        raise ValueError(f"data: train images are {_size(train.images)}, test images {_size(test.images)}: expected one size")
    if (test.labels is None) != (train.labels is None):
        raise ValueError(f"data: {'test' if test.labels is None else 'train'} has no labels, the other split has: expected both or none")
    if train.labels is None or test.labels is None:
        return Arrays(title, train.images, _zeros(train), test.images, _zeros(test), ("images",))
    classes, numbers = _classes(train)
    if unknown := [str(label) for label in np.unique(test.labels).tolist() if label not in numbers]:
        raise ValueError(f"data: test has labels that train lacks: {listed(unknown)}")
    rows = [np.array([numbers[label] for label in split.labels.tolist()], np.int64) for split in (train, test) if split.labels is not None]
    return Arrays(title, train.images, rows[0], test.images, rows[1], classes)


def _is_data_set(data: Any) -> bool:
    """Return whether this is a map-style data set, not an array or a sequence."""
    return (
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "dtype") and not isinstance(data, Sequence | dict)
    )


def _is_split(data: Any) -> bool:
    """Return whether this is (images, labels)."""
    return isinstance(data, tuple | list) and len(data) == 2 and hasattr(data[0], "dtype")


def _split(data: Any, where: str) -> _Split:
    if hasattr(data, "dtype"):
        return _Split(_images(data, where), None, None)
    if isinstance(data, tuple | list) and len(data) == 2:
        images = _images(data[0], where)
        return _Split(images, _labels(data[1], len(images), where), None)
    if _is_data_set(data):
        return _read_data_set(data, where)
    loader = ": give its data set: loader.dataset" if hasattr(data, "dataset") else ""
    raise ValueError(f"{where}: expected {FORMS}, got {type(data).__name__}{loader}")


def _images(images: Any, where: str) -> np.ndarray:
    """Return images (N, C, H, W) uint8, which are not copied if they can be used as they are."""
    if not hasattr(images, "dtype"):
        raise ValueError(
            f"{where}: images: expected an array or a tensor of uint8, got {type(images).__name__}: numpy.stack makes one of a list"
        )
    if str(images.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(
            f"{where}: images are {str(images.dtype).removeprefix('torch.')}: expected uint8, from 0 to 255: leave out transforms such as "
            "ToTensor and Normalize (images are normalised later), or convert, such as (255 * images).round() of images in [0, 1]"
        )
    array = images.detach().cpu().numpy() if hasattr(images, "detach") else np.asarray(images)
    shape = " x ".join(map(str, array.shape))
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        array = array[:, None]
    elif array.ndim == 4 and (array.shape[1] in (1, 3)) != (array.shape[3] in (1, 3)):
        array = array if array.shape[1] in (1, 3) else array.transpose(0, 3, 1, 2)
    else:
        more = ": put transparent images on a background first" if array.ndim == 4 and 4 in (array.shape[1], array.shape[3]) else ""
        raise ValueError(f"{where}: images of shape {shape}: expected {SHAPES}{more}")
    if not len(array):
        raise ValueError(f"{where}: images: none: expected at least one")
    if array.shape[2] != array.shape[3] or array.shape[2] < LEAST:
        raise ValueError(f"{where}: images of {_size(array)}: expected squares of at least {LEAST} pixels: crop or resize them first")
    return array


def _labels(labels: Any, count: int, where: str) -> np.ndarray | None:
    """Return labels (count,), integers or texts, or None if there are none."""
    if labels is None:
        return None
    array = labels.detach().cpu().numpy() if hasattr(labels, "detach") else np.asarray(labels)
    if array.shape != (count,):
        shape = " x ".join(map(str, array.shape)) or "a single value"
        raise ValueError(f"{where}: labels of shape {shape}: expected one label for each of {count} images")
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array):
        array = array.astype(str)
    if array.dtype.kind not in "biuU":
        odd = next((f"; label {i} is {label!r}" for i, label in enumerate(array.tolist()) if not isinstance(label, str)), "")
        raise ValueError(f"{where}: labels are {array.dtype}{odd}: expected integers or texts")
    if array.dtype.kind == "i" and array.min(initial=0) < 0:
        raise ValueError(
            f"{where}: label {array.min()}: expected classes from 0: leave out images without a label, or number the classes anew"
        )
    return array


def _classes(train: _Split) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the names of the classes, and the number of each label."""
    assert train.labels is not None
    labels = np.unique(train.labels).tolist()
    if train.names is None or isinstance(labels[0], str):
        return tuple(map(str, labels)), {label: number for number, label in enumerate(labels)}
    if labels[-1] >= len(train.names):
        raise ValueError(f"data: label {labels[-1]}: its data set names {len(train.names)} classes: expected 0 to {len(train.names) - 1}")
    return train.names, {number: number for number in range(len(train.names))}


def _read_data_set(data: Any, where: str) -> _Split:
    """Read each image of a map-style data set once, in order."""
    images, labels = [], []
    with Progress(f"read {where}", len(data), "images") as bar:
        for i in range(len(data)):
            item = data[i]
            pair = item if isinstance(item, tuple | list) else (item, None)
            if len(pair) != 2 or not (isinstance(pair[0], Image.Image) or hasattr(pair[0], "dtype")):
                raise ValueError(f"{where}: item {i} is {_kinds(item)}: expected (image, label)")
            image, label = pair
            images.append(_one_image(image, f"{where}, item {i}"))
            labels.append(label.item() if hasattr(label, "item") else label)
            if images[-1].shape != images[0].shape:
                size, first = _size(images[-1][None]), _size(images[0][None])
                raise ValueError(
                    f"{where}: item {i} is {size}, item 0 is {first}: expected one size: add a transform that resizes and crops"
                )
            bar.add()
    if not images:
        raise ValueError(f"{where}: images: none: expected at least one")
    names = getattr(data, "classes", None) or getattr(getattr(data, "dataset", None), "classes", None)  # a Subset has the other's
    unlabelled = all(label is None for label in labels)
    texts = tuple(map(str, names)) if names is not None else None
    return _Split(_images(np.stack(images), where), None if unlabelled else _labels(labels, len(labels), where), texts)


def _one_image(image: Any, where: str) -> np.ndarray:
    """Return pixels (C, H, W) uint8: gray if the image is gray."""
    if not isinstance(image, Image.Image):
        pixels: np.ndarray = _images(image[None], where)[0]
        return pixels
    if image.mode == "L":
        return np.asarray(image)[None]
    decoded = decode_image(image, Reading(None))
    if isinstance(decoded, str):
        raise ValueError(f"{where}: {decoded}")
    return decoded.pixels


def _kinds(item: Any) -> str:
    return f"({', '.join(type(part).__name__ for part in item)})" if isinstance(item, tuple | list) else type(item).__name__


def _size(images: np.ndarray) -> str:
    _, channels, height, width = images.shape
    return f"{width} x {height} pixels of {channels} channel{'s' * (channels > 1)}"


def _zeros(split: _Split) -> np.ndarray:
    return np.zeros(len(split.images), np.int64)
