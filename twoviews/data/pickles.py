"""Read CIFAR's pickles safely: five names have harmless replacements, and every other name is refused."""

import io
import pickle
from typing import Any

import numpy as np


def load(blob: bytes, name: str) -> dict[bytes, Any]:
    """Return the dict of one batch file of CIFAR's python version, with keys as bytes.

    Args:
        blob: content of the file.
        name: of the file, for error messages.

    Raises:
        ValueError: if it refers to anything but plain arrays of bytes, or is not a pickle of a dict.
    """
    try:
        batch = _Unpickler(io.BytesIO(blob), encoding="bytes").load()
    except Exception as error:  # a hostile pickle can raise anything
        raise ValueError(f"{name}: not a batch of CIFAR ({type(error).__name__}: {str(error)[:200]}): download it again") from None
    if not isinstance(batch, dict):
        raise ValueError(f"{name}: expected a dict, got {type(batch).__name__}")
    return batch


# Each replacement is an object without attributes: a pickle can call it, but not change it.


class _Ndarray:
    """Replaces `numpy.ndarray`, which pickles pass to `_reconstruct`; called, it could fill the memory."""

    __slots__ = ()


class _Reconstruct:
    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> np.ndarray:
        if type(kind) is not _Ndarray or shape != (0,):
            raise pickle.UnpicklingError("expected an array that starts empty")
        return np.ndarray((0,), np.uint8)


class _Dtype:
    __slots__ = ()

    def __call__(self, name: object, align: object = 0, copy: object = 1) -> np.dtype[Any]:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError("expected an array of bytes")
        return np.dtype("u1")  # important: numpy's shared object, which a state in a pickle cannot change


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
            raise pickle.UnpicklingError(f"it refers to {module}.{name}") from None
