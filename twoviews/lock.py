"""One process at a time writes a run folder: the kernel's lock on a file in it, which a crash frees."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from pathlib import Path
from typing import IO

from twoviews import checkpoint

LOCK = ".lock"


def take(path: Path) -> IO[str]:
    """Lock a run folder until the file that is returned is closed; where the file system has no locks that is said.

    Raises:
        ValueError: if another process holds it, with which.
        OSError: with the megabytes needed and free, if its name cannot be written there.
    """
    file = open(path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - held for as long as the run is
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # held, or only looked at by a command that is about to be refused
            time.sleep(0.05)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            raise _held(path, file) from None
    except OSError as error:
        print(f"{path}: its file system has no locks ({error.strerror}): see to it that one process at a time writes there")
    holder = f"process {os.getpid()} on {platform.node()}"
    try:
        file.truncate(0)
        file.write(holder)
        file.flush()
    except OSError as error:
        raise checkpoint.named(error, path / LOCK, len(holder)) from None
    return file


def look(path: Path) -> None:
    """Refuse a run folder that another process holds, without taking it: what a command can do before anything slow is imported.

    Raises:
        ValueError: as `take`.
    """
    if not (path / LOCK).is_file():
        return
    with open(path / LOCK, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(path, file) from None
        except OSError:  # no locks there: `take` says so
            pass


def _held(path: Path, file: IO[str]) -> ValueError:
    file.seek(0)
    return ValueError(f"{path}: in use by {file.read().strip() or 'another process'}: wait for it, or start a run of your own")
