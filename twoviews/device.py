"""Device, threads, precision and compilation: chosen from what the machine has, and said in one line."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Machine:
    """What a run uses.

    Args:
        device: where tensors live.
        threads: of the CPU.
        precision: `bf16` (autocast), `fp32` or `fp64`.
        compile: whether the views (on a GPU the whole forward too) are compiled.
    """

    device: torch.device
    threads: int
    precision: str
    compile: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 for the layers that gain from it, if this is the precision; parameters stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters: float32, or float64 for tests."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def __str__(self) -> str:
        what = torch.cuda.get_device_name() if self.device.type == "cuda" else cpu_name()
        how = "compiled" if self.compile else "eager"
        return f"{self.device.type} ({what}), {self.threads} threads, {self.precision}, channels_last, {how}"


def choose(*, device: str, threads: int | None, precision: str, compile: str | bool) -> Machine:
    """Resolve `auto`: the best device, every core, bf16 where the hardware multiplies it, compiled where there is a compiler.

    Args:
        device: auto, cpu, cuda or mps.
        threads: of the CPU; None for all cores that this process may use.
        precision: auto, bf16, fp32 or fp64.
        compile: "auto", True or False.

    Raises:
        ValueError: if the machine lacks what was asked for.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    elif not available[device]:
        raise ValueError(
            f"device={device}: this machine has none (or this torch, {torch.__version__}, was built without it): use device=auto"
        )
    threads = threads or cores()
    torch.set_num_threads(threads)
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    if compile == "auto":
        compile = device == "cuda" or (device == "cpu" and compiler() is not None)
        if device == "cpu" and not compile:  # a tenth of a thin net's step: docs/performance.md
            print("no C++ compiler (g++ or clang++): torch makes the views, five times as slowly, and kNN takes four times as long")
    elif compile and device == "cpu" and compiler() is None:
        raise ValueError("compile=true: no C++ compiler (g++ or clang++) on this machine: install one or use compile=auto")
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        # important: torch gives up at the ninth shape, and training and probes have batches of a dozen sizes, whole and last ones
        torch._dynamo.config.recompile_limit = 64
    return Machine(torch.device(device), threads, precision, bool(compile))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_bf16(device: str) -> bool:
    """Whether bfloat16 is multiplied in hardware: on a CPU with AVX512_BF16 or AMX; without them autocast is far slower than fp32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def compiler() -> str | None:
    """The C++ compiler that torch.compile would run on the CPU, if there is one."""
    asked = os.environ.get("CXX")
    return next((path for name in ([asked] if asked else ["g++", "clang++"]) if (path := shutil.which(name))), None)


def cpu_name() -> str:
    """Model name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@contextlib.contextmanager
def naming_memory(message: str) -> Iterator[None]:
    """Where memory ends inside (Python's, a GPU's or torch's on a CPU): a MemoryError with this message, and what was said.

    Raises:
        MemoryError: see there.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(f"out of memory{message} ({' '.join(str(error).split())[:120]})") from None
        raise


def send(x: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """To the device without waiting for it: what a step makes on the host goes to a GPU from pinned memory, in the order of its work."""
    return x.pin_memory().to(device, dtype, non_blocking=True) if device.type == "cuda" else x.to(device, dtype)


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: allocated on a GPU, resident for the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
