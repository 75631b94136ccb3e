"""Training as `twoviews pretrain` does it, on generated images: our side of `steps.py` and `epoch.py`."""

from __future__ import annotations

import contextlib
import io
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from measure import timed
from peers import IMAGES, made_images

from twoviews import build, config, device, inputs, runs, train
from twoviews.data import READERS
from twoviews.data.arrays import Arrays

MOCO_V2 = ["recipe=moco", "queue_size=4096", "temperature=0.1", "ema_decay=0.99", "crop_scale=[0.2,1.0]"]
RECIPES = {"simclr": ["recipe=simclr_cifar10"], "moco": [*MOCO_V2, "bn_splits=1"], "moco, 8 BatchNorm parts": [*MOCO_V2, "bn_splits=8"]}


def build_run(net: str, batch: int, method: str, on: str = "cpu", count: int = IMAGES) -> tuple[config.Config, build.Parts]:
    """Return the configuration and the parts of a run.

    Args:
        net, batch: backbone and batch size.
        method: a key of `RECIPES`.
        on: the device, as in the configuration.
        count: number of generated images.
    """
    images, labels = made_images(count).numpy(), np.arange(count) % 10
    READERS["cifar10"] = lambda _: Arrays("generated images", images, labels, images[:100], labels[:100], tuple("0123456789"))
    words = [*RECIPES[method], f"backbone={net}", f"batch_size={batch}", f"device={on}", "probe_every=0", "checkpoint_every=1000"]
    cfg = config.load("pretrain", [*words, "dataset=cifar10", "epochs=1000"])
    return cfg, build.build(cfg)


def seconds_per_step(cfg: config.Config, parts: build.Parts, scratch: Path) -> Callable[[int], float]:
    """Return a function that trains so many steps and returns the seconds of one, by the run's own clock.

    The clock leaves out the first step.
    """

    def train_steps(steps: int) -> float:
        cfg["max_steps"] = steps + 1
        path = runs.create(scratch, "bench", "{}")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), runs.RunFolder(path) as folder:
            _, summary = train.fit(cfg, parts, folder)
        shutil.rmtree(path)
        return 2 * cfg.batch_size / float(summary["views_per_s"])

    return train_steps


def seconds_of_views(batch: int) -> float:
    """Return the seconds that making the views of one step takes, on all threads, as in a run."""
    images = made_images()
    cfg = config.load("pretrain", ["recipe=simclr_cifar10"])
    views = inputs.build_views(cfg, SimpleNamespace(images=images, mean=(0.5,) * 3, std=(0.25,) * 3))  # type: ignore[arg-type]
    make = build.make_views(device.choose(device="cpu", threads=None, precision="auto", compile="auto"), views)
    numbers = [views.draw(0, step, batch) for step in range(12)]
    return statistics.median([timed(lambda u=u: make(images[:batch], u))[0] for u in numbers][2:])
