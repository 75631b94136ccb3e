"""Download files: resumable, checked by hash, from several sources, and by one process at a time."""

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from filelock import FileLock, Timeout

from twoviews.progress import Progress

PIECE = 1 << 20  # largest number of bytes read at once
TIMEOUT = 30.0  # seconds without data after which the next source is tried
TRIES = 3  # attempts per source whose connection breaks; each continues where the previous one stopped


def fetch(urls: Sequence[str], path: Path, *, sha256: str, size: int, title: str) -> Path:
    """Return `path` after downloading the file with this SHA-256 to it, unless it exists.

    The bytes of a broken download stay in `<name>.part`, and a later call continues there. A second process that needs
    the file waits for the first.

    Args:
        urls: addresses of the file, tried in turn.
        path: of the file; its folder is created.
        sha256: in hexadecimal.
        size: in bytes; never more is written.
        title: the name of the download for messages.

    Raises:
        ValueError: if every source fails, with the reasons and what to do; or if the folder cannot be written.
    """
    try:
        if path.is_file() and digest(path) == sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if path.is_file() and digest(path) == sha256:  # another process downloaded it in the meantime
                return path
            return _from_any(urls, path, sha256, size, title)
    except OSError as error:
        raise ValueError(f"{title}: {path} cannot be written ({error.strerror or error}): give data_dir=, or free some space") from None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _locked(path: Path) -> AbstractContextManager[object]:
    # important: a soft lock, filelock's fallback, would outlive a crash
    lock = FileLock(path.with_name(f"{path.name}.lock"), fallback_to_soft=False)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is downloading {path.name}: waiting for it", flush=True)
        return lock.acquire()


class _Failed(Exception):
    """A source failed; the message says why."""


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
                    continue  # some bytes arrived: try the same source again
                break
            if digest(part) == sha256:
                os.replace(part, path)
                return path
            reason = "a web page, not the file" if is_page(part) else f"another file: SHA-256 {digest(part)[:12]}..."
            part.unlink()  # no source can complete it
            if not before:
                break  # this source has another file; after a wrong start from elsewhere it gets one more try
        reasons.append(f"{url}: {reason}")
    raise ValueError(
        f"{title}: could not be downloaded ({'; '.join(reasons)}): download {path.name} on another machine and give data_dir=<that file>"
    )


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(url: str, part: Path, size: int, title: str) -> None:
    """Append the missing bytes of `url` to `part`.

    A server without ranges starts again: its bytes go to another file, which replaces `part` only when it is longer.
    """
    have = _length(part)
    request = urllib.request.Request(url, headers={"User-Agent": "twoviews", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # no bytes follow: the hash decides whether the part is the whole file
            return
        raise _Failed(f"HTTP {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:
        raise _Failed(str(getattr(error, "reason", "") or error) or type(error).__name__) from None
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise _Failed("a web page, not the file")
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        target = part if resumed or not have else part.with_name(f"{part.name}.anew")
        done = have if resumed else 0
        length = answer.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else size
        free = shutil.disk_usage(part.parent).free
        if free < size - done:
            raise OSError(None, f"{(size - done) / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
        with (
            open(target, "ab" if resumed else "wb") as file,
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
        raise _Failed(f"larger than the file, which has {size / 1e6:.1f} MB")
    if done < total:
        raise _Failed(f"the connection broke after {done / 1e6:.1f} of {total / 1e6:.1f} MB")


def _pieces(answer: HTTPResponse) -> Iterator[bytes]:
    """Yield the body of an answer. An error of the network is a failure of the source, not of the disk."""
    while True:
        try:
            piece = answer.read1(PIECE)
        except (OSError, HTTPException) as error:
            raise _Failed(str(error) or type(error).__name__) from None
        if not piece:
            return
        yield piece


def is_page(path: Path) -> bool:
    """Return whether a file is an HTML page, such as a login page or an error."""
    with open(path, "rb") as file:
        return b"<html" in file.read(1000).lower()
