"""Tiny methods for the contract tests: each one with the hyper-parameters of the first recipe that uses it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import yaml
from torch import Tensor

from twoviews import config
from twoviews.config.schema import CONFIG_DIR
from twoviews.methods import METHODS, arguments
from twoviews.methods.base import Method
from twoviews.models.resnet import ThinResNet

PARTS = ("backbone", "embed_dim", "num_classes", "num_images", "num_views", "num_full_views")  # arguments that no recipe sets
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
    return [name for name in arguments(METHODS[method]) if name not in PARTS]


def sizes(method: str) -> list[int]:
    """Return the sizes of the views of a method's first recipe: 16 pixels, the smaller ones 8."""
    cfg = settings(recipes(method)[0])
    found = cfg.view_sizes or [1] * len(config.view_differences(cfg))
    return [16 if size == max(found) else 8 for size in found]


def small(method: str, *, batch: int = IMAGES) -> dict[str, Any]:
    """Return hyper-parameters that make the heads of a method small enough for a test, in batches of so many images."""
    values = {"hidden_dims": [24], "predictor_dims": [12], "prototypes": 20, "out_dim": 12}
    if method == "wmse":  # a sub-batch needs more images than dimensions
        values |= {"out_dim": batch // 2, "whitening_size": batch}
    cfg = settings(recipes(method)[0])
    return {key: value for key, value in values.items() if cfg.get(key)}


def tiny(method: str, *, seed: int = 0, **changes: Any) -> Method:
    """Return a method around a network of a few thousand weights. `changes` replace hyper-parameters of its recipe."""
    torch.manual_seed(seed)
    backbone = ThinResNet(in_channels=3, widths=(8, EMBED_DIM), blocks=(1, 1), stem_stride=1)
    views = {"num_views": len(sizes(method)), "num_full_views": sizes(method).count(16)}
    parts = {"backbone": backbone, "embed_dim": EMBED_DIM, "num_classes": CLASSES, "num_images": 50_000, **views}
    given = {**settings(recipes(method)[0]), **parts, **small(method), **changes}  # the recipe's `backbone` is a name, ours a module
    return METHODS[method](**{name: given[name] for name in arguments(METHODS[method])})


def batch(method: str, *, seed: int = 0) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """Return the arguments of `forward`: views, labels if the method uses them, and progress.

    There are as many views as in the recipe, of 16 pixels, the smaller ones of 8.
    """
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(IMAGES, 3, side, side, generator=generator) for side in sizes(method)]
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    return views, labels if METHODS[method].uses_labels else None, torch.tensor(0.25)
