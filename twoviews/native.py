"""The C++ parts, `pixels.cpp`, `batchnorm.cpp`, `memory.cpp`, `probes/knn.cpp`: compiled once for this machine and kept in the cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twoviews.device import compiler, cpu_name

VIEWS, NORM, MEMORY, KNN = "pixels.cpp", "batchnorm.cpp", "memory.cpp", "probes/knn.cpp"
# Loops become vector code only where a minimum may ignore NaN and signed zeros and no operation can trap; nothing in views and features is
# NaN or infinite, and `batchnorm.cpp` tells those by their bits. Not -ffast-math, which has all of these: linked into a library it would
# flush small numbers to zero in the whole process.
FLAGS = [
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp-simd", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only"),
]
OPENMP = "-fopenmp"  # torch's own threads: threads of another make would share the cores with them while they wait for work
TORCH = Path(torch.__file__).parent
# What is a part of torch is made by its headers, for the standard library that it was made for.
ABI = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
LINKED = {MEMORY: [ABI, "-pthread", "-I", str(TORCH / "include"), "-L", str(TORCH / "lib"), f"-Wl,-rpath,{TORCH / 'lib'}", "-lc10"]}
COLUMNS = 16  # of the table of choices
ROWS_OF_MEAN = 4096  # of a bank, about
WIDEST = 2**16 - 1  # features whose sum of products of 8-bit codes fits 32 bits


class Shape(ctypes.Structure):
    """The struct of the same name in `pixels.cpp`."""

    _fields_ = [(name, ctypes.c_int64) for name in ("channels", "height", "width", "size", "blur", "cubic")]


class Sizes(ctypes.Structure):
    """The struct of the same name in `batchnorm.cpp`."""

    _fields_ = [*((name, ctypes.c_int64) for name in ("parts", "rows", "channels", "threads")), ("epsilon", ctypes.c_double)]


def view(images: Tensor, table: Tensor, *, size: int, blur_kernel: int, cubic: bool, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """One view of every image, on torch's number of threads.

    Args:
        images: (N, C, H, W) uint8 on the CPU.
        table: (N, 16) float32 or float64 on the CPU: `pixels.Choices.table`.
        size: side of the view.
        blur_kernel: taps of the Gaussian, odd, below twice the side.
        cubic: bicubic crops, not bilinear ones.
        mean, std: of each channel.

    Returns:
        (N, C, size, size) of the table's dtype, normalised, channels_last.

    Raises:
        ValueError: if an argument has another form, or a crop leaves its image: memory is read and written unchecked below.
        RuntimeError: if there is no library, or it ran out of memory.
    """
    found = library()
    if found is None:
        raise RuntimeError("pixels.cpp could not be compiled on this machine")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.device.type != "cpu":
        raise ValueError(f"views: expected uint8 images (N, C, H, W) on the CPU, got {images.dtype} {tuple(images.shape)}, {images.device}")
    count, channels, height, width = images.shape
    found_table = f"{table.dtype} {tuple(table.shape)}, {table.device}"
    if table.dtype not in (torch.float32, torch.float64) or table.shape != (count, COLUMNS) or table.device.type != "cpu":
        raise ValueError(f"views: expected a float table ({count}, {COLUMNS}) on the CPU, got {found_table}")
    too_wide = blur_kernel // 2 >= size and bool(table[:, 14].any())  # its reflection would leave the view
    if not len(mean) == len(std) == channels or size < 1 or blur_kernel < 1 or blur_kernel % 2 == 0 or too_wide:
        moments_given = f"{len(mean)} means, {len(std)} deviations"
        raise ValueError(f"views: {channels} channels, size {size}, blur_kernel {blur_kernel}, {moments_given}: they do not fit")
    top, left, rows, columns = table[:, :4].unbind(1)
    inside = (top >= 0) & (left >= 0) & (rows >= 1) & (columns >= 1) & (top + rows <= height) & (left + columns <= width)
    if not inside.all() or (channels != 3 and table[:, 12].any()):
        raise ValueError("views: a crop leaves its image, or a hue is turned where there is no colour")
    images, table = images.contiguous(), table.contiguous()
    moments = torch.tensor([mean, std], dtype=table.dtype, device="cpu")
    out = torch.empty(count, size, size, channels, dtype=table.dtype, device="cpu")
    run = found.views_double if table.dtype == torch.float64 else found.views_float
    failed = run(
        images.data_ptr(),
        table.data_ptr(),
        out.data_ptr(),
        count,
        Shape(channels, height, width, size, blur_kernel, cubic),
        moments[0].data_ptr(),
        moments[1].data_ptr(),
        max(1, min(torch.get_num_threads(), count)),
    )
    if failed:
        raise RuntimeError("views: out of memory")
    return out.permute(0, 3, 1, 2)


def neighbours(bank: Tensor, queries: Tensor, *, k: int, metrics: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]] | None:
    """The k nearest rows of the bank, on torch's number of threads, or None where tensors or machine are not for this.

    Args:
        bank, queries: (M, D) and (Q, D) of one dtype, finite.
        k: in [1, M].
        metrics: some of `cosine` and `euclidean`.

    Returns:
        {metric: (rows (Q, k) int64, cosine or minus the distance (Q, k))}, nearest first, of equally near ones the lower row first.

    Raises:
        RuntimeError: if it ran out of memory.
    """
    fits = bank.dtype in (torch.float32, torch.float64) and bank.device.type == "cpu" and 1 <= bank.shape[1] <= WIDEST
    found = library(KNN) if fits else None
    if found is None:
        return None
    bank, queries = bank.contiguous(), queries.contiguous()
    mean = bank[:: max(1, len(bank) // ROWS_OF_MEAN)].mean(0, dtype=torch.float64)  # any centre serves; near the mean, codes are finest
    largest = max(abs(float(extreme)) for x in (bank, queries) for extreme in torch.aminmax(x))
    out = {metric: (torch.empty(len(queries), k, dtype=torch.int64), torch.empty(len(queries), k, dtype=bank.dtype)) for metric in metrics}
    places = [[out[metric][i].data_ptr() if metric in out else None for metric in ("cosine", "euclidean")] for i in (0, 1)]
    run = found.search_double if bank.dtype == torch.float64 else found.search_float
    failed = run(
        bank.data_ptr(),
        queries.data_ptr(),
        mean.data_ptr(),
        1 / largest if largest > 0 else 1.0,
        *(len(bank), len(queries), bank.shape[1], k),
        *((ctypes.c_void_p * 2)(*two) for two in places),
        torch.get_num_threads(),
    )
    if failed:
        raise RuntimeError("knn: out of memory")
    return out


def fast_products() -> bool:
    """Whether this processor multiplies 8-bit numbers four times as fast as float32: elsewhere torch's own search is the faster one."""
    return "avx512_vnni" in _features()


