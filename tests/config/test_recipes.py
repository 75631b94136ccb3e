"""Recipes: their stored values, their files, and what the reference projects and papers published about them.

Numbers in `PUBLISHED` are those of the published tables, not those of the recipe files.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from view_helpers import boxes, numbers, pictures, spec_of, torchvision_crop, torchvision_jitter

from twoviews import build, config, data, inputs, optim
from twoviews.config import Config
from twoviews.config.schema import CONFIG_DIR, RULES
from twoviews.data.arrays import Arrays
from twoviews.data.dataset import load, steps_per_epoch
from twoviews.models import resnet
from twoviews.views.spec import COLUMN

N = 50_000  # training images of CIFAR-10
STORED = json.loads((Path(__file__).parent.parent / "stored/recipes.json").read_text())


@dataclass(frozen=True)
class Published:
    """What one project or paper published about its training."""

    batch: int
    steps: int  # per epoch
    rates: tuple[float, float, float]  # of the first step, of the middle one and of the last
    decay: float
    nesterov: bool
    temperature: float
    hidden: int
    crop: tuple[float, float]
    grayscale: float
    backbone: str = "resnet18"
    epochs: int = 1000
    interpolation: str = "bilinear"
    normalize: bool = False
    out: int = 128
    head_norms: int = 0
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    decays_norms: bool = True
    one_forward: bool = True
    stem: str = "torch"  # these projects replace torchvision's first convolution and leave it as PyTorch starts it


PUBLISHED = {
    # README of p3i0t/SimCLR-CIFAR10: 0.6 = 0.3 x batch / 256, annealed to 0.001; decay 1e-6; temperature 0.5
    "simclr": Published(512, 97, (0.6, 0.3005, 0.001), 1e-6, True, 0.5, 2048, (0.08, 1.0), 0.2),
    # moco_config.yml of the same project, before it was removed
    "moco": Published(256, 195, (0.03, 0.0155, 0.001), 1e-4, True, 0.2, 512, (0.08, 1.0), 0.2),
    # README of dkobak/simclr-cifar10: 0.03 x batch / 256, cosine per epoch, decay 5e-4, projector 1024 to 128
    "simclr_cifar10": Published(
        1024, 49, (0.12, 0.06, 0.06 * (1 + math.cos(math.pi * 0.999))), 5e-4, False, 0.5, 1024, (0.2, 1.0), 0.2, one_forward=False
    ),
    "simclr_cifar10_v2": Published(
        *(512, 98, (0.06, 0.03, 0.03 * (1 + math.cos(math.pi * 0.999))), 5e-4, False, 0.5, 1024, (0.2, 1.0), 0.1), one_forward=False
    ),
    # SimCLR, appendix B.9: 1.0 x batch / 256 after ten epochs of warm-up; norms and biases neither decayed nor adapted
    "simclr_lars": Published(
        *(1024, 48, (4.0 / 480, 2.0 * (1 + math.cos(math.pi * (24_000 - 480) / 47_520)), 0.0), 1e-6, False, 0.5, 2048, (0.08, 1.0), 0.2),
        **{"backbone": "resnet50", "interpolation": "bicubic", "head_norms": 2, "optimizer": optim.LARS},
        **{"decays_norms": False, "stem": "he"},
    ),
    # W-MSE: 3e-3 after 500 steps, a fifth for the last 50 epochs, a fifth of that for the last 25
    "simclr_wmse": Published(
        *(512, 97, (0.003 / 500, 0.003, 0.003 / 25), 1e-6, False, 0.5, 1024, (0.2, 1.0), 0.1),
        **{"interpolation": "bicubic", "normalize": True, "out": 64, "head_norms": 2, "optimizer": torch.optim.Adam, "one_forward": False},
    ),
    # MoCo's CIFAR demo: 0.06 and 5e-4 on the sum of both halves, so 0.12 and 2.5e-4 on their mean; one linear layer; epochs from 1 to 800
    "moco_cifar_demo": Published(
        *(512, 97, (0.06 * (1 + math.cos(math.pi / 800)), 0.06 * (1 + math.cos(math.pi * 401 / 800)), 0.0), 2.5e-4, False),
        *(0.1, 0, (0.08, 1.0), 0.2),
        **{"epochs": 800, "normalize": True},
    ),
}
every_published = pytest.mark.parametrize("name", PUBLISHED)


@cache
def recipe(name: str) -> Config:
    return config.load("pretrain", [f"recipe={name}"])


@cache
def method(name: str) -> torch.nn.Module:
    """Return the recipe's method around a small backbone."""
    return build.build_method(Config({**recipe(name), "backbone": "thin16"}), _cifar())


