"""Printing never stops a command."""

from __future__ import annotations

import io
import os
import sys

import pytest

from twoviews import output


def test_what_a_stream_cannot_encode_is_escaped_and_the_stream_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with output.escaping():
        print("± é")
    stream.flush()
    assert stream.buffer.getvalue() == rb"\xb1 \xe9" + b"\n"  # type: ignore[attr-defined]
    with pytest.raises(UnicodeEncodeError):
        print("±")


@pytest.mark.parametrize("number", [1, 2])
def test_a_pipe_without_a_reader_and_a_full_disk_are_no_errors(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    name = {1: "stdout", 2: "stderr"}[number]
    reader, writer = os.pipe()
    os.close(reader)
    for handle in (writer, os.open("/dev/full", os.O_WRONLY)):
        stream = open(handle, "w", buffering=1, encoding="ascii")  # noqa: SIM115 - closed below
        monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, f"__{name}__", stream)
        with output.unbreakable():
            for _ in range(3):
                print("±", file=getattr(sys, name), flush=True)
        assert getattr(sys, name) is stream
        stream.close()


def test_a_stream_that_works_gets_everything_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    print("before")
    with output.unbreakable():
        print("± inside")
    print("after")
    stream.close()
    with open(reader, encoding="utf-8") as file:
        assert file.read() == "before\n± inside\nafter\n"


def test_a_stream_that_is_closed_is_replaced_while_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with output.unbreakable():
        sys.stderr.write("nobody reads this")
    assert sys.stderr is None
