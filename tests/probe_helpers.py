"""What the tests of the probes share: a small network, images, and the options of a probe on images."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twoviews.models.resnet import ThinResNet
from twoviews.probes.minibatch import Schedule, crop_and_flip_views
from twoviews.rng import PROBE_ORDER, philox

ADAM = Schedule("adam", 0.1, epochs=4, batch_size=32)
SGD = Schedule("sgd", 0.2, epochs=4, batch_size=32, floor=0.001, unit="step", drop_last=True)
FIT: dict[str, Any] = {"classes": 4, "seed": 3, "max_steps": None, "name": "test"}  # options of `minibatch.fit`


def trained_net() -> ThinResNet:
    """Return a small network in train mode whose BatchNorm has running statistics."""
    torch.manual_seed(0)
    net = ThinResNet(in_channels=3, widths=(8, 16), blocks=(1, 1), stem_stride=1)
    for _ in range(3):
        net.train()(torch.randn(16, 3, 8, 8) * 2 + 1)
    return net


def some_images(n: int) -> Tensor:
    """Return random images (n, 3, 8, 8) uint8."""
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def order(epoch: int, n: int) -> Tensor:
    """Return the order of n images in an epoch, for the seed of `FIT`."""
    return torch.from_numpy(np.argsort(philox(FIT["seed"], epoch, PROBE_ORDER, n), kind="stable"))


def view_options(**changes: Any) -> dict[str, Any]:
    """Return the options of a probe on views of `some_images`: crops of at least a fifth of the area, and flips."""
    views = crop_and_flip_views((3, 8, 8), crop_scale=(0.2, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3)
    return {"views": views, "make_views": views, "dtype": torch.float32, "autocast": contextlib.nullcontext, **changes}