@pytest.mark.parametrize("name", RULES["recipe"].choices)
def test_a_recipe_has_the_values_that_it_had(name: str) -> None:
    """Unless a recipe is changed on purpose; then stored/recipes.json changes in the same commit."""
    assert dict(recipe(name)) == STORED.get(name), "python tests/test_stored_losses.py stores new values"


def test_every_stored_recipe_still_exists() -> None:
    assert set(STORED) == set(RULES["recipe"].choices)


@pytest.mark.parametrize("name", RULES["recipe"].choices)
def test_a_recipe_file_sets_only_what_defines_it_and_names_its_sources(name: str) -> None:
    text = (CONFIG_DIR / f"recipes/{name}.yaml").read_text(encoding="utf-8")
    own = yaml.safe_load(text)
    assert own["recipe"] == name
    base = (own.pop("defaults", None) or ["base"])[0]
    assert all(RULES[key].accepts(value) for key, value in own.items())
    below = STORED[base] if base in STORED else yaml.safe_load((CONFIG_DIR / "base.yaml").read_text(encoding="utf-8"))
    repeated = {key for key, value in own.items() if below[key] == value} - {"batch_size", "optimizer", "base_learning_rate"}
    assert repeated == set(), "values that the file would have without these lines"
    comment = "\n".join(re.findall(r"^#(.*)$", text, flags=re.M))
    for part in (f"recipe={name}", "Source:", "Published:", "Measured:"):
        assert part in comment, part


