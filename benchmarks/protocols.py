"""How far evaluations of the same features differ: the measured half of docs/protocols.md.

    python benchmarks/protocols.py RUN [--data-dir DIR] [--epochs 10]

RUN is a finished run folder. Three tables:

- kNN by both metrics, with uniform and with weighted votes;
- the linear probe by L-BFGS, by dkobak's Adam and by scikit-learn's SAGA, with seconds;
- why a probe on augmented images may lose: probes by the same Adam on whole images and on crops of different smallest areas, each
  evaluated on whole test images and on crops of them, and how similar the features of a crop are to those of its image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from measure import timed
from torch import Tensor
from torch.nn import functional as F

from twoviews import build, config, runs
from twoviews.probes import minibatch
from twoviews.probes.embed import frozen
from twoviews.probes.knn import KS, search, vote
from twoviews.probes.linear import Linear, linear
from twoviews.probes.minibatch import Schedule
from twoviews.probes.saga import saga

AREAS = (0.08, 0.2, 0.6, 1.0)  # smallest areas of a crop; 1.0: flips alone
Split = tuple[Tensor, Tensor]


def neighbours(bank: Split, test: Split, classes: int) -> None:
    """Print a table of kNN accuracies."""
    ks = [k for k in KS if k <= len(bank[0])]
    found = search(bank[0], test[0], k=max(ks))

    def accuracy(metric: str, k: int, temperature: float | None) -> str:
        predicted = vote(found[metric], bank[1], k=k, classes=classes, temperature=temperature)
        return f"{100 * (predicted == test[1]).double().mean().item():.2f}"

    print("\n| k | cosine | cosine, exp(s/0.1) | Euclidean |\n|--:|--:|--:|--:|")
    for k in ks:
        print(f"| {k} | {accuracy('cosine', k, None)} | {accuracy('cosine', k, 0.1)} | {accuracy('euclidean', k, None)} |")


def solvers(train: Split, val: Split, test: Split, classes: int) -> None:
    """Print a table of linear probes on whole images."""
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    adam = Schedule("adam", 0.1, epochs=100, batch_size=1000)
    print("\n| linear probe | accuracy, % | seconds |\n|:--|--:|--:|")
    for name, run in (
        ("L-BFGS, decay chosen on val", lambda: linear(*train, *val, classes=classes)[0]),
        (
            "Adam 0.1, 100 epochs, batch 1000",
            lambda: minibatch.on_features(*both, classes=classes, schedule=adam, seed=0, max_steps=None, name="Adam"),
        ),
        ("scikit-learn, SAGA, no penalty, 100 passes", lambda: saga(*both)[0]),
    ):
        seconds, probe = timed(run)
        print(f"| {name} | {100 * probe.accuracy(*test):.2f} | {seconds:.1f} |", flush=True)


def crops(parts: build.Parts, classes: int, both: Split, test: Split, epochs: int) -> None:
    """Print a table of probes on augmented images, evaluated on whole images and on crops."""
    backbone, machine = parts.method.backbone, parts.machine
    (images, labels), (test_images, truth) = parts.dataset.split("train+val"), parts.dataset.split("test")
    schedule = Schedule("adam", 0.1, epochs=epochs, batch_size=1024)
    fit: dict[str, Any] = {"classes": classes, "schedule": schedule, "seed": 0, "max_steps": None}

    def views_of(area: float) -> dict[str, Any]:
        shape = (images.shape[1], images.shape[2], images.shape[3])
        views = minibatch.crop_and_flip_views(shape, crop_scale=(area, 1.0), mean=parts.views.mean, std=parts.views.std)
        return {"views": views, "make_views": build.make_views(machine, views), "dtype": machine.dtype, "autocast": machine.autocast}

    def of_crops(area: float) -> Tensor:
        features = torch.no_grad()(minibatch.of_views(backbone, test_images, seed=1, **views_of(area)))
        with frozen(backbone):
            return torch.cat([features(rows, 0) for rows in torch.split(torch.arange(len(test_images)), 1000)])

    def print_row(name: str, probe: Linear) -> None:
        cells = [probe.accuracy(test[0], truth), *(probe.accuracy(h, truth) for h in cropped.values())]
        print(f"| {name} | " + " | ".join(f"{100 * x:.2f}" for x in cells) + " |", flush=True)

    cropped = {area: of_crops(area) for area in AREAS[:3]}
    mean = both[0].mean(0)
    similarity = [F.cosine_similarity(h - mean, test[0] - mean).mean().item() for h in cropped.values()]
    headings = " | ".join(f"on crops from {area:g}" for area in AREAS[:3])
    print(f"\n| Adam 0.1, {epochs} epochs, trained on | evaluated on whole images | {headings} |\n|:--|{'--:|' * 4}")
    print_row("whole images", minibatch.on_features(*both, name="whole", **fit))
    for area in reversed(AREAS):
        width = both[0].shape[1]
        probe = minibatch.on_views(backbone, images, labels, embed_dim=width, name=f"crops from {area:g}", **views_of(area), **fit)
        print_row("flips" if area == 1 else f"crops from {area:g}, flips", probe)
    cells = " | ".join(f"{x:.3f}" for x in similarity)
    print(f"| cosine of the features of a crop and of its image, minus the mean | 1 | {cells} |")


def main() -> int:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--data-dir", help="where the run's data are, if they were moved")
    parser.add_argument("--epochs", type=int, default=10, help="of the probes on augmented images")
    arguments = parser.parse_args()
    stored = runs.read_config(arguments.run)
    changes = {"init": str(arguments.run / runs.BACKBONE), "data_dir": arguments.data_dir or stored["data_dir"]}
    parts = build.build(config.Config({**config.load("pretrain", [f"recipe={stored['recipe']}"]), **stored, **changes}))
    runs.check_data(arguments.run, parts.dataset.digest)
    classes = len(parts.dataset.classes)
    splits: list[Split] = []
    for name in ("train", "val", "test"):
        images, labels = parts.dataset.split(name)
        splits.append((parts.embed(parts.method.backbone, images, f"embed {name}"), labels))
    train, val, test = splits
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    run = f"{stored['method']} {stored['backbone']}, {stored['epochs']} epochs"
    print(f"{arguments.run.name}: {parts.dataset.title}, {run}; {parts.machine}")
    neighbours(both, test, classes)
    solvers(train, val, test, classes)
    crops(parts, classes, both, test, arguments.epochs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
