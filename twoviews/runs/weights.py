"""Weights files: a backbone as safetensors, with a description of how to build it and of the run that trained it."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn


def to_bytes(tensors: dict[str, Tensor], description: dict[str, str]) -> bytes:
    """Return a safetensors file.

    Args:
        tensors: by name.
        description: backbone, in_channels, image_size, mean, std, recipe, dataset, run.
    """
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    description = {**description, "sha256": _checksum(tensors, description)}
    # important: one metadata key, because safetensors writes several in random order: equal runs would have unequal files
    return save(tensors, metadata={"twoviews": json.dumps(description)})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and its description, which is {} if another program wrote it.

    Raises:
        ValueError: if there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file: a finished run has one")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            description = json.loads((file.metadata() or {}).get("twoviews", "{}"))
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({' '.join(str(error).split())[:100]})") from None
    if "sha256" in description and description["sha256"] != _checksum(tensors, description):
        raise ValueError(f"{path}: damaged: its checksum is wrong")
    return tensors, description


def check(path: Path, run: str) -> dict[str, str]:
    """Return the description of a run's weights file.

    Args:
        path: the file.
        run: `runs.identity` of the run that it must belong to.

    Raises:
        ValueError: if it is missing, damaged, or of another run.
    """
    description = read(path)[1]
    if run and description.get("run") != run:
        raise ValueError(f"{path}: from another run")
    return description


def load_into(module: nn.Module, path: Path) -> None:
    """Load the tensors of a weights file into a module.

    Raises:
        ValueError: as `read`, or if the names or shapes do not fit.
    """
    tensors, _ = read(path)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit this backbone: {' '.join(str(error).split())[:200]}") from None


def _checksum(tensors: dict[str, Tensor], description: dict[str, str]) -> str:
    """Return a SHA-256 over names, shapes, types and values of tensors, and over their description."""
    sha = hashlib.sha256(json.dumps({key: value for key, value in description.items() if key != "sha256"}, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        sha.update(f"{name} {x.dtype} {tuple(x.shape)}\0".encode())
        sha.update(x.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
