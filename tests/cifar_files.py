"""CIFAR's official files with noise for pixels: pickles as Python 2 wrote them, and archives of them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from twoviews.data import cifar, download

EACH = 100  # images in a batch file
Files = dict[str, bytes]
Member = tuple[tarfile.TarInfo, bytes]


class _Python2(pickle._Pickler):  # the Python version: its table of writers can be changed
    """Writes bytes as `str` and numpy under its old name, as in the official files (protocol 2)."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def _save_str(self, text: bytes) -> None:
        self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)
        self.memoize(text)

    def _save_text(self, text: str) -> None:
        self._save_str(text.encode("latin1"))

    dispatch[bytes], dispatch[str] = _save_str, _save_text

    def save_global(self, thing: Any, name: str | None = None) -> None:
        if getattr(thing, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(thing)
        else:
            super().save_global(thing, name)


def python2_pickle(value: object) -> bytes:
    """Return a value pickled as Python 2 did."""
    out = io.BytesIO()
    _Python2(out, protocol=2).dump(value)
    return out.getvalue()


def make_files(source: cifar.Source) -> tuple[Files, dict[str, np.ndarray]]:
    """Return the batch files of a data set of noise, by name, and the arrays that a reader must return."""
    random = np.random.default_rng(0)
    files: Files = {}
    arrays: dict[str, list[np.ndarray]] = {"train_images": [], "train_labels": [], "test_images": [], "test_labels": []}
    for split, names in (("train", source.train), ("test", source.test)):
        for name in names:
            pixels = random.integers(0, 256, (EACH, 3072), np.uint8)
            labels = random.integers(0, source.classes, EACH)
            filenames = [b"%d.png" % i for i in range(EACH)]
            batch = {b"batch_label": b"noise", source.labels: labels.tolist(), b"data": pixels, b"filenames": filenames}
            if source.labels == b"fine_labels":
                batch[b"coarse_labels"] = [0] * EACH
            files[name] = python2_pickle(batch)
            arrays[f"{split}_images"].append(pixels.reshape(-1, 3, 32, 32))
            arrays[f"{split}_labels"].append(labels)
    classes = [name.encode() for name in (source.order or [f"class{i}" for i in range(source.classes)])]
    files[source.meta[0]] = python2_pickle({source.names: classes, b"num_vis": 3072})
    return files, {key: np.concatenate(parts) for key, parts in arrays.items()}


def make_members(source: cifar.Source, files: Files) -> list[Member]:
    """Return the members of the archive: the files in their folder, after a file that the reader does not need."""
    return [plain_member(f"{source.folder}/{name}", blob) for name, blob in {"readme.html": b"<html>", **files}.items()]


def plain_member(name: str, blob: bytes = b"x") -> Member:
    """Return a regular file."""
    info = tarfile.TarInfo(name)
    info.size = len(blob)
    return info, blob


def write_archive(path: Path, members: list[Member]) -> Path:
    """Write a tar.gz file and return its path."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for info, blob in members:
            tar.addfile(info, io.BytesIO(blob))
    return path


def write_folder(folder: Path, files: Files) -> Path:
    """Write the extracted folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, blob in files.items():
        (folder / name).write_bytes(blob)
    return folder


def with_hash(source: cifar.Source, path: Path) -> cifar.Source:
    """Return the source with the hash of `path`, so that a test reaches the code after the hash check."""
    return dataclasses.replace(source, sha256=download.digest(path))


def with_md5(source: cifar.Source, files: Files) -> cifar.Source:
    """Return the source with the MD5 of each of the files."""

    def of_files(names: dict[str, str]) -> dict[str, str]:
        return {name: hashlib.md5(files[name], usedforsecurity=False).hexdigest() for name in names}

    (meta,) = of_files({source.meta[0]: ""}).items()
    return dataclasses.replace(source, train=of_files(source.train), test=of_files(source.test), meta=meta)
