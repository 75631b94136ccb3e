"""Read Fashion-MNIST from IDX files, and its bundled subset."""

import gzip
import io
import lzma
import zlib
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from twoviews.data.arrays import OWN_IMAGES, Arrays

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
LARGEST = 2**28  # bytes of an unpacked file, five times the largest real one; a gzip bomb has far more
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def read(data_dir: str | None) -> Arrays:
    """Return Fashion-MNIST (Xiao et al. 2017, MIT licence): 60,000 training and 10,000 test images, 28 x 28.

    Args:
        data_dir: a folder with the four IDX files, gzipped or not; None: Debian's folder or a download.

    Raises:
        ValueError: if a file is missing or is not an IDX file of bytes.
    """
    folder = Path(data_dir) if data_dir else DEBIAN
    if data_dir is None and not folder.is_dir():
        folder = _download()
    return _arrays([read_idx(_find(folder, name)) for name in FILES], "Fashion-MNIST")


def read_mini(data_dir: str | None) -> Arrays:
    """Return the bundled subset of Fashion-MNIST: the first 1,200 training and 200 test images of each class.

    `scripts/make_fashion_mini.py` wrote it.

    Args:
        data_dir: must be None, because the data are in the package.

    Raises:
        ValueError: if `data_dir` is not None.
    """
    if data_dir is not None:
        raise ValueError(f"fashion_mini is in the package: leave data_dir out, got {data_dir}; {OWN_IMAGES}")
    with np.load(io.BytesIO(_mini()), allow_pickle=False) as stored:
        arrays = [stored[name] for name in ("train_images", "train_labels", "test_images", "test_labels")]
    return _arrays(arrays, "Fashion-MNIST mini")


@cache
def _mini() -> bytes:
    """Return the unpacked file, 11 MB. Unpacking takes half a second, so several runs of one process share it."""
    return lzma.decompress(resources.files("twoviews").joinpath("assets/fashion_mini.npz.xz").read_bytes())


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file of unsigned bytes (the format of MNIST's home page), gzipped or not.

    Returns:
        uint8, of the shape in the file's header.

    Raises:
        ValueError: if it is not such a file, or is cut short.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as file:
                raw = file.read(LARGEST + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}): download it again") from None
    if len(raw) > LARGEST:
        raise ValueError(f"{path}: unpacks to more than {LARGEST >> 20} MiB: not a file of Fashion-MNIST")
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path}: not an IDX file of bytes (it starts with {raw[:4]!r})")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", raw[3], 4))
    expected = 4 + 4 * len(shape) + int(np.prod(shape))
    if len(raw) != expected:
        raise ValueError(f"{path}: {len(raw)} bytes, expected {expected} for an array of shape {shape}: download it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape).copy()  # writable, for torch


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"fashion_mnist: no {name} or {name}.gz in {folder}: give data_dir=<folder with the four IDX files>; {OWN_IMAGES}")


def _download() -> Path:
    from torchvision.datasets import FashionMNIST

    root = Path("data")
    print(f"fashion_mnist: downloading to {root}/FashionMNIST (about 30 MB)")
    try:
        FashionMNIST(str(root), download=True)
    except Exception as error:  # a download can fail in many ways
        raise ValueError(
            f"fashion_mnist: download failed ({' '.join(str(error).split())}): install Debian's dataset-fashion-mnist or give data_dir="
        ) from None
    return root / "FashionMNIST" / "raw"


def _arrays(parts: list[np.ndarray], title: str) -> Arrays:
    train_images, train_labels, test_images, test_labels = parts
    if train_images.ndim != 3 or test_images.ndim != 3:
        raise ValueError(f"{title}: expected images of shape (N, 28, 28), got {train_images.shape} and {test_images.shape}")
    return Arrays(title, train_images[:, None], train_labels.astype(np.int64), test_images[:, None], test_labels.astype(np.int64), CLASSES)
