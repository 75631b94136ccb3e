"""CIFAR's pickles: plain arrays are read, and a pickle that would run code is refused before it does."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar_files import python2_pickle

from twoviews.data import pickles


class Write:
    """Writes a file when it is unpickled without restrictions."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.marker, "ran")


def hostile(marker: Path) -> dict[str, bytes]:
    """Return pickles that create `marker` or allocate a terabyte when they are read without restrictions."""
    path = str(marker).encode()
    touch = b"cposix\nsystem\n(S'touch " + path + b"'\ntR."
    return {
        "reduce": pickle.dumps(Write(marker)),
        "reduce, protocol 0": pickle.dumps(Write(marker), protocol=0),
        "nested": pickle.dumps({b"data": [1, {b"x": Write(marker)}]}),
        "system": touch,
        "builtins": b"cbuiltins\nexec\n(S'open(\"" + path + b'", "w")\'\ntR.',
        "eval by getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'touch " + path + b"'\ntR.",
        "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x14ndarray.__class__.__\x93.",
        "numpy's own loader": b"cnumpy\nload\n(S'" + path + b"'\ntR.",
        "a terabyte by ndarray": b"cnumpy\nndarray\n((L1000000000000L\ntS'u1'\ntR.",
        "a terabyte by _reconstruct": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1000000000000L\ntS'b'\ntR.",
        "a codec": b"c_codecs\nencode\n(Vaaaa\nVrot13\ntR.",
        "a state for an allowed function": b"cnumpy\ndtype\n(N}S'__defaults__'\nNstb.",
        "a state for the replacement of ndarray": b"cnumpy\nndarray\n(N}S'__new__'\nNstb.",
        "an array of objects": b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
    }


def test_x1_pickles_that_refer_to_anything_else_are_refused_and_do_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    cases = hostile(marker)
    assert len(cases) >= 10
    for name, blob in cases.items():
        with pytest.raises(ValueError, match=r"^batch: (not a batch of CIFAR|expected a dict)") as refused:
            pickles.load(blob, "batch")
        assert "\n" not in str(refused.value), name
        assert not marker.exists(), name


def test_x1_a_hostile_pickle_acts_when_it_is_read_without_restrictions(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickle.loads(hostile(marker)["reduce"])
    assert marker.exists()


def test_arrays_of_this_python_and_of_python_2_are_read() -> None:
    value = {b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"n": [1, 2**40]}
    read = 0
    for blob in (python2_pickle(value), *(pickle.dumps(value, protocol=p) for p in range(2, 6))):
        if b"numpy._core.numeric" in blob:  # protocol 5 stores arrays in another way, which no file of CIFAR uses
            continue
        batch = pickles.load(blob, "batch")
        assert np.array_equal(batch[b"data"], value[b"data"])
        assert batch[b"n"] == value[b"n"]
        read += 1
    assert read >= 4
