"""Tiny methods for the contract tests: each one with the hyper-parameters of the first recipe that uses it."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
import yaml
from torch import Tensor

from twoviews import config
from twoviews.config.schema import CONFIG_DIR
from twoviews.methods import METHODS
from twoviews.methods.base import Method
from twoviews.models.resnet import ThinResNet

PARTS = ("backbone", "embed_dim", "num_classes", "num_images")  # arguments of a constructor that no recipe sets
EMBED_DIM, CLASSES, IMAGES = 16, 5, 8


def recipes(method: str) -> list[str]:
    """Return the names of the recipes that use a method, sorted."""
    names = [path.stem for path in sorted((CONFIG_DIR / "recipes").glob("*.yaml")) if _method_of(path.stem) == method]
    assert names, f"methods/__init__.py names {method!r}, but no recipe in config/recipes has `method: {method}`: write one"
    return names


@cache
def _method_of(recipe: str) -> str:
    """Return the method of a recipe, which may state it or inherit it: ten times faster than composing the recipe."""
    stated = yaml.safe_load((CONFIG_DIR / f"recipes/{recipe}.yaml").read_text(encoding="utf-8"))
    return stated["method"] if "method" in stated else _method_of(stated["defaults"][0])


@cache
def settings(recipe: str) -> config.Config:
    """Return the resolved configuration of a recipe. Read it, never write it."""
    return config.load("pretrain", [f"recipe={recipe}"])


def hyper_parameters(method: str) -> list[str]:
    """Return the keys that a method's constructor takes from its recipe."""
    return [name for name in inspect.signature(METHODS[method]).parameters if name not in PARTS]


def tiny(method: str, *, seed: int = 0, **changes: Any) -> Method:
    """Return a method around a network of a few thousand weights. `changes` replace hyper-parameters of its recipe."""
    torch.manual_seed(seed)
    backbone = ThinResNet(in_channels=3, widths=(8, EMBED_DIM), blocks=(1, 1), stem_stride=1)
    parts = {"backbone": backbone, "embed_dim": EMBED_DIM, "num_classes": CLASSES, "num_images": 50_000}
    given = {**settings(recipes(method)[0]), **parts, **changes}  # the recipe's `backbone` is a name, ours a module
    return METHODS[method](**{name: given[name] for name in inspect.signature(METHODS[method]).parameters})


def batch(method: str, *, seed: int = 0) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """Return the arguments of `forward`: views, labels if the method uses them, and progress.

    There are as many views as in the recipe, of 16 pixels, the smaller ones of 8.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = settings(recipes(method)[0])["view_sizes"] or (1, 1)
    views = [torch.randn(IMAGES, 3, side, side, generator=generator) for side in (16 if s == max(sizes) else 8 for s in sizes)]
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    return views, labels if METHODS[method].uses_labels else None, torch.tensor(0.25)
