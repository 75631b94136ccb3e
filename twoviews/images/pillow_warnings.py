"""Pillow's warnings, collected for each thread and named in our words, in place of raw text on the terminal."""

import contextlib
import ctypes
import functools
import logging
import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from typing import Any

from PIL import Image

# The first pattern that is found in Pillow's text names the kind.
KINDS = {
    r"exceeds limit of .* pixels": "very large image (over 89 million pixels)",
    r"EXIF|Metadata Warning|Truncated File Read|[Tt]ag (offset|data)|Expecting to read": "corrupt metadata, such as EXIF data",
    r"malformed MPO": "malformed MPO file: its first image is used",
    r"Invalid APNG": "invalid animation: its first image is used",
    r"image format is deprecated": "format that a later version of Pillow will not read",
    r"not the expected size": "icon whose size differs from its header",
}


def kind(text: str) -> str:
    """Return the kind of a warning of Pillow: the same words for every file that it is about."""
    named = (name for pattern, name in KINDS.items() if re.search(pattern, text))
    return next(named, f"Pillow warns: {re.sub('[0-9]+', 'N', ' '.join(text.split()))[:100]}")


class _Listener(threading.local):
    """In the filters of Python's module `warnings`, the pattern of a text: it matches every text in a thread that listens, and keeps it.

    `warnings.catch_warnings` changes the filters of all threads, so threads that decode at the same time cannot use it.
    Instead, filters with this object stay in front while any thread listens.

    important: no Python code may run during a match. Python could then switch to a thread that replaces the list of
    filters, and the C code that reads it would crash. So `match` is a method of a type in C, in both cases.
    """

    match = "\0".__eq__  # of a thread that does not listen: no warning has this text


@functools.cache
def _tiff_handlers() -> tuple[Any, ...]:
    """Return the functions that set what libtiff does with an error and a warning. By default it prints them."""
    library = ctypes.CDLL(Image.core.__file__)  # it finds the libraries that Pillow loaded, too
    found = [getattr(library, name, None) for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler")]  # none in a static Pillow
    for function in (handlers := tuple(filter(None, found))):
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
    return handlers


class _Filters:
    """Our filters of warnings, of Pillow's log and of what libtiff prints, which are in place while any thread listens."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.listening = 0
        self.entries = [("ignore", _listener, category, None, 0) for category in (UserWarning, RuntimeWarning, DeprecationWarning)]
        self.changed: list[Any] = []  # lists of the module `warnings` that hold our filters
        self.handlers: list[Any] = []  # of libtiff, as they were

    def filter(self, record: logging.LogRecord) -> bool:
        """Take what Pillow logs, which Python prints if the program has no logging of its own."""
        return not _listener.match(record.getMessage())

    def start(self) -> None:
        """Count a thread in, and put our filters in front."""
        with self.lock:
            self.listening += 1
            filters: Any = warnings.filters
            if self.entries[0] not in filters:
                filters[:0] = self.entries
                self.changed.append(filters)
            if self.listening == 1:
                _logger.addFilter(self.filter)
                self.handlers = [set_handler(None) for set_handler in _tiff_handlers()]

    def stop(self) -> None:
        """Count a thread out; after the last one, nothing of ours is left."""
        with self.lock:
            self.listening -= 1
            if self.listening:
                return
            for filters in self.changed:
                filters[:] = [entry for entry in filters if entry not in self.entries]
            self.changed.clear()
            _logger.removeFilter(self.filter)
            for set_handler, handler in zip(_tiff_handlers(), self.handlers, strict=True):
                set_handler(handler)


_listener, _logger = _Listener(), logging.getLogger("PIL.TiffImagePlugin")
_filters = _Filters()


@contextlib.contextmanager
def collect() -> Iterator[dict[str, int]]:
    """Return a dictionary that gets the text of every warning of this thread, in place of the terminal. It is safe in many threads."""
    before = vars(_listener).get("match")
    heard: defaultdict[str, int] = defaultdict(count(1).__next__)  # looking up a text adds it, and returns a number that is true
    _filters.start()
    vars(_listener)["match"] = heard.__getitem__
    try:
        yield heard
    finally:
        if before:
            vars(_listener)["match"] = before
        else:
            del vars(_listener)["match"]
        _filters.stop()