_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_views = [_POINTER, _POINTER, _POINTER, _NUMBER, Shape, _POINTER, _POINTER, _NUMBER]
_search = [_POINTER, _POINTER, _POINTER, ctypes.c_double, *[_NUMBER] * 4, _POINTER, _POINTER, _NUMBER]
ARGUMENTS: dict[str, dict[str, list[Any]]] = {
    VIEWS: {"views_float": _views, "views_double": _views},
    NORM: {"norm_forward": [*[_POINTER] * 7, _NUMBER, _NUMBER, Sizes], "norm_backward": [*[_POINTER] * 10, Sizes]},
    MEMORY: {"keep_places": []},
    KNN: {"search_float": _search, "search_double": _search},
}


@functools.cache
def library(source: str = VIEWS) -> ctypes.CDLL | None:
    """A compiled library, or None where it cannot be made, with a printed line unless there is no compiler at all.

    The first call on a machine compiles; later ones load the file. It is named by a hash of source, flags, compiler, torch and
    processor, so that machines of different kinds can share a cache without running each other's instructions.
    """
    cxx = compiler()
    if cxx is None:
        return None
    path = Path(__file__).parent / source
    command = [cxx, *FLAGS]
    if platform.system() == "Linux":  # elsewhere the processor cannot be told apart well enough to share a cache
        command.append("-mcpu=native" if platform.machine() == "aarch64" else "-march=native")
    try:
        version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
        machine = [platform.platform(), cpu_name(), _features()]
        linked = LINKED.get(source, [])
        about = [*command, *linked, OPENMP, version, torch.__version__, *machine, path.read_text(encoding="utf-8")]
        key = hashlib.sha256("\0".join(about).encode()).hexdigest()
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twoviews" / f"{path.stem}-{key[:24]}.so"
        if not kept.is_file():
            print(f"compiling {path.name} for this machine, once", flush=True)
            _compile([*command, str(path), *linked], kept)
        _refuse_strangers(kept)
        found = ctypes.CDLL(str(kept))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: a user without a home
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        print(f"{path.name} could not be compiled or loaded ({' '.join(said.split())[:200]}): torch does its work, less well")
        return None
    for name, arguments in ARGUMENTS[source].items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    return found


def _refuse_strangers(library: Path) -> None:
    """What is loaded is run: neither the file nor its folder may be one that another user could have written."""
    for place in (library, library.parent):
        about = place.stat()
        if about.st_uid not in (0, os.geteuid()) or about.st_mode & stat.S_IWOTH:
            raise RuntimeError(f"{place} could have been written by another user: XDG_CACHE_HOME names another cache")


def _compile(command: list[str], path: Path) -> None:
    """Beside its place first: of two processes that compile at once each renames a whole file. Without OpenMP where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=300)
        if run([*command, OPENMP, "-o", beside]).returncode:
            run([*command, "-o", beside], check=True)
            print(f"{command[0]} has no OpenMP: what it compiled uses one thread", flush=True)
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(beside).unlink()


@functools.cache
def _features() -> str:
    """What the processor can do: virtual machines of one model differ in it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next((line for line in info if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""
