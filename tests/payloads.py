"""Files that run code when they are unpickled without restrictions: each creates a folder, the marker."""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from twoviews.runs import checkpoint

FORMS = (
    *("zip", "legacy", "bare pickle", "bare pickle, protocol 0", "nested", "a function as a value"),
    *("exec", "a state that is set", "a TorchScript archive", "a tar of torch 0.1"),
)


class Act:
    """An object whose pickle is a function call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def make(form: str, marker: Path) -> bytes:
    """Return a file of one of `FORMS`."""
    act: Any = Act(os.mkdir, (str(marker),))
    buffer = io.BytesIO()
    if form == "a tar of torch 0.1":
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name in ("sys_info", "pickle", "tensors", "storages"):
                blob = pickle.dumps(act, protocol=2)
                member = tarfile.TarInfo(name)
                member.size = len(blob)
                tar.addfile(member, io.BytesIO(blob))
        return buffer.getvalue()
    if form.startswith("bare pickle"):
        return pickle.dumps(act, protocol=0 if form.endswith("0") else 2)
    state: Any = {
        "nested": {"method": [{"w": act}]},
        "a function as a value": {"step": os.mkdir},
        "exec": Act(builtins.exec, (f"import os; os.mkdir({str(marker)!r})",)),
        "a state that is set": Act(str, (str(marker),), 0o755, None, None, os.mkdir),
    }.get(form, act)
    torch.save(state, buffer, _use_new_zipfile_serialization=form != "legacy")
    if form == "a TorchScript archive":  # torch recognises one by these members
        with zipfile.ZipFile(buffer, "a") as archive:
            for name in ("archive/constants.pkl", "archive/code/__torch__.py"):
                archive.writestr(name, pickle.dumps(act, protocol=2))
    return buffer.getvalue()


def sealed(payload: bytes) -> bytes:
    """Return a checkpoint file with this payload and the right checksum."""
    return checkpoint.MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def run_freely(form: str, marker: Path) -> None:
    """Read the file without restrictions, call the function in it if there is one, and check that the marker exists."""
    blob = make(form, marker)
    if form == "a tar of torch 0.1":
        with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
            member = tar.extractfile("pickle")
            assert member is not None
            pickle.load(member)
    elif form == "a TorchScript archive":
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            pickle.loads(archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl"))))
    elif form.startswith("bare pickle"):
        pickle.loads(blob)
    else:
        state = torch.load(io.BytesIO(blob), weights_only=False)
        if form == "a function as a value":
            state["step"](marker)
    assert marker.is_dir(), form
