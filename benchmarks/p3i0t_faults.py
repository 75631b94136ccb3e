"""Faults of p3i0t/SimCLR-CIFAR10, switched on one at a time in our code: what each does to the reported accuracy.

    python benchmarks/p3i0t_faults.py --data-dir data/cifar10-jpeg

For each random seed, three encoders of recipe=simclr are trained with a small backbone: without fault, with the cosine clamped at
zero, and at the learning rate that the project's code really used. All are evaluated by its protocol (`linear_sgd`: frozen backbone,
crops and flips, all labels). The two faults of its linear evaluation are then switched on, one at a time, for the encoder without
fault: the backbone is trained together with the classifier (it sees the images in another order than the frozen probe), or only 100
labels are used, for as many steps at the same rate.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews import build, optim, pretrain, runs
from twoviews.config import Config
from twoviews.data.dataset import batch_rows, steps_per_epoch
from twoviews.probes import minibatch, protocols
from twoviews.probes.linear import Linear
from twoviews.progress import Progress


def clamped_nt_xent(z: Tensor, temperature: float, views: int, **_: Any) -> Tensor:
    """NT-Xent with the cosine clamped from below, as in line 54 of the project's simclr.py: a negative similarity has no gradient."""
    assert views == 2
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z.float(), dim=1)
        similarity = (z @ z.T).clamp(min=1e-7) / temperature
        own = torch.eye(len(z), dtype=torch.bool, device=z.device)
        return F.cross_entropy(similarity.masked_fill(own, -math.inf), torch.arange(len(z), device=z.device).roll(len(z) // 2))


def parts_of(run: Path) -> tuple[Config, build.Parts]:
    """Return the configuration and the parts of a finished run, with its trained backbone."""
    cfg = Config({**runs.read_config(run), "init": str(run)})
    return cfg, build.build(cfg)


def frozen_probe(run: Path) -> float:
    """Return the accuracy of `linear_sgd` from the summary of a run."""
    (row,) = runs.read_json(run, runs.SUMMARY)["evaluations"]
    assert row["probe"] == "linear_sgd"
    return float(row["accuracy"])


def probe_views(parts: build.Parts) -> tuple[minibatch.Views, Callable[[Tensor, Tensor], list[Tensor]]]:
    """Return the crops and flips of the project's linear evaluation, and the function that makes them."""
    shape = (parts.images.shape[1], parts.images.shape[2], parts.images.shape[3])
    views = minibatch.crop_and_flip_views(shape, crop_scale=protocols.CROPS["linear_sgd"], mean=parts.views.mean, std=parts.views.std)
    return views, build.make_views(parts.machine, views)


def schedule(cfg: Config, epochs: int) -> minibatch.Schedule:
    """Return the optimiser settings of the project's linear evaluation."""
    return protocols.schedule("linear_sgd", protocol="dkobak", backbone=cfg.backbone, batch_size=cfg.batch_size, epochs=epochs)


def unfrozen_probe(run: Path, epochs: int) -> float:
    """Return the accuracy of a linear evaluation that also trains the backbone.

    Line 118 of the project's simclr_lin.py: `requires_grad = False` on a module freezes nothing, and the backbone is in train mode.
    """
    cfg, parts = parts_of(run)
    views, make_views = probe_views(parts)
    images, labels = parts.dataset.split("train+val")
    test_images, test_labels = parts.dataset.split("test")
    settings = schedule(cfg, epochs)
    per_epoch = steps_per_epoch(len(images), settings.batch_size, drop_last=True)
    backbone = parts.method.backbone.train()
    torch.manual_seed(cfg.seed)
    layer = nn.Linear(parts.embed(backbone, test_images[:10]).shape[1], len(parts.dataset.classes))
    optimizer = torch.optim.SGD([*backbone.parameters(), *layer.parameters()], 0.1, momentum=settings.momentum, nesterov=True)
    with Progress("unfrozen", epochs * per_epoch, "images", scale=settings.batch_size) as bar:
        for step in range(epochs * per_epoch):
            rows = batch_rows(cfg.seed, step, len(images), settings.batch_size, drop_last=True)
            (x,) = make_views(images[rows], views.draw(cfg.seed, step, len(rows)))
            rate = optim.learning_rate(
                step,
                steps=epochs * per_epoch,
                steps_per_epoch=per_epoch,
                peak=settings.learning_rate,
                floor=settings.floor,
                warmup_epochs=0,
                schedule="cosine",
                unit=settings.unit,
            )
            optimizer.param_groups[0]["lr"] = rate
            with parts.machine.autocast():
                h = backbone(x)
            F.cross_entropy(layer(h.float()), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.add()
    return Linear(layer.weight.detach(), layer.bias.detach()).accuracy(parts.embed(backbone, test_images), test_labels)


def hundred_labels(run: Path, epochs: int) -> float:
    """Return the accuracy of a linear evaluation with 100 labels, not stratified: line 105 of the project's simclr_lin.py.

    Its batch of 512 would skip all of them, so the batch is 100 here.
    """
    cfg, parts = parts_of(run)
    views, make_views = probe_views(parts)
    images, labels = parts.dataset.split("train+val")
    test_images, test_labels = parts.dataset.split("test")
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(cfg.seed))[: 10 * len(parts.dataset.classes)]
    test = parts.embed(parts.method.backbone, test_images)
    usual = schedule(cfg, epochs)  # an epoch of 100 images is one step, so there are as many epochs as the others take steps
    probe = minibatch.on_views(
        parts.method.backbone,
        images[rows],
        labels[rows],
        views=views,
        make_views=make_views,
        dtype=parts.machine.dtype,
        autocast=parts.machine.autocast,
        embed_dim=test.shape[1],
        classes=len(parts.dataset.classes),
        schedule=replace(usual, batch_size=len(rows), epochs=epochs * usual.per_epoch(len(images))),
        seed=cfg.seed,
        max_steps=None,
        name="100 labels",
    )
    return probe.accuracy(test, test_labels)


def table(accuracies: dict[str, list[float]]) -> str:
    """Return accuracies in per cent and differences from the first row; the noise is two standard errors."""
    lines = ["| fault | linear_sgd | difference | noise |", "|:--|--:|--:|--:|"]
    correct = [100 * a for a in next(iter(accuracies.values()))]
    for name, values in accuracies.items():
        percent = [100 * a for a in values]
        spread = [stdev(v) if len(v) > 1 else 0.0 for v in (correct, percent)]
        noise = 2 * math.sqrt(sum(s**2 / len(percent) for s in spread))
        lines.append(f"| {name} | {mean(percent):.1f} ± {spread[1]:.1f} | {mean(percent) - mean(correct):+.1f} | {noise:.1f} |")
    return "\n".join(lines)


def cli(argv: list[str] | None = None) -> None:
    """Train three encoders per random seed, evaluate them in five ways, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="CIFAR-10: archive, folder or image tree; downloaded without it")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--backbone", default="thin16")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=4, help="of SimCLR; the project has 1000")
    parser.add_argument("--probe-epochs", type=int, default=10, help="of the linear evaluation; the project has 100")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs-dir", default="runs/p3i0t_faults")
    args = parser.parse_args(argv)
    names = ("none", "cosine clamped", "rate 0.36, not 0.6", "backbone not frozen", "100 labels")
    accuracies: dict[str, list[float]] = {name: [] for name in names}
    common = {"dataset": args.dataset, "data_dir": args.data_dir, "backbone": args.backbone, "batch_size": args.batch_size}
    common |= {"device": "cpu", "epochs": args.epochs, "probe_every": 0, "runs_dir": args.runs_dir}
    common |= {"probes": "linear_sgd", "probe_epochs": args.probe_epochs}
    for seed in args.seeds:
        correct = pretrain("simclr", seed=seed, **common)
        with patch("twoviews.methods.simclr.nt_xent", clamped_nt_xent):  # in another folder: the configuration does not show the clamp
            clamped = pretrain("simclr", seed=seed, **common | {"runs_dir": f"{args.runs_dir}/clamped"})
        squared = 0.36 * args.batch_size / 512  # the rate and its factor were both 0.6; at another batch, the same share of our rate
        slow = pretrain("simclr", seed=seed, **common, learning_rate=squared, min_learning_rate=0.0006)
        results = [frozen_probe(run) for run in (correct, clamped, slow)]
        results += [unfrozen_probe(correct, args.probe_epochs), hundred_labels(correct, args.probe_epochs)]
        for name, accuracy in zip(names, results, strict=True):
            accuracies[name].append(accuracy)
        Path(args.runs_dir, "accuracies.json").write_text(json.dumps(accuracies, indent=1), encoding="utf-8")
        print(f"\n{table(accuracies)}\n", flush=True)


if __name__ == "__main__":
    cli()
