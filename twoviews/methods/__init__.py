"""Methods by name. A new method is one file here, one recipe, and one line in this dict."""

from twoviews.methods.base import Method
from twoviews.methods.moco import MoCo
from twoviews.methods.simclr import SimCLR
from twoviews.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {"simclr": SimCLR, "moco": MoCo, "supervised": Supervised}
