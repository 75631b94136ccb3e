"""Methods by name. Adding one is one file here, one recipe card, and one line in this dict."""

from __future__ import annotations

from twoviews.methods.base import Method
from twoviews.methods.moco import MoCo
from twoviews.methods.simclr import SimCLR
from twoviews.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "supervised": Supervised,
}
