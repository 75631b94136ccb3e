"""Atomic files and checksums: the one way in which anything is written to disk."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_atomic(path: Path, payload: bytes) -> None:
    """Write a file so that a crash or power failure leaves either the old file or the new one, complete.

    The bytes go to a temporary file in the same folder, are flushed to disk, and are renamed over `path`.

    Raises:
        OSError: with the megabytes needed and free if the disk is full; the old file stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path, len(payload)) from None
    _sync_folder(path.parent)


def disk_error(error: OSError, path: Path, size: int) -> OSError:
    """Return the error to raise where a file cannot be written: with its name, and the megabytes needed and free.

    Args:
        error: from the system.
        path: the file.
        size: bytes that were to be written.
    """
    if not path.parent.is_dir():
        return OSError(errno.ESTALE, "the folder no longer exists", str(path.parent))
    stat = os.statvfs(path.parent)
    space = f"{size / 2**20:.1f} MB needed, {stat.f_bavail * stat.f_frsize / 2**20:.0f} MB free"
    return OSError(error.errno, f"{error.strerror}: {space}", str(path))


def cache_folder() -> Path:
    """Return the folder for what can be downloaded, decoded or compiled again: `$XDG_CACHE_HOME/twoviews`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twoviews"


def remove_temporary(folder: Path) -> None:
    """Remove what an interrupted `write_atomic` left. Call it only while holding the folder's lock."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(content: dict[str, Any], run: str) -> str:
    """Return the SHA-256 that a JSON object of a run carries under `sha256`.

    It covers the values, however they are formatted, and the run.

    Args:
        content: without its checksum.
        run: `folder.identity` of the run that the object belongs to.
    """
    return hashlib.sha256(f"{run}\0{json.dumps(content, sort_keys=True)}".encode()).hexdigest()


def verified(content: dict[str, Any], run: str) -> dict[str, Any]:
    """Return a JSON object without its checksum, after checking it.

    Args:
        content: as it was read.
        run: as for `checksum`; empty: an object without a checksum is accepted.

    Raises:
        ValueError: if the checksum is missing or wrong.
    """
    values = {key: value for key, value in content.items() if key != "sha256"}
    if run and "sha256" not in content:
        raise ValueError("damaged: it has no checksum")
    if "sha256" in content and (len(str(content["sha256"])) < 8 or not checksum(values, run).startswith(str(content["sha256"]))):
        raise ValueError("damaged, or from another run: its checksum is wrong")
    return values
