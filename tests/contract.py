"""Tiny methods for the contract tests: each one with the hyper-parameters of the first recipe card that names it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from twoviews.backbones import ThinResNet
from twoviews.config import CONF
from twoviews.methods import METHODS
from twoviews.methods.base import Method

PARTS = ("backbone", "embed_dim", "num_classes", "num_images")  # what a constructor may name that no card holds
EMBED_DIM, CLASSES, IMAGES = 16, 5, 8


def card_paths(method: str) -> list[Path]:
    """The recipe cards of a method, by name."""
    cards = [path for path in sorted((CONF / "recipe").glob("*.yaml")) if read_card(path).get("method") == method]
    assert cards, f"methods/__init__.py names {method!r}, but no card in conf/recipe says `method: {method}`: write one"
    return cards


def read_card(path: Path) -> dict[str, Any]:
    """Keys and values of a card."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def hyper_parameters(method: str) -> list[str]:
    """What a method's constructor takes from its card."""
    return [name for name in inspect.signature(METHODS[method]).parameters if name not in PARTS]


def tiny(method: str, *, seed: int = 0, **changes: Any) -> Method:
    """A method around a net of a few thousand weights. `changes` replace hyper-parameters of its card."""
    torch.manual_seed(seed)
    backbone = ThinResNet(in_channels=3, widths=(8, EMBED_DIM), blocks=(1, 1), stem_stride=1)
    parts = {"backbone": backbone, "embed_dim": EMBED_DIM, "num_classes": CLASSES, "num_images": 50_000}
    given = {**read_card(card_paths(method)[0]), **parts, **changes}  # the card's `backbone` is a name, ours a module
    return METHODS[method](**{name: given[name] for name in inspect.signature(METHODS[method]).parameters})


def batch(method: str, *, seed: int = 0) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """Views, labels if the method uses them, and progress: the arguments of `forward`.

    As many views as the card says, of 16 pixels, the smaller ones of 8.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = read_card(card_paths(method)[0])["view_sizes"] or (1, 1)
    views = [torch.randn(IMAGES, 3, side, side, generator=generator) for side in (16 if s == max(sizes) else 8 for s in sizes)]
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    return views, labels if METHODS[method].uses_labels else None, torch.tensor(0.25)
