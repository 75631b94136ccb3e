"""Atomic files, checkpoints that are either whole or refused, and seals: checksums that files of other kinds carry inside.

Torch is imported where a checkpoint is, so that what only lists runs or finds one in use need not wait for it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

MAGIC = b"TWOVIEWS-CHECKPOINT-1 "
LAST, PREVIOUS, DAMAGED = "checkpoint", "checkpoint.previous", "checkpoint.damaged"


def write_atomic(path: Path, payload: bytes) -> None:
    """Write a file so that, whenever the power fails, either the old or the new one is there, whole.

    Written beside, flushed to the disk, renamed over, and the folder flushed too.

    Raises:
        OSError: with the megabytes needed and free if the disk is full; the old file stays.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise named(error, path, len(payload)) from None
    _sync_folder(path.parent)


def named(error: OSError, path: Path, size: int) -> OSError:
    """What to raise where a file of a run cannot be written: the error with the file, and the megabytes needed and free.

    Args:
        error: from the system.
        path: the file.
        size: bytes that were to be written.
    """
    if not path.parent.is_dir():
        return OSError(errno.ESTALE, "the folder is gone", str(path.parent))
    stat = os.statvfs(path.parent)
    free = f"{size / 2**20:.1f} MB needed, {stat.f_bavail * stat.f_frsize / 2**20:.0f} MB free"
    return OSError(error.errno, f"{error.strerror}: {free}", str(path))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(content: dict[str, Any], run: str) -> str:
    """The checksum that a JSON object of a run carries under `sha256`: of its values, however they are written, and of whose they are.

    Args:
        content: without its seal.
        run: `runs.identity` of the run that it belongs to.
    """
    return hashlib.sha256(f"{run}\0{json.dumps(content, sort_keys=True)}".encode()).hexdigest()


def opened(content: dict[str, Any], run: str) -> dict[str, Any]:
    """What a sealed object holds, without its seal.

    Args:
        content: as it was read.
        run: as for `seal`; empty: one without a seal is taken as it is, such as those of before there were seals.

    Raises:
        ValueError: if the seal does not hold.
    """
    rest = {key: value for key, value in content.items() if key != "sha256"}
    if run and "sha256" not in content:
        raise ValueError("damaged: it has no checksum")
    if "sha256" in content and (len(str(content["sha256"])) < 8 or not seal(rest, run).startswith(str(content["sha256"]))):
        raise ValueError("damaged, or of another run: its checksum does not hold")
    return rest


def save(folder: Path, state: dict[str, Any]) -> None:
    """Keep `state` as the folder's last checkpoint, and the last one as the previous.

    Args:
        folder: the run folder.
        state: tensors, numbers, texts, and dicts and lists of them.

    Raises:
        OSError: as `write_atomic`; the checkpoints that were there stay.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    last = folder / LAST
    if last.exists():  # a second name for the same file first, so that at no instant `last` is missing
        spare = folder / f"{PREVIOUS}.{os.getpid()}.tmp"
        spare.unlink(missing_ok=True)
        try:
            os.link(last, spare)
        except OSError:  # a file system without second names
            write_atomic(spare, last.read_bytes())
        os.replace(spare, folder / PREVIOUS)
    write_atomic(last, MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def read(path: Path) -> dict[str, Any]:
    """One checkpoint file.

    Raises:
        ValueError: naming the file, if it is not one of ours, is damaged, or holds more than tensors and plain values.
    """
    import torch

    blob = path.read_bytes()
    head, _, payload = blob.partition(b"\n")
    if not head.startswith(MAGIC):
        raise ValueError(f"{path}: not a TwoViews checkpoint (it begins with {blob[:16]!r})")
    if hashlib.sha256(payload).hexdigest().encode() != head[len(MAGIC) :]:
        raise ValueError(f"{path}: damaged, its checksum does not hold ({len(blob)} bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders aloud at what it is given; the line below says it
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except MemoryError:
        raise
    except Exception:  # whatever its reader makes of it; its checksum holds, so this is no damage: somebody made it
        raise ValueError(f"{path}: holds more than tensors and plain values: refused, nothing of it was run") from None


def load(folder: Path, run: str | None = None) -> dict[str, Any]:
    """The folder's last checkpoint, or the previous one with a printed line if the last is damaged (it is kept as `checkpoint.damaged`).

    Args:
        folder: the run folder.
        run: `runs.identity` of it: a checkpoint that says it is another run's is none; None: not asked.

    Raises:
        ValueError: if neither can be read, with both reasons.
    """
    reasons = []
    for name in (LAST, PREVIOUS):
        try:
            state = read(folder / name)
            if run and state.get("run", run) != run:
                raise ValueError(f"{folder / name}: of another run")
        except (ValueError, OSError) as error:
            reasons.append(str(error) if isinstance(error, ValueError) else f"{folder / name}: {error.strerror}")
            continue
        if reasons:
            print(f"{reasons[0]}: going on from {PREVIOUS}")
            if (folder / LAST).exists():  # important: else the next save would put the damaged file in place of the good one
                os.replace(folder / LAST, folder / DAMAGED)
        return state
    raise ValueError("; ".join(reasons))


def clean(folder: Path) -> None:
    """Remove what a killed save left behind. Call it only while holding the folder's lock."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)
