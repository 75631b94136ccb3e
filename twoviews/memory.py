"""Memory on a CPU: what tensors free is kept for the next ones, by the C library and, of large tensors, by `memory.cpp`."""

from __future__ import annotations

import ctypes
import platform

from twoviews import native


def keep_freed_memory() -> bool:
    """Have the C library keep what tensors free, for the next ones: True where it can (glibc).

    By default every tensor over 32 MiB is mapped anew and its pages are zeroed one by one as they are touched: on two cores a fourth
    of a ResNet-18 step at batch 512 (85 views/s, and 119 without; LOG.md). The price is memory that stays with the process.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.libc_ver()[0] == "glibc" else None
    return mallopt is not None and bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))


def keep_places() -> bool:
    """Have torch keep the places of tensors of a megabyte and more, for the next ones of half their size to all of it, from now on.

    In the C library's heap such places lie apart and are too small by some bytes: ResNet-18 at batch 512 takes 4.1 GiB there, and 3.2 so.
    The price is again memory that stays with the process, here for tensors alone; torch's profiler of memory does not see it.

    Returns:
        Whether it is so; if not, as without a compiler, nothing changes.
    """
    found = native.library(native.MEMORY)
    return found is not None and found.keep_places() == 0
