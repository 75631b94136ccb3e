"""TwoViews: train image encoders without labels at CIFAR scale, and evaluate them honestly.

    from twoviews import pretrain, evaluate, embed, Embedder, load_backbone, Views, nt_xent, knn, linear

Each name is imported when it is first used, so that `twoviews --help` does not import torch.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twoviews.api import evaluate, pretrain
    from twoviews.embedder import Embedder, embed
    from twoviews.losses import nt_xent
    from twoviews.pretrained import load_backbone
    from twoviews.probes.knn import knn
    from twoviews.probes.linear import linear
    from twoviews.runs import StepFailed
    from twoviews.views import Views, ViewSpec

_MODULES = {
    "Embedder": "twoviews.embedder",
    "StepFailed": "twoviews.runs",
    "ViewSpec": "twoviews.views",
    "Views": "twoviews.views",
    "embed": "twoviews.embedder",
    "evaluate": "twoviews.api",
    "knn": "twoviews.probes.knn",
    "linear": "twoviews.probes.linear",
    "load_backbone": "twoviews.pretrained",
    "nt_xent": "twoviews.losses",
    "pretrain": "twoviews.api",
}
__all__ = ["Embedder", "StepFailed", "ViewSpec", "Views", "embed", "evaluate", "knn", "linear", "load_backbone", "nt_xent", "pretrain"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("twoviews")
    if name not in _MODULES:
        raise AttributeError(f"module 'twoviews' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
