"""Random numbers as pure functions: the random state of a run is its seed and its step number.

All numbers come from Philox4x64-10 (Salmon et al. 2011). The key is (seed, step or epoch); the counter's top word is the
stream. Streams: 0 order of the training images, 1 + v view v, `PROBE_ORDER` order of a probe's images.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

PROBE_ORDER = 1 << 32


def _words(seed: int, step: int, stream: int, count: int, start: int = 0) -> np.ndarray:
    blocks, skipped = divmod(start, 4)  # each value of the counter gives four words
    key, counter = np.array([seed, step], np.uint64), np.array([blocks, 0, 0, stream], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(skipped + count)[skipped:]


def philox(seed: int, step: int, stream: int, count: int, start: int = 0) -> np.ndarray:
    """Return random 32-bit words as a pure function of (seed, step, stream).

    Args:
        seed, step: the two 64-bit words of the key, >= 0.
        stream: the index of one of the independent sequences of this key.
        count: number of words.
        start: position of the first word in the sequence; those before it take no time.

    Returns:
        (count,) uint32.
    """
    first = start // 2
    words = _words(seed, step, stream, (start + count + 1) // 2 - first, first).view(np.uint32)
    return words[start - 2 * first :][:count]


def uniform(seed: int, step: int, stream: int, count: int, start: int = 0) -> np.ndarray:
    """Return uniform numbers in [0, 1), multiples of 2^-24: (count,) float32. Args: as `philox`."""
    return (philox(seed, step, stream, count, start) >> 8).astype(np.float32) * np.float32(2**-24)


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """Return the order in which an epoch visits n images, as a pure function of (seed, epoch): (n,) int64.

    It ranks Philox's words and does not use numpy's `permutation`, whose algorithm may change between versions.
    """
    return torch.from_numpy(np.argsort(_words(seed, epoch, 0, n), kind="stable"))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch draw on the CPU as after `torch.manual_seed(seed)`, then restore its random state: it is the caller's."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # not `torch.manual_seed`, which sets the generators of all GPUs too
    try:
        yield
    finally:
        torch.set_rng_state(before)
