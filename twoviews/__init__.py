"""TwoViews: train image encoders without labels at CIFAR scale, and evaluate them honestly.

    from twoviews import Views, nt_xent, knn, linear, load_backbone, pretrain

Each name is imported when it is first used, so that `twoviews --help` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twoviews.build import load_backbone
    from twoviews.commands.pretrain import pretrain
    from twoviews.losses import nt_xent
    from twoviews.probes.knn import knn
    from twoviews.probes.linear import linear
    from twoviews.views import Views, ViewSpec

__all__ = ["ViewSpec", "Views", "knn", "linear", "load_backbone", "nt_xent", "pretrain"]

_MODULES = {
    "ViewSpec": "twoviews.views",
    "Views": "twoviews.views",
    "knn": "twoviews.probes.knn",
    "linear": "twoviews.probes.linear",
    "load_backbone": "twoviews.build",
    "nt_xent": "twoviews.losses",
    "pretrain": "twoviews.commands.pretrain",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'twoviews' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
