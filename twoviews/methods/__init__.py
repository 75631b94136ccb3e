"""Methods by name. A new method is one file here, one recipe, and one line in this dict."""

import inspect

from twoviews.methods.barlow_twins import BarlowTwins
from twoviews.methods.base import Method
from twoviews.methods.byol import BYOL
from twoviews.methods.dcl import DCL
from twoviews.methods.dino import DINO
from twoviews.methods.moco import MoCo
from twoviews.methods.moco_v3 import MoCoV3
from twoviews.methods.nnclr import NNCLR
from twoviews.methods.simclr import SimCLR
from twoviews.methods.simsiam import SimSiam
from twoviews.methods.supcon import SupCon
from twoviews.methods.supervised import Supervised
from twoviews.methods.swav import SwAV
from twoviews.methods.vicreg import VICReg
from twoviews.methods.wmse import WMSE

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "dcl": DCL,
    "moco": MoCo,
    "moco_v3": MoCoV3,
    "nnclr": NNCLR,
    "byol": BYOL,
    "simsiam": SimSiam,
    "swav": SwAV,
    "dino": DINO,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "wmse": WMSE,
    "supcon": SupCon,
    "supervised": Supervised,
}


def arguments(method: type[Method]) -> list[str]:
    """Return the names of a constructor's arguments. `**rest` stands for those of the base class."""
    names: list[str] = []
    for constructor in (vars(cls)["__init__"] for cls in method.__mro__ if "__init__" in vars(cls)):
        found = inspect.signature(constructor).parameters.values()
        names += [p.name for p in found if p.kind is p.KEYWORD_ONLY]
        if all(p.kind is not p.VAR_KEYWORD for p in found):
            break
    return names
