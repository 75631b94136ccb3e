"""Compare two runs or two nested states, tensors to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import summary, without_times
from torch import Tensor

from twoviews import runs


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Return where two nested states differ."""
    if isinstance(a, Tensor):
        same = isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [f"{where}: keys"]
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        if type(a) is not type(b) or len(a) != len(b):
            return [f"{where}: length"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a} and {b}"]


def result(path: Path) -> dict[str, Any]:
    """Return what two equal finished runs have in common."""
    return {
        "backbone": (path / runs.BACKBONE).read_bytes(),
        "metrics": without_times(runs.read_metrics(path)),
        "evaluations": without_times(summary(path)["evaluations"]),
    }
