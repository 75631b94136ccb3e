"""CIFAR's pickles, read without running anything that they name: five names are known, all others are refused."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np


def load(blob: bytes, name: str) -> dict[bytes, Any]:
    """The dict in one batch file of CIFAR's python version, keys as bytes.

    Args:
        blob: the file.
        name: of the file, for errors.

    Raises:
        ValueError: if it names anything but a plain array of bytes, or is no pickle of a dict.
    """
    try:
        found = _Unpickler(io.BytesIO(blob), encoding="bytes").load()
    except Exception as error:  # a hostile pickle fails in any way it likes
        raise ValueError(f"{name}: not a batch of CIFAR ({type(error).__name__}: {str(error)[:200]}): fetch it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected a dict, got {type(found).__name__}")
    return found


# Each stand-in is an object without attributes: a pickle can call it, and can neither change it nor reach what it stands for.


class _Ndarray:
    """Stands for `numpy.ndarray`, which a pickle only ever passes on to `_reconstruct`; called, it would take any memory it likes."""

    __slots__ = ()


class _Reconstruct:
    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> np.ndarray:
        if type(kind) is not _Ndarray or shape != (0,):
            raise pickle.UnpicklingError("an array begins empty")
        return np.ndarray((0,), np.uint8)


class _Dtype:
    __slots__ = ()

    def __call__(self, name: object, align: object = 0, copy: object = 1) -> np.dtype[Any]:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError("expected an array of bytes")
        return np.dtype("u1")  # important: numpy's own object for it, on which a state that a pickle sets has no effect


class _Encode:
    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("expected text in latin1")
        return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy", "ndarray"): _Ndarray(),
    ("numpy", "dtype"): _Dtype(),
    ("_codecs", "encode"): _Encode(),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None
