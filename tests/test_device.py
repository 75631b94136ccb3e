"""What a run chooses from the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from twoviews import device


@pytest.mark.parametrize("threads", [1, 2, None])
def test_threads_are_those_given_or_all_cores(threads: int | None) -> None:
    before = torch.get_num_threads()
    try:
        machine = device.choose(device="cpu", threads=threads, precision="fp32", compile=False)
        assert machine.threads == torch.get_num_threads() == (threads or device.cores()) >= 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("compile", "printed"), [("auto", True), (False, False)])
def test_without_a_compiler_the_slower_code_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compile: str | bool, printed: bool
) -> None:
    monkeypatch.setattr(device, "compiler", lambda: None)
    assert not device.choose(device="cpu", threads=1, precision="fp32", compile=compile).compile
    assert ("no C++ compiler" in capsys.readouterr().out) == printed


def test_what_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compiler", lambda: None)
    with pytest.raises(ValueError, match=r"compile=true: no C\+\+ compiler"):
        device.choose(device="cpu", threads=1, precision="fp32", compile=True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device=mps: this machine has none"):
        device.choose(device="mps", threads=1, precision="fp32", compile=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that claims to have a GPU which can compile; all settings are restored."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(device, "cannot_compile", lambda: "")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    with device.gpu_settings_restored():
        yield


def choose(**options: Any) -> device.Machine:
    return device.choose(**{"device": "cuda", "threads": torch.get_num_threads(), "precision": "auto", "compile": "auto", **options})


@pytest.mark.parametrize(("precision", "products"), [("auto", "highest"), ("fp32", "highest"), ("tf32", "high")])
def test_products_are_rounded_to_tf32_only_where_that_is_asked_for(gpu: None, precision: str, products: str) -> None:
    choose(precision=precision)
    assert torch.get_float32_matmul_precision() == products
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    with device.exact_products():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == products


def test_tf32_is_refused_without_an_nvidia_gpu() -> None:
    with pytest.raises(ValueError, match="precision=tf32: only NVIDIA GPUs have it, the device is cpu: use precision=fp32"):
        choose(device="cpu", precision="tf32")


def test_deterministic_takes_no_algorithm_that_differs_from_run_to_run(gpu: None) -> None:
    choose(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    choose()  # the next run of a sweep
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_without_what_torch_compile_needs_a_gpu_trains_uncompiled_and_says_so(
    gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose().compile
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(device, "cannot_compile", lambda: "Cannot find a working triton installation")
    assert not choose().compile
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "torch.compile does not work here (Cannot find a working triton installation): training is not compiled" in out


def test_whether_a_gpu_can_compile_is_found_by_compiling() -> None:
    """Here there is no GPU, so the trial fails, and the reason is one short line."""
    if torch.cuda.is_available():
        assert device.cannot_compile() == ""
    else:
        assert 0 < len(device.cannot_compile()) <= 120
        assert "\n" not in device.cannot_compile()


def test_the_compiler_can_be_chosen_by_cxx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert device.compiler() is None
    monkeypatch.setenv("CXX", "sh")
    assert str(device.compiler()).endswith("/sh")


@pytest.mark.parametrize("error", [MemoryError("numpy"), torch.OutOfMemoryError("CUDA"), RuntimeError("x can't allocate memory: y")])
def test_an_out_of_memory_error_gets_the_message(error: Exception) -> None:
    with pytest.raises(MemoryError, match=r"out of memory in a test \("), device.naming_memory(" in a test"):
        raise error
    with pytest.raises(RuntimeError, match="another"), device.naming_memory(" in a test"):
        raise RuntimeError("another")


FAULTS = """
import ctypes, resource, sys, torch
from twoviews import device
if sys.argv[1] == "kept":
    device.keep_freed_memory()
else:
    ctypes.CDLL(None).mallopt(-1, 128 * 1024)  # M_TRIM_THRESHOLD: glibc's default
for _ in range(8):  # until the heap has grown
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(memory: str) -> int:
    """Return the page faults of eight tensors of 64 MiB, one after another, in a new process: an older one has free memory of that size."""
    return int(subprocess.run([sys.executable, "-c", FAULTS, memory], check=True, capture_output=True, text=True).stdout)


@pytest.mark.long
def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    glibc = platform.libc_ver()[0] == "glibc"
    assert device.keep_freed_memory() == glibc
    if glibc:
        assert 2 * page_faults("kept") < page_faults("given back")
