"""Pillow's warnings, collected for each thread and named in our words, in place of raw text on the terminal."""

import contextlib
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any

# The first pattern that is found in Pillow's text names the kind.
KINDS = {
    r"exceeds limit of .* pixels": "very large image (over 89 million pixels)",
    r"EXIF|Metadata Warning|Truncated File Read|[Tt]ag (offset|data)|Expecting to read": "corrupt metadata, such as EXIF data",
    r"malformed MPO": "malformed MPO file: its first image is used",
    r"Invalid APNG": "invalid animation: its first image is used",
    r"not the expected size": "icon whose size differs from its header",
}


def kind(text: str) -> str:
    """Return the kind of a warning of Pillow: the same words for every file that it is about."""
    named = (name for pattern, name in KINDS.items() if re.search(pattern, text))
    return next(named, f"Pillow warns: {re.sub('[0-9]+', 'N', ' '.join(text.split()))[:100]}")


class _Listener(logging.Filter):
    """Take what is warned about in the threads that listen; leave other threads as they are.

    `warnings.catch_warnings` changes the filters of all threads, so threads that decode at the same time cannot use it.
    Instead, one filter is in the list while any thread listens. In place of a regular expression it has this object,
    whose `match` is true for every text in a thread that listens and for none in another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.thread = threading.local()
        self.listening = 0
        self.filters = [("ignore", self, category, None, 0) for category in (UserWarning, RuntimeWarning)]
        self.changed: list[Any] = []  # lists of the module `warnings` that hold our filters

    def match(self, text: str) -> bool:
        """Take a warning, if this thread listens; return whether it was taken."""
        heard: list[str] | None = getattr(self.thread, "heard", None)
        if heard is not None:
            heard.append(text)
        return heard is not None

    def filter(self, record: logging.LogRecord) -> bool:
        """Take what Pillow logs, which Python prints if the program has no logging of its own."""
        return not self.match(record.getMessage())

    def start(self) -> None:
        """Count a thread in, and put our filters in front."""
        with self.lock:
            self.listening += 1
            filters: Any = warnings.filters
            if self.filters[0] not in filters:
                filters[:0] = self.filters
                self.changed.append(filters)
                logging.getLogger("PIL.TiffImagePlugin").addFilter(self)

    def stop(self) -> None:
        """Count a thread out; after the last one, nothing of ours is left."""
        with self.lock:
            self.listening -= 1
            if self.listening:
                return
            for filters in self.changed:
                filters[:] = [entry for entry in filters if entry not in self.filters]
            self.changed.clear()
            logging.getLogger("PIL.TiffImagePlugin").removeFilter(self)


_listener = _Listener()


@contextlib.contextmanager
def collect() -> Iterator[list[str]]:
    """Return a list that gets the text of every warning of this thread in place of the terminal. It is safe in many threads at once."""
    before = getattr(_listener.thread, "heard", None)
    heard: list[str] = []
    _listener.start()
    _listener.thread.heard = heard
    try:
        yield heard
    finally:
        _listener.thread.heard = before
        _listener.stop()
