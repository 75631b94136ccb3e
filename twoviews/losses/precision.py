"""Every loss is computed in float32 or better, even under autocast: bfloat16 has only 8 significant bits."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that switches autocast off. The meta device, on which `profiling.py` counts operations, has no autocast."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def exact(x: Tensor) -> Tensor:
    """Return x in float32, or as it is if it is float64."""
    return x if x.dtype == torch.float64 else x.float()
