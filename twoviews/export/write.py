"""Write an export: a new folder with the weights, `config.json` and a model card."""

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from twoviews.export import hub
from twoviews.export.card import card
from twoviews.export.formats import FORMATS, hub_lines, path_in_code
from twoviews.export.onnx import check_packages
from twoviews.export.trained import Trained

CONFIG, CARD = "config.json", "README.md"


def check(to: str, folder: Path, push: str | None) -> None:
    """Refuse an export that cannot be written, before any work.

    Args:
        to: a key of `FORMATS`.
        folder: that is to be written.
        push: `user/name` of a repository on the Hugging Face Hub, or None.

    Raises:
        ValueError: if the folder exists or has no parent, or a package is missing.
    """
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"export_dir={folder}: exists already and is not overwritten: remove it, or choose another name")
    if not folder.parent.is_dir():
        raise ValueError(f"export_dir={folder}: {folder.parent} is no folder: create it, or choose another one")
    if not os.access(folder.parent, os.W_OK):
        raise ValueError(f"export_dir={folder}: {folder.parent} may not be written: choose another one")
    if to == "onnx":
        check_packages()
    if push is not None:
        hub.check(push)


def write(trained: Trained, to: str, folder: Path, push: str | None = None) -> tuple[str, str]:
    """Write a backbone for another library, and return the lines that load it there, and the packages that they need.

    Args:
        trained: to write.
        to: a key of `FORMATS`.
        folder: that is created; it appears complete or not at all.
        push: `user/name` of a repository on the Hugging Face Hub that receives the folder; None: nothing leaves this machine.

    Raises:
        ValueError: as `check`, or if the library has no such backbone.
        RuntimeError: if the exported model computes other features.
    """
    check(to, folder, push)
    form = FORMATS[to]
    lines, in_card, needs = form.lines(trained, path_in_code(folder / form.file)), form.lines(trained, form.file), form.needs
    if push:
        lines, needs = hub_lines(trained, to, push)
        in_card = lines
    content = form.content(trained)
    temporary = folder.parent / f".new-{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        (temporary / form.file).write_bytes(content)
        described = description(trained, to) | {"file": form.file, "sha256": hashlib.sha256(content).hexdigest()}
        (temporary / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        (temporary / CARD).write_text(card(trained, in_card, needs), encoding="utf-8")
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if push:
        hub.push(folder, push)
    return lines, needs


def description(trained: Trained, to: str) -> dict[str, Any]:
    """Return `config.json`: how to build the backbone and what its input is; timm's keys where timm builds the same network.

    Args:
        trained: that is described.
        to: a key of `FORMATS`.
    """
    mean, std = trained.numbers("mean"), trained.numbers("std")
    described: dict[str, Any] = {
        "backbone": trained.backbone,
        "num_features": trained.embed_dim,
        "stem": "imagenet" if trained.imagenet_stem else "small: 3x3 convolution, no max-pooling",
        "format": to,
        "input_values": "from 0 to 1" if to == "onnx" else "from 0 to 1, minus mean, divided by std",
        "input_size": [trained.channels, trained.size, trained.size],
        "mean": mean,
        "std": std,
    }
    if trained.imagenet_stem:
        timm = {"input_size": described["input_size"], "mean": mean, "std": std, "interpolation": "bilinear", "num_classes": 0}
        described |= {"architecture": trained.backbone, "num_classes": 0}
        described["pretrained_cfg"] = timm | {"first_conv": "conv1", "classifier": "fc"}
    return described | {"recipe": trained.about.get("recipe"), "dataset": trained.about.get("dataset"), "run": trained.name}