@every_published
def test_the_rate_of_the_first_the_middle_and_the_last_step_is_the_published_one(name: str) -> None:
    cfg, row = recipe(name), PUBLISHED[name]
    per_epoch = steps_per_epoch(N, cfg.batch_size, drop_last=cfg.drop_last)
    assert (cfg.batch_size, per_epoch, cfg.epochs, cfg.backbone) == (row.batch, row.steps, row.epochs, row.backbone)
    steps = per_epoch * cfg.epochs
    trace = [
        optim.learning_rate(
            step,
            steps=steps,
            steps_per_epoch=per_epoch,
            peak=optim.resolve_learning_rate(cfg.learning_rate, cfg.base_learning_rate, cfg.batch_size),
            floor=cfg.min_learning_rate,
            warmup_epochs=cfg.warmup_epochs,
            schedule=cfg.schedule,
            unit=cfg.schedule_unit,
        )
        for step in (0, steps // 2, steps - 1)
    ]
    assert trace == pytest.approx(row.rates, rel=1e-6, abs=1e-8)


@every_published
def test_the_optimiser_is_the_published_one(name: str) -> None:
    cfg, row = recipe(name), PUBLISHED[name]
    optimizer = optim.build(
        method(name).param_groups(),
        optimizer=cfg.optimizer,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        weight_decay=cfg.weight_decay,
        decay_norms=cfg.decay_norms,
    )
    assert type(optimizer) is row.optimizer
    assert len(optimizer.param_groups) == 1 + (not row.decays_norms), "most of these recipes decay norms and biases as well"
    group, *rest = optimizer.param_groups
    assert (group.get("momentum", group.get("betas", [0])[0]), group.get("nesterov", False)) == (0.9, row.nesterov)
    assert group["weight_decay"] == row.decay
    assert [(g["weight_decay"], g["adapt"]) for g in rest] == [(0.0, False)] * len(rest)


@pytest.mark.parametrize(
    ("backbone", "weights", "maps"),
    # torchvision's counts without the classifier, with a 3x3 stem of 3 channels in place of the 7x7 one
    [
        ("resnet18", 11_689_512 - 513_000 - 9408 + 1728, [64, 128, 256, 512]),
        ("resnet34", 21_797_672 - 513_000 - 9408 + 1728, [64, 128, 256, 512]),
        ("resnet50", 25_557_032 - 2_049_000 - 9408 + 1728, [256, 512, 1024, 2048]),
    ],
)
def test_the_backbones_have_the_published_weights_and_feature_maps(backbone: str, weights: int, maps: list[int]) -> None:
    network, embed_dim = resnet.build_backbone(backbone, in_channels=3, image_size=32)
    assert sum(p.numel() for p in network.parameters()) == weights
    assert embed_dim == maps[-1]
    seen: list[tuple[int, ...]] = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(stage).register_forward_hook(lambda module, inputs, out: seen.append(tuple(out.shape[1:])))
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    assert seen == [(width, side, side) for width, side in zip(maps, (32, 16, 8, 4), strict=True)]


@every_published
def test_the_first_convolution_starts_as_in_the_published_code(name: str) -> None:
    weight = build.build_method(Config({**recipe(name), "backbone": "resnet18"}), _cifar()).backbone.conv1.weight
    assert weight.shape == (64, 3, 3, 3)
    uniform, normal = 1 / math.sqrt(3 * 9), math.sqrt(2 / (64 * 9))  # the bound of PyTorch's default, and the deviation of He's fan-out
    assert weight.std().item() == pytest.approx({"torch": uniform / math.sqrt(3), "he": normal}[PUBLISHED[name].stem], rel=0.05)
    inside = (weight.abs() < 0.3 * weight.abs().max()).double().mean().item()  # a share of 0.3 if uniform, 0.8 if normal
    assert (inside < 0.5) == (PUBLISHED[name].stem == "torch")


@every_published
@pytest.mark.parametrize(("backbone", "embed_dim"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_the_projector_is_the_published_one(name: str, backbone: str, embed_dim: int) -> None:
    cfg, row = Config({**recipe(name), "backbone": backbone}), PUBLISHED[name]
    hidden = row.hidden
    if name == "moco" and backbone == "resnet50":  # MoCo v2's projector is as wide as h: the recipe says what to type
        hidden = 2048
        cfg["hidden_dims"] = [hidden]
    with torch.device("meta"):  # shapes only
        projector = build.build_method(cfg, _cifar()).projector
    linear = [tuple(m.weight.shape) for m in projector.modules() if isinstance(m, torch.nn.Linear)]
    assert linear == ([(hidden, embed_dim), (row.out, hidden)] if hidden else [(row.out, embed_dim)])
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in projector.modules()) == row.head_norms


@every_published
def test_the_views_equal_torchvisions_with_the_published_numbers(name: str) -> None:
    row = PUBLISHED[name]
    assert recipe(name).normalize == row.normalize
    views = inputs.build_views(Config({**recipe(name), "normalize": False}), _cifar())
    assert views.sizes == (32, 32)
    assert views.specs[0] == views.specs[1]
    assert views.specs[0].crop_scale == list(row.crop)
    assert views.specs[0].crop_ratio == pytest.approx((3 / 4, 4 / 3))
    images, u = pictures(64, (3, 32, 32)), numbers(64)
    ours, _ = views(images, torch.cat([u, u]))
    theirs = spec_of(32, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    for image, numbers_of_one, box, view in zip(images, u[0], boxes(views, u[0]), ours, strict=True):
        x = torchvision_crop(image.double() / 255, box, bool(numbers_of_one[COLUMN["flip"]] < 0.5), 32, row.interpolation)
        x = torchvision_jitter(x, numbers_of_one, theirs) if numbers_of_one[COLUMN["jitter"]] < 0.8 else x
        gray = numbers_of_one[COLUMN["grayscale"]] < row.grayscale
        x = torch.tensor([0.2989, 0.587, 0.114], dtype=x.dtype).view(3, 1, 1).mul(x).sum(0, keepdim=True).expand(3, -1, -1) if gray else x
        torch.testing.assert_close(view, x, rtol=0, atol=1e-4)


@every_published
def test_the_method_has_the_published_numbers(name: str) -> None:
    row, built = PUBLISHED[name], method(name)
    assert built.temperature == row.temperature
    if name == "moco":
        assert (len(built.queue.keys), built.ema_decay, built.symmetric, built.bn_splits) == (8192, 0.999, False, 8)
    elif name == "moco_cifar_demo":
        assert (len(built.queue.keys), built.ema_decay, built.symmetric, built.bn_splits) == (4096, 0.99, True, 8)
    else:
        assert built.one_forward == row.one_forward, "p3i0t has one forward for both views, dkobak one for each"


@cache
def _cifar() -> data.dataset.Dataset:
    """Return a data set with the shape and size of CIFAR-10 and blank images."""
    labels = np.arange(N) % 10
    blank = np.broadcast_to(np.zeros((1, 3, 1, 1), np.uint8), (N, 3, 32, 32))
    arrays = Arrays("CIFAR-10", blank, labels, blank[:10], labels[:10], tuple("abcdefghij"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.READERS, "cifar10", lambda data_dir: arrays)
        return load("cifar10", None)
