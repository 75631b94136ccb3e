"""What is printed never stops a program: text that a stream cannot encode is escaped, and a closed pipe is no error."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def escaping() -> Iterator[None]:
    """Escape what standard output and error cannot encode (`\\xb1` for ±, where the locale is ASCII); restore both at the end."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with contextlib.suppress(ValueError):  # it was closed
                stream.reconfigure(errors=errors)


class _Lossy(io.FileIO):
    """A file descriptor of which nobody may read the other end any more: what cannot be written is dropped."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:  # the reader of a pipe has ended, the terminal was closed, or the disk is full
            return memoryview(data).nbytes  # type: ignore[arg-type]


@contextlib.contextmanager
def unbreakable() -> Iterator[None]:
    """As `escaping`, and ignore errors of the operating system while printing: for a process that is ours.

    A run of hours must not end because `tee` did. Streams that are not those of the process, such as a test's, are only escaped.
    """
    before = sys.stdout, sys.stderr
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            setattr(sys, name, nowhere)
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = _Lossy(stream.fileno(), "w", closefd=False)
            line = stream.line_buffering or stream.write_through
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=line))
    try:
        with escaping():
            yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
        nowhere.close()
