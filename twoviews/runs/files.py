"""Atomic files and checksums: the one way in which anything is written to disk."""

import errno
import functools
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that a crash or power failure leaves either the old file or the new one, complete.

    The parts, one after another, go to a temporary file in the same folder, are flushed to disk, and are renamed over `path`.

    Raises:
        OSError: with the megabytes needed and free if the disk is full; the old file stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path, sum(map(len, parts))) from None
    sync(path.parent)


def disk_error(error: OSError, path: Path, size: int) -> OSError:
    """Return the error to raise where a file cannot be written: with its name, and the megabytes needed and free.

    Args:
        error: from the system.
        path: the file.
        size: bytes that were to be written.
    """
    if not path.parent.is_dir():
        return OSError(errno.ESTALE, "the folder no longer exists", str(path.parent))
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OSError(error.errno, error.strerror, str(path))
    disk = os.statvfs(path.parent)
    space = f"{size / 2**20:.1f} MB needed, {disk.f_bavail * disk.f_frsize / 2**20:.0f} MB free"
    return OSError(error.errno, f"{error.strerror}: {space}", str(path))


def cache_file(name: str) -> Path:
    """Return the path of a file that can be downloaded, decoded or compiled again: in `$XDG_CACHE_HOME/twoviews` or `~/.cache/twoviews`.

    Where that folder neither holds the file nor can be written, it is in `temporary_cache`.
    """
    folder = _user_cache()
    if folder is not None and ((folder / name).is_file() or _can_be_written(folder)):
        return folder / name
    return temporary_cache() / name


def use_caches_that_can_be_written() -> None:
    """Give matplotlib a cache folder where the user has none: it would warn, and make a new one in every process."""
    folder = _user_cache()
    if folder is None or not _can_be_written(folder):
        os.environ.setdefault("MPLCONFIGDIR", str(temporary_cache()))


@functools.cache
def temporary_cache() -> Path:
    """Return a folder for caches among the temporary files, which no other user can write; print once that it is used."""
    path = Path(tempfile.gettempdir()) / f"twoviews-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        safe = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    except OSError:
        safe = False
    if not safe:
        path = Path(tempfile.mkdtemp(prefix="twoviews-"))
    print(f"the cache folder {_user_cache() or '~/.cache'} cannot be written: using {path} (XDG_CACHE_HOME chooses another)", flush=True)
    return path


def _user_cache() -> Path | None:
    try:
        return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")) / "twoviews"  # noqa: PTH111
    except RuntimeError:  # no HOME, and a user number without an entry in the list of users, as in containers
        return None


def _can_be_written(folder: Path) -> bool:
    """Return whether a folder can be written, or made and then written."""
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError:  # inside a folder of another user
        return False
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def remove_temporary(folder: Path) -> None:
    """Remove what an interrupted `write_atomic` left. Call it only while holding the folder's lock."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a folder to disk: what was written to it stays after a power failure."""
    handle = os.open(path, os.O_RDONLY)
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
