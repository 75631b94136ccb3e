"""What a run chooses from the machine."""

from __future__ import annotations

import pytest

from twoviews import device


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
