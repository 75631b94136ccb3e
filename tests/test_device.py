"""What a run chooses from the machine."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from collections.abc import Callable

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


def page_faults(prepare: Callable[[], object]) -> int:
    """Return the page faults of eight tensors of 64 MiB, one after another, in a forked process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prepare()
            for _ in range(8):  # until the heap has grown
                torch.ones(2**24)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(8):
                torch.ones(2**24)
            os.write(writer, str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as file:
        return int(file.read())


def give_back_freed_memory() -> None:
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-4, 65536)  # M_MMAP_MAX and M_TRIM_THRESHOLD: the defaults of glibc
    mallopt(-1, 128 * 1024)


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    glibc = platform.libc_ver()[0] == "glibc"
    assert device.keep_freed_memory() == glibc
    if glibc:
        assert 2 * page_faults(device.keep_freed_memory) < page_faults(give_back_freed_memory)
