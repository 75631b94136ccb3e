"""Files from the network: hash-checked, resumed where they broke off, from more than one source, once for all processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from twoviews.progress import Progress

PIECE = 1 << 20  # bytes read at a time, at most
TIMEOUT = 30.0  # seconds without a byte after which the next source is tried
TRIES = 3  # of one source that breaks off: each goes on where the one before stopped


def fetch(urls: Sequence[str], path: Path, *, sha256: str, size: int, title: str) -> Path:
    """A file with this SHA-256 at `path`, downloaded unless it is there.

    A broken download goes on where it stopped, also in a later call: its bytes wait in `<name>.part`. Two processes share one
    download: the second waits for the first.

    Args:
        urls: of the same bytes; tried in turn.
        path: where it comes to lie; its folder is made.
        sha256: in hexadecimal.
        size: in bytes; no more is ever written.
        title: of what is downloaded, for people.

    Returns:
        `path`.

    Raises:
        ValueError: if no source gives that file, with each one's reason and what to do; or if the folder cannot be written.
    """
    try:
        if path.is_file() and digest(path) == sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(f"{path.name}.lock"), "w") as lock:
            _wait_for(lock.fileno(), path)
            if path.is_file() and digest(path) == sha256:  # the process that we waited for got it
                return path
            return _from_any(urls, path, sha256, size, title)
    except OSError as error:
        raise ValueError(f"{title}: {path} cannot be written ({error.strerror or error}): give data_dir=, or free some space") from None


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wait_for(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another process is downloading {path.name}: waiting for it", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


class _Failed(Exception):
    """A source does not give the file; the message says why."""


def _from_any(urls: Sequence[str], path: Path, sha256: str, size: int, title: str) -> Path:
    part = path.with_name(f"{path.name}.part")
    reasons = []
    for url in urls:
        reason = ""
        for _ in range(TRIES):
            before = _length(part)
            try:
                _append(url, part, size, title)
            except _Failed as error:
                reason = str(error)
                if _length(part) > before:
                    continue  # it came further: the same source goes on
                break
            if digest(part) == sha256:
                os.replace(part, path)
                return path
            reason = "a web page, not the file" if is_page(part) else f"other bytes: SHA-256 {digest(part)[:12]}..."
            part.unlink()  # of no use to any source
            if not before:
                break  # what it gives from the start is wrong; a wrong beginning, left by another, is worth one more try
        reasons.append(f"{url}: {reason}")
    raise ValueError(
        f"{title}: could not be downloaded ({'; '.join(reasons)}): fetch {path.name} on a machine that can and give data_dir=<that file>"
    )


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(url: str, part: Path, size: int, title: str) -> None:
    """Add to `part` what is missing of `url`. A server that cannot go on in the middle starts beside it: a long part is not given up
    for a short answer."""
    have = _length(part)
    request = urllib.request.Request(url, headers={"User-Agent": "twoviews", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing behind what we have: the hash will say whether it is the file
            return
        raise _Failed(f"HTTP {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:
        raise _Failed(str(getattr(error, "reason", "") or error) or type(error).__name__) from None
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise _Failed("a web page, not the file")
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        target = part if goes_on or not have else part.with_name(f"{part.name}.anew")
        done = have if goes_on else 0
        length = answer.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else size
        free = shutil.disk_usage(part.parent).free
        if free < size - done:
            raise OSError(None, f"{(size - done) / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
        with (
            open(target, "ab" if goes_on else "wb") as file,
            Progress(f"download {title}", size // PIECE, "MB", start=done // PIECE) as bar,
        ):
            for piece in _pieces(answer):
                done += len(piece)
                if done > size:
                    break
                file.write(piece)
                bar.add(done // PIECE - bar.done)
    if target != part and (done >= total or _length(target) > have):
        os.replace(target, part)
    if done > size:
        part.unlink()
        raise _Failed(f"more than the {size / 1e6:.1f} MB that the file has")
    if done < total:
        raise _Failed(f"broke off after {done / 1e6:.1f} of {total / 1e6:.1f} MB")


def _pieces(answer: HTTPResponse) -> Iterator[bytes]:
    """The body as it comes; what the network does in between is the source's failure, not the disk's."""
    while True:
        try:
            piece = answer.read1(PIECE)
        except (OSError, HTTPException) as error:
            raise _Failed(str(error) or type(error).__name__) from None
        if not piece:
            return
        yield piece


def is_page(path: Path) -> bool:
    """Whether a file is an HTML page: what a login wall or an error gives in place of data."""
    with open(path, "rb") as file:
        return b"<html" in file.read(1000).lower()
