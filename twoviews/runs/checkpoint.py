"""Checkpoints: two per run, checksummed, and either complete or refused."""

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from twoviews.runs.files import write_atomic
from twoviews.runs.folder import DAMAGED, LAST, PREVIOUS

MAGIC = b"TWOVIEWS-CHECKPOINT-1 "


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as the folder's last checkpoint; the former last one becomes the previous one.

    Args:
        folder: the run folder.
        state: tensors, numbers, strings, and dicts and lists of them.

    Raises:
        OSError: as `write_atomic`; the existing checkpoints stay.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    last = folder / LAST
    if last.exists():  # a hard link first, so that `last` exists at every instant
        link = folder / f"{PREVIOUS}.{os.getpid()}.tmp"
        link.unlink(missing_ok=True)
        try:
            os.link(last, link)
        except OSError:  # a file system without hard links
            write_atomic(link, last.read_bytes())
        os.replace(link, folder / PREVIOUS)
        link.unlink(missing_ok=True)  # after a save that was killed here, both names are one file, and rename does nothing
    write_atomic(last, MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def read(path: Path) -> dict[str, Any]:
    """Return the content of one checkpoint file.

    Raises:
        ValueError: with the file's name, if it is not a TwoViews checkpoint, is damaged, or holds more than tensors and
            plain values.
    """
    blob = path.read_bytes()
    head, _, payload = blob.partition(b"\n")
    if not head.startswith(MAGIC):
        raise ValueError(f"{path}: not a TwoViews checkpoint (it begins with {blob[:16]!r})")
    if hashlib.sha256(payload).hexdigest().encode() != head[len(MAGIC) :]:
        raise ValueError(f"{path}: damaged: its checksum is wrong ({len(blob)} bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about untrusted input; the error below is enough
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except MemoryError:
        raise
    except Exception:  # torch's reader raises many types; the checksum is right, so somebody made this file on purpose
        raise ValueError(f"{path}: refused: it holds more than tensors and plain values; none of it was run") from None


def load(folder: Path, run: str | None = None) -> dict[str, Any]:
    """Return the folder's last checkpoint, or the previous one if the last is damaged.

    In the second case a line is printed, and the damaged file is kept as `checkpoint.damaged`.

    Args:
        folder: the run folder.
        run: `folder.identity` of the run; a checkpoint of another run is refused. None: not checked.

    Raises:
        ValueError: if neither can be read, with both reasons.
    """
    reasons = []
    for name in (LAST, PREVIOUS):
        try:
            state = read(folder / name)
            if run and state.get("run", run) != run:
                raise ValueError(f"{folder / name}: from another run")
        except (ValueError, OSError) as error:
            reasons.append(str(error) if isinstance(error, ValueError) else f"{folder / name}: {error.strerror}")
            continue
        if reasons:
            print(f"{reasons[0]}: continuing from {PREVIOUS}")
            if (folder / LAST).exists():  # important: the next save would replace the good file by the damaged one
                os.replace(folder / LAST, folder / DAMAGED)
        return state
    raise ValueError("; ".join(reasons))
