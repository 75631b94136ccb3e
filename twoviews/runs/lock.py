"""One process at a time writes a run folder: a kernel lock on a file in it, which a crash releases."""

import os
import platform
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from twoviews.runs.files import disk_error, write_atomic

LOCK, HOLDER = ".lock", ".holder"
PATIENCE = 0.2  # seconds; a command that only checks the lock holds it for less


def lock(path: Path) -> BaseFileLock:
    """Lock a run folder; call `release()` on the result.

    Raises:
        ValueError: if another process holds the lock, with that process.
        OSError: with the megabytes needed and free, if the folder cannot be written.
    """
    held, problem = _acquire(path)
    if problem:
        print(f"{path}: this file system has no locks ({problem}): make sure that one process at a time writes there")
    try:
        write_atomic(path / HOLDER, f"process {os.getpid()} on {platform.node()}".encode())
    except OSError:
        held.release()
        raise
    return held


def check_unlocked(path: Path) -> None:
    """Refuse a run folder that another process holds: what a command does before it imports anything slow.

    Raises:
        ValueError: as `lock`.
    """
    if (path / LOCK).is_file() and os.access(path, os.W_OK):
        _acquire(path)[0].release()


def _acquire(path: Path) -> tuple[BaseFileLock, str | None]:
    """Return the lock, and why it could not be acquired if the file system has no locks."""
    # important: a soft lock, filelock's fallback, would outlive a crash
    held: BaseFileLock = FileLock(path / LOCK, timeout=PATIENCE, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout:
        holder = (path / HOLDER).read_text(encoding="utf-8") if (path / HOLDER).is_file() else "another process"
        raise ValueError(f"{path}: in use by {holder}: wait for it, or start a separate run") from None
    except OSError as error:
        if error.filename is not None:  # the file could not be opened; errors of the kernel's lock name no file
            raise disk_error(error, path / LOCK, 0) from None
        return held, error.strerror
    return held, None
