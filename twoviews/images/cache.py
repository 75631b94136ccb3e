"""The cache of decoded images: one file with a checksum, read and written without a second copy in memory."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from twoviews.runs.files import cache_file, write_atomic


def cache_path(key: bytes) -> Path:
    """Return the file of a cache by its key, a digest of everything that decides its content."""
    return cache_file(f"images-{key.hex()[:32]}.bin")


def read(key: bytes) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Return images and the notes that were stored with them, or None if they are missing or damaged, which is printed."""
    path = cache_path(key)
    try:
        with open(path, "rb") as file:
            digest, header = file.readline().strip(), file.readline()
            left = os.fstat(file.fileno()).st_size - file.tell()
            notes = json.loads(header)
            shape = tuple(notes.pop("shape"))
            if math.prod(shape) == left:
                images = np.empty(shape, np.uint8)
                file.readinto(_bytes(images))
                if _digest(key, header, images) == digest:
                    return images, notes
    except OSError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        pass  # the header is damaged
    print(f"cache {path} is damaged: decoding again")
    return None


def write(key: bytes, images: np.ndarray, notes: dict[str, Any]) -> None:
    """Store images, contiguous (N, C, H, W) uint8, and notes that JSON can hold. Where this fails, one line says so."""
    path = cache_path(key)
    header = json.dumps({**notes, "shape": images.shape}).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _digest(key, header, images) + b"\n", header, _bytes(images))
    except OSError as error:  # the next run decodes again, and works
        print(f"cache {path} could not be written ({error}): the next run decodes the images again")


def _bytes(images: np.ndarray) -> memoryview:
    return images.data.cast("B")


def _digest(key: bytes, header: bytes, images: np.ndarray) -> bytes:
    sha = hashlib.sha256(key + header)
    sha.update(_bytes(images))
    return sha.hexdigest().encode()
