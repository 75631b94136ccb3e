"""What a run chooses from the machine, and what it asks of the C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from twoviews import device

FAULTS = """
import resource, sys, torch
from twoviews import device
if sys.argv[1] == "kept":
    device.choose(device="cpu", threads=1, precision="fp32", compile=False)
for _ in range(16):
    torch.ones(16 << 20)  # an aligned block needs a little more than the last one left: the first few do not fit
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(16 << 20)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of sixteen tensors of 64 MiB, one after another."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


def test_freed_tensors_are_used_again() -> None:
    """A block that goes back to the system is zeroed page by page when it comes again: a fourth of a training step."""
    glibc = platform.libc_ver()[0] == "glibc"
    assert device.keep_freed_memory() == glibc
    if glibc:
        assert faults("kept") * 4 < faults("not kept"), "the allocator may still take a block or two anew"


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (None, None)])
def test_threads(threads: int | None, expected: int | None) -> None:
    machine = device.choose(device="cpu", threads=threads, precision="fp32", compile=False)
    assert machine.threads == expected if expected else machine.threads >= 1


@pytest.mark.parametrize(("compile", "said"), [("auto", True), (False, False)])
def test_without_a_compiler_what_that_costs_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compile: str | bool, said: bool
) -> None:
    monkeypatch.setattr(device, "compiler", lambda: None)
    assert not device.choose(device="cpu", threads=1, precision="fp32", compile=compile).compile
    assert ("no C++ compiler" in capsys.readouterr().out) == said
