"""Device, threads, precision and compilation: choose them from what the machine has, and describe them in one line."""

import contextlib
import ctypes
import functools
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twoviews import distributed


@dataclass(frozen=True)
class Machine:
    """What a run uses.

    Args:
        device: of all tensors.
        threads: of the CPU.
        precision: `bf16` (autocast), `tf32` (float32 whose products a GPU rounds to TF32), `fp32` or `fp64`.
        compile: whether the views, and on a GPU the whole forward pass, are compiled.
    """

    device: torch.device
    threads: int
    precision: str
    compile: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass: with bf16, torch's autocast to bfloat16; parameters stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters: float32, or float64 for tests."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def __str__(self) -> str:
        processor = torch.cuda.get_device_name() if self.device.type == "cuda" else cpu_name()
        mode = "compiled" if self.compile else "eager"
        return f"{self.device.type} ({processor}), {self.threads} threads, {self.precision}, channels_last, {mode}"


def choose(*, device: str, threads: int | None, precision: str, compile: str | bool, deterministic: bool = False) -> Machine:
    """Return the machine to use. `auto` is the best device, bf16 if the hardware supports it, and compiled if there is a compiler.

    Args:
        device: auto, cpu, cuda or mps.
        threads: of the CPU; None for all cores that this process may use, shared with the other processes of the run.
        precision: auto, bf16, tf32, fp32 or fp64.
        compile: "auto", True or False.
        deterministic: on a GPU: only algorithms whose results repeat bit for bit, and no search for the fastest. On a CPU they always do.

    Raises:
        ValueError: if the machine does not have the device or a compiler.
    """
    device = find(device)
    if device == "mps" and distributed.size() > 1:
        raise ValueError("device=mps: one process only: start it without torchrun, or use device=cpu")
    if device == "cuda" and distributed.local_size() > max(1, torch.cuda.device_count()):
        gpus, wanted = torch.cuda.device_count(), distributed.local_size()
        raise ValueError(f"{wanted} processes on a machine with {gpus} GPUs: start torchrun with --nproc-per-node={gpus}")
    if device == "cuda" and distributed.size() > 1:
        torch.cuda.set_device(distributed.local_rank())  # before anything is created on a GPU
        # The compiled method is inside the wrapper that averages gradients: torch would split its graph for them.
        torch._dynamo.config.optimize_ddp = False
    threads = threads or max(1, cores() // distributed.local_size())
    torch.set_num_threads(threads)
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    if precision == "tf32" and device != "cuda":
        raise ValueError(f"precision=tf32: only NVIDIA GPUs have it, the device is {device}: use precision=fp32")
    if compile == "auto":
        compile = device == "cuda" or (device == "cpu" and compiler() is not None)
        if device == "cpu" and not compile:  # docs/performance.md has the times
            print("no C++ compiler found: the views are computed by slower PyTorch code: install g++ or clang++ for speed")
        if device == "cuda" and (missing := cannot_compile()):
            print(f"compile=auto: torch.compile does not work here ({missing}): training is not compiled, which is several times slower")
            compile = False
    elif compile and device == "cpu" and compiler() is None:
        raise ValueError("compile=true: no C++ compiler on this machine: install g++ or clang++, or use compile=auto")
    if device == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = not deterministic
        torch.use_deterministic_algorithms(deterministic)
        if deterministic:
            # important: cuBLAS reads this when it is first used; without it, a product that splits its sums differs between two runs
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # important: by default torch stops compiling after 8 shapes; batches of training and probes have about 12 sizes
        torch._dynamo.config.recompile_limit = 64
    return Machine(torch.device(device), threads, precision, bool(compile))


def find(device: str) -> str:
    """Return the name of the device to use: `auto` is the best one of this machine.

    Args:
        device: auto, cpu, cuda or mps.

    Raises:
        ValueError: if the machine does not have it.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(device):
        raise ValueError(f"device={device}: this machine has none, or torch {torch.__version__} was built without it: use device=auto")
    return device


@functools.cache
def cannot_compile() -> str:
    """Return why torch.compile does not work on this machine's GPU, in a few words; an empty text if it does.

    It needs Triton, a C compiler and Python's headers, and says so only when it compiles: so a small function is compiled.
    """
    try:
        x = torch.ones(8, device="cuda")
        torch.compile(lambda x: (x + 1).relu(), dynamic=False)(x)
    except Exception as error:  # torch wraps whatever its compilers raise
        return " ".join(str(error).split())[:120] or type(error).__name__
    return ""


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Compute products of float32 in full precision inside: TF32 has 10 bits, which changes the order of near neighbours."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_bf16(device: str) -> bool:
    """Return whether the hardware multiplies bfloat16: a CPU needs AVX512_BF16 or AMX, else autocast is far slower than fp32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def compiler() -> str | None:
    """Return the path of the C++ compiler that torch.compile would use, or None: `$CXX`, g++ or clang++."""
    wanted = os.environ.get("CXX")
    return next((path for name in ([wanted] if wanted else ["g++", "clang++"]) if (path := shutil.which(name))), None)


def cpu_name() -> str:
    """Return the model name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@contextlib.contextmanager
def naming_memory(message: str) -> Iterator[None]:
    """Turn any out-of-memory error inside (Python's, or torch's on GPU or CPU) into a MemoryError with this message.

    Raises:
        MemoryError: with the message and the original error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(f"out of memory{message} ({' '.join(str(error).split())[:120]})") from None
        raise


def send(x: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return x on the device. A copy to a GPU goes through pinned memory and does not block the host."""
    return x.pin_memory().to(device, dtype, non_blocking=True) if device.type == "cuda" else x.to(device, dtype)


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes: allocated on a GPU, or resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024  # macOS reports bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@functools.cache
def cpu_features() -> str:
    """Return the processor's instruction sets as the kernel lists them. They can differ between machines of one model."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next((line for line in info if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for later tensors. Return whether it can (glibc only).

    By default every tensor above 32 MiB is mapped again and its pages are cleared as they are touched: a quarter of a ResNet-18
    step at batch 512 on two cores (LOG.md). The price is memory that stays with the process.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.libc_ver()[0] == "glibc" else None
    return mallopt is not None and bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))


@contextlib.contextmanager
def as_guest() -> Iterator[None]:
    """Compute in a process that belongs to another program: with torch's defaults inside, whatever the caller's settings are.

    At the end the number of threads, the default type and, with a GPU, the settings of its arithmetic are the caller's again.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if torch.cuda.is_available():
            stack.enter_context(gpu_settings_restored())
        yield


@contextlib.contextmanager
def gpu_settings_restored() -> Iterator[None]:
    """Restore what `choose` sets for a GPU: precision of products, cuDNN's search, determinism, and the number of compiled shapes."""
    cudnn, dynamo = torch.backends.cudnn, torch._dynamo.config
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, dynamo.recompile_limit, dynamo.optimize_ddp
    deterministic, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark, dynamo.recompile_limit, dynamo.optimize_ddp = before[1:]
        torch.use_deterministic_algorithms(deterministic, warn_only=warn)
