"""Names of files, folders and classes: how they are compared, and how they are printed."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "unlabelled": ("unlabelled", "unlabeled"),
}
SYSTEM_NAMES = {
    *("__macosx", "__pycache__", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found")
}
LONGEST = 60  # characters of one name in a message
LISTED, REASONS = 5, 20  # names in a line, and bad files with their reasons; more are counted
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control characters, bytes that are no UTF-8, line separators
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they change the order of the text that follows


def is_ignored(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that an operating system or a file server makes by itself."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def split_of(name: str) -> str | None:
    """Return the split that a folder name stands for, a key of `SPLIT_NAMES`, or None."""
    word = name.strip().casefold()
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def class_name(folder: str) -> str:
    """Return the class of a folder's name: Unicode NFC, with characters that cannot be printed as escapes."""
    return escaped(unicodedata.normalize("NFC", folder))


def shown(path: str | Path) -> str:
    """Return a path or a name for a message: on one line, printable, and each part at most `LONGEST` characters long."""
    return "/".join(_short(escaped(part)) for part in str(path).split("/"))


def listed(names: Iterable[str], limit: int = LISTED) -> str:
    """Return names for a message, with commas: the first ones, and the number of the others."""
    names = [shown(name) for name in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def with_reasons(bad: Iterable[tuple[str, str]]) -> str:
    """Return names, as `shown` returns them, each with what is wrong: the first ones, and the number of the others."""
    named = [f"{name}: {reason}" for name, reason in bad]
    more = f"; and {len(named) - REASONS} more" if len(named) > REASONS else ""
    return "; ".join(named[:REASONS]) + more


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 image`, `1,200 images`, `3 classes`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def span(low: int, high: int, noun: str = "") -> str:
    """Return a range of counts with its noun: `120 to 180`, `30`, `1 to 3 images`."""
    counts = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{counts} {plural(high, noun).partition(' ')[2]}" if noun else counts


def escaped(text: str) -> str:
    """Return text on one line: characters that cannot be printed, or that change the order of the others, become escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in UNPRINTABLE or c in DIRECTIONS else c for c in text)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 18]}...{text[-15:]}"
