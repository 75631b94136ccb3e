"""The seeds' cards against what the seeds published: rates, views, nets, losses. Numbers here are the tables', not the cards'."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_views import boxes, numbers, pictures, torchvision_crop, torchvision_jitter

from twoviews import backbones, build, config, data, optim
from twoviews.config import Config
from twoviews.data.arrays import Arrays
from twoviews.data.dataset import load, steps_per_epoch
from twoviews.views import COLUMN

N = 50_000  # training images of CIFAR-10


@dataclass(frozen=True)
class Published:
    """One row of a seed's tables."""

    batch: int
    steps: int  # in an epoch
    rates: tuple[float, float, float]  # of the first step, of the middle one and of the last
    decay: float
    nesterov: bool
    temperature: float
    hidden: int
    crop: tuple[float, float]
    grayscale: float


ROWS = {
    # README: 0.6 = 0.3 x batch / 256, annealed to 0.001; decay 1e-6; temperature 0.5
    "simclr": Published(512, 97, (0.6, 0.3005, 0.001), 1e-6, True, 0.5, 2048, (0.08, 1.0), 0.2),
    # the deleted moco_config.yml
    "moco": Published(256, 195, (0.03, 0.0155, 0.001), 1e-4, True, 0.2, 512, (0.08, 1.0), 0.2),
    # README: 0.03 x batch / 256, cosine an epoch, decay 5e-4, projector 1024 to 128
    "simclr_cifar10": Published(1024, 49, (0.12, 0.06, 0.06 * (1 + math.cos(math.pi * 0.999))), 5e-4, False, 0.5, 1024, (0.2, 1.0), 0.2),
    "simclr_cifar10_v2": Published(512, 98, (0.06, 0.03, 0.03 * (1 + math.cos(math.pi * 0.999))), 5e-4, False, 0.5, 1024, (0.2, 1.0), 0.1),
}
every_row = pytest.mark.parametrize("name", ROWS)


def card(name: str) -> Config:
    return config.load("pretrain", [f"recipe={name}"])


@every_row
def test_the_rate_is_the_tables_at_the_first_the_middle_and_the_last_step(name: str) -> None:
    cfg, row = card(name), ROWS[name]
    per_epoch = steps_per_epoch(N, cfg.batch_size, drop_last=cfg.drop_last)
    assert (cfg.batch_size, per_epoch, cfg.epochs) == (row.batch, row.steps, 1000)
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
    assert trace == pytest.approx(row.rates, rel=1e-6, abs=1e-9)


@every_row
def test_the_optimiser_is_the_tables(name: str) -> None:
    cfg, row = card(name), ROWS[name]
    method = build.build_method(Config({**cfg, "backbone": "thin16"}), _cifar())
    optimizer = optim.build(
        method.param_groups(),
        optimizer=cfg.optimizer,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        weight_decay=cfg.weight_decay,
        decay_norms=cfg.decay_norms,
    )
    assert type(optimizer) is torch.optim.SGD
    assert len(optimizer.param_groups) == 1, "these recipes decay norms and biases as well"
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, row.nesterov, row.decay)


@every_row
@pytest.mark.parametrize(
    ("backbone", "weights", "maps"),
    # torchvision's counts, less the classifier, with a 3x3 stem of 3 channels in place of the 7x7 one
    [
        ("resnet18", 11_689_512 - 513_000 - 9408 + 1728, [64, 128, 256, 512]),
        ("resnet34", 21_797_672 - 513_000 - 9408 + 1728, [64, 128, 256, 512]),
        ("resnet50", 25_557_032 - 2_049_000 - 9408 + 1728, [256, 512, 1024, 2048]),
    ],
)
def test_the_net_has_the_published_weights_and_maps(name: str, backbone: str, weights: int, maps: list[int]) -> None:
    cfg, row = Config({**card(name), "backbone": backbone}), ROWS[name]
    hidden = row.hidden
    if name == "moco" and backbone == "resnet50":  # MoCo v2's head is as wide as h: its card says what to type
        hidden = 2048
        cfg["hidden_dims"] = [hidden]
    net, embed_dim = backbones.build(backbone, in_channels=3, image_size=32)
    assert sum(p.numel() for p in net.parameters()) == weights
    seen: list[tuple[int, ...]] = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        net.get_submodule(stage).register_forward_hook(lambda module, inputs, out: seen.append(tuple(out.shape[1:])))
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32))
    assert seen == [(width, side, side) for width, side in zip(maps, (32, 16, 8, 4), strict=True)]
    shapes = [tuple(p.shape) for key, p in build.build_method(cfg, _cifar()).named_parameters() if key.startswith("projector.")]
    assert shapes == [(hidden, embed_dim), (hidden,), (128, hidden), (128,)], "two linear layers, no BatchNorm"


@every_row
def test_the_views_equal_torchvisions_with_the_tables_numbers(name: str) -> None:
    row = ROWS[name]
    views = build.build_views(card(name), _cifar())
    assert views.view_sizes == (32, 32)
    assert views.crop_scale == row.crop
    assert views.crop_ratio == pytest.approx((3 / 4, 4 / 3))
    images, u = pictures(64, (3, 32, 32)), numbers(64)
    ours, _ = views(images, torch.cat([u, u]))
    theirs = SimpleNamespace(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    for image, numbers_of_one, box, view in zip(images, u[0], boxes(views, u[0]), ours, strict=True):
        x = torchvision_crop(image.double() / 255, box, bool(numbers_of_one[COLUMN["flip"]] < 0.5), 32)
        x = torchvision_jitter(x, numbers_of_one, theirs) if numbers_of_one[COLUMN["jitter"]] < 0.8 else x  # type: ignore[arg-type]
        gray = numbers_of_one[COLUMN["grayscale"]] < row.grayscale
        x = torch.tensor([0.2989, 0.587, 0.114], dtype=x.dtype).view(3, 1, 1).mul(x).sum(0, keepdim=True).expand(3, -1, -1) if gray else x
        torch.testing.assert_close(view, x, rtol=0, atol=1e-4)


@every_row
def test_the_method_has_the_tables_numbers(name: str) -> None:
    cfg, row = card(name), ROWS[name]
    method = build.build_method(Config({**cfg, "backbone": "thin16"}), _cifar())
    assert method.temperature == row.temperature
    if name == "moco":
        assert (len(method.queue.keys), method.ema_decay, method.symmetric) == (8192, 0.999, False)
    else:
        assert method.one_forward == (name == "simclr"), "the first seed has one forward for both views, the second one each"


@cache
def _cifar() -> data.dataset.Dataset:
    """CIFAR-10 in shape and number alone."""
    labels = np.arange(N) % 10
    blank = np.broadcast_to(np.zeros((1, 3, 1, 1), np.uint8), (N, 3, 32, 32))
    arrays = Arrays("CIFAR-10", blank, labels, blank[:10], labels[:10], tuple("abcdefghij"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.READERS, "cifar10", lambda data_dir: arrays)
        return load("cifar10", None)
