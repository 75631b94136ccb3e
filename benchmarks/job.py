"""The whole job: five epochs of SimCLR and every evaluation of the reference projects, ours and dkobak's way, each by one protocol.

    python benchmarks/job.py [--data-dir DIR] [--json FILE] [--accuracy] [--small]

thin16 on CIFAR-10 (with --data-dir; otherwise on generated images of its shape), batch 512, views, projector and SGD of
dkobak/simclr-cifar10. Both sides do the same work:

- training, 5 epochs;
- six kNN accuracies (k 1, 5, 10, cosine and Euclidean);
- `linear_precomp`: Adam on features, 100 epochs;
- `linear_augm`: Adam on crops and flips, 100 epochs;
- `linear_sgd`: SGD on crops and flips, 100 epochs, as p3i0t/SimCLR-CIFAR10.

dkobak's way is plain PyTorch: float32, contiguous, two forwards, PIL images in a DataLoader with one worker per core, scikit-learn's
kNN, and probes on images with the projector and a graph through the encoder. Both sides share a process, so that its tensors profit
from our memory settings too. Of each part a few steps run, in turns, as the table says; the rest is extrapolated. The first step is
not counted, nor are those whose batches were prefetched. Features, kNN and Adam on features run whole. Cached augmentation
(`linear_augm_cached`) is another protocol (docs/protocols.md) and has a row of its own. With --accuracy both sides train whole, with
the probes on images for 5 epochs, and accuracies are printed: half an hour.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import in_turn, median_and_range, parser, save, timed, times
from peers import (
    PREFETCHED,
    WORKERS,
    Pictures,
    Twice,
    build_encoder,
    dkobak_linear_precomp,
    dkobak_step,
    dkobak_transform,
    made_images,
    sgd,
)
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from twoviews import build, config, device, optim, runs, train
from twoviews.data import READERS
from twoviews.data.arrays import Arrays
from twoviews.probes import minibatch, protocols
from twoviews.probes.knn import search, vote

NET, BATCH, EPOCHS, PROBE_EPOCHS, CLASSES, TURNS = "thin16", 512, 5, 100, 10, 2
SGD = minibatch.Schedule("sgd", 0.2, epochs=PROBE_EPOCHS, batch_size=BATCH, floor=0.001, unit="step", drop_last=True)
ADAM = minibatch.Schedule("adam", 0.1, epochs=PROBE_EPOCHS, batch_size=BATCH)
ON_CROPS = (("linear_augm", ADAM, 0.2), ("linear_sgd", SGD, 0.08))  # probe, schedule, smallest crop
PRECOMP = protocols.schedule("linear_precomp adam", protocol="dkobak", backbone=NET, batch_size=BATCH)

Split = tuple[Tensor, Tensor]


def sliced(steps: Iterator[Any], counted: int, whole: int) -> float:
    """Return the seconds of `whole` steps, from `counted` steps after the first one and the prefetched ones."""
    for _ in range(1 + PREFETCHED):
        next(steps)
    return timed(lambda: [next(steps) for _ in range(counted)])[0] / counted * whole


class Labelled(Pictures):
    """PIL images under a transform, with labels."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Any], Any]) -> None:
        super().__init__(images, transform)
        self.labels = labels

    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i), self.labels[i % len(self.labels)]


class Theirs:
    """dkobak's way, one step at a time."""

    def __init__(self, bank: Split, test: Split) -> None:
        self.bank, self.test = bank, test
        self.backbone, self.head = build_encoder(NET)

    def training(self, epochs: int) -> Iterator[None]:
        data = Pictures(self.bank[0], Twice(dkobak_transform()))
        loader = DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS)
        optimizer = sgd(self.backbone, self.head)
        for epoch in range(epochs):
            rate = optim.learning_rate(
                epoch, steps=epochs, steps_per_epoch=1, peak=0.12, floor=0, warmup_epochs=0, schedule="cosine", unit="epoch"
            )
            optimizer.param_groups[0]["lr"] = rate
            for views in loader:
                dkobak_step(self.backbone, self.head, optimizer, views)
                yield

    def features(self, images: Tensor) -> Tensor:
        self.backbone.eval()
        with torch.no_grad():
            return torch.cat([self.backbone(chunk.float() / 255) for chunk in images.split(1000)])

    def knn(self, bank: Tensor, test: Tensor) -> dict[str, float]:
        accuracies = {}
        for metric in ("cosine", "euclidean"):
            for k in (1, 5, 10):
                model = KNeighborsClassifier(k, metric=metric, algorithm="brute", n_jobs=-1).fit(bank.numpy(), self.bank[1].numpy())
                accuracies[f"kNN k={k} {metric}"] = float(model.score(test.numpy(), self.test[1].numpy()))
        return accuracies

    def augmented(self, layer: nn.Linear, schedule: minibatch.Schedule, smallest: float) -> Iterator[None]:
        """Train a probe on images: dkobak's Adam also runs the projector, p3i0t's SGD does not."""
        transform = transforms.Compose(
            [transforms.RandomResizedCrop(32, scale=(smallest, 1.0)), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )
        loader = DataLoader(Labelled(*self.bank, transform), BATCH, shuffle=True, num_workers=WORKERS, drop_last=schedule.drop_last)
        adam, by_step = schedule.optimizer == "adam", schedule.unit == "step"
        optimizer: torch.optim.Optimizer
        if adam:
            optimizer = torch.optim.Adam(layer.parameters(), schedule.learning_rate)
        else:
            optimizer = torch.optim.SGD(layer.parameters(), schedule.learning_rate, momentum=0.9, nesterov=True)
        periods = schedule.epochs * (len(loader) if by_step else 1)
        annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, periods, eta_min=schedule.floor)
        self.backbone.eval()
        for _ in range(schedule.epochs):
            for images, labels in loader:
                h = self.backbone(images)
                if adam:
                    self.head(h)
                optimizer.zero_grad()
                F.cross_entropy(layer(h), labels).backward()
                optimizer.step()
                if by_step:
                    annealing.step()
                yield
            if not by_step:
                annealing.step()


class Ours:
    """The training loop and the evaluation of TwoViews."""

    def __init__(self, data_dir: Path | None) -> None:
        words = ["recipe=simclr_cifar10", "base_learning_rate=0.06", f"backbone={NET}", f"batch_size={BATCH}", f"epochs={EPOCHS}"]
        words += ["device=cpu", "probe_every=0"] + ([f"data_dir={data_dir}"] if data_dir else [])
        self.cfg = config.load("pretrain", words)
        self.parts = build.build(self.cfg)
        self.bank, self.test = self.parts.dataset.split("train+val"), self.parts.dataset.split("test")

    def train(self, steps: int | None) -> float:
        """Return the seconds of all steps, extrapolated from the steps that ran, without the first."""
        self.cfg["max_steps"] = steps
        with tempfile.TemporaryDirectory() as scratch, runs.RunFolder(runs.create(Path(scratch), "job", "{}")) as folder:
            _, summary = train.fit(self.cfg, self.parts, folder)
        return float(summary["sec_per_epoch"]) * EPOCHS

    def features(self, images: Tensor) -> Tensor:
        return self.parts.embed(self.parts.method.backbone, images)

    def knn(self, bank: Tensor, test: Tensor) -> dict[str, float]:
        found = search(bank, test, k=10)
        return {
            f"kNN k={k} {metric}": (vote(found[metric], self.bank[1], k=k, classes=CLASSES) == self.test[1]).double().mean().item()
            for metric in ("cosine", "euclidean")
            for k in (1, 5, 10)
        }

    def precomputed(self, bank: Tensor) -> Any:
        return minibatch.on_features(bank, self.bank[1], classes=CLASSES, schedule=PRECOMP, seed=0, max_steps=None, name="Adam")

    def augmented(self, schedule: minibatch.Schedule, smallest: float, *, steps: int | None, cached: int | None = None) -> Any:
        images, labels = self.bank
        shape = (images.shape[1], images.shape[2], images.shape[3])
        views = minibatch.crop_and_flip_views(shape, crop_scale=(smallest, 1.0), mean=self.parts.views.mean, std=self.parts.views.std)
        crops: dict[str, Any] = {"views": views, "make_views": build.make_views(self.parts.machine, views)}
        crops |= {"dtype": torch.float32, "autocast": self.parts.machine.autocast}
        fit: dict[str, Any] = {"classes": CLASSES, "embed_dim": 128, "schedule": schedule, "seed": 0, "max_steps": steps, "name": "job"}
        return minibatch.on_views(self.parts.method.backbone, images, labels, cached=cached, **fit, **crops)


def seconds_of(ours: Ours, theirs: Theirs, small: bool) -> dict[str, tuple[list[float], list[float], str]]:
    """Return for each part our seconds and theirs, one per turn, and what ran."""
    n, images, turns = len(ours.bank[1]), (ours.bank[0], ours.test[0]), 1 if small else TURNS
    bank, test = (ours.features(split) for split in images)
    whole: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "features": (lambda: [ours.features(split) for split in images], lambda: [theirs.features(split) for split in images]),
        "six kNN accuracies": (lambda: ours.knn(bank, test), lambda: theirs.knn(bank, test)),
        "linear_precomp, Adam": (lambda: ours.precomputed(bank), lambda: dkobak_linear_precomp(bank, ours.bank[1], CLASSES)),
    }
    steps = -(-n // BATCH) * EPOCHS
    mine, other = (2, 2) if small else (50, 4)  # counted steps of a turn
    first: list[float] = []
    second: list[float] = []
    for _ in range(turns):
        first.append(ours.train(mine + 1))
        second.append(sliced(theirs.training(EPOCHS), other, steps))
    parts = {f"training, {EPOCHS} epochs": (first, second, f"{mine} and {other} of {steps} steps, {turns} times")}
    for name, (run_ours, run_theirs) in whole.items():
        seconds, _ = in_turn({"ours": run_ours, "theirs": run_theirs}, 1 if "kNN" in name else turns)
        parts[name] = (seconds["ours"], seconds["theirs"], "whole")
    mine, other = (2, 2) if small else (30, 4)
    for name, schedule, smallest in ON_CROPS:
        steps, first, second = schedule.per_epoch(n) * PROBE_EPOCHS, [], []
        for _ in range(turns):
            one, more = (timed(lambda s=s, m=schedule, x=smallest: ours.augmented(m, x, steps=s))[0] for s in (1, 1 + mine))
            first.append(one + (more - one) / mine * steps)
            second.append(sliced(theirs.augmented(nn.Linear(128, CLASSES), schedule, smallest), other, steps))
        parts[f"{name}, {PROBE_EPOCHS} epochs"] = (first, second, f"{mine} and {other} of {steps} steps, {turns} times")
    return parts


def accuracies(ours: Ours, theirs: Theirs) -> list[tuple[str, float, float]]:
    """Train both sides whole, probes on images for 5 epochs, and return the accuracies of each evaluation."""
    ours.train(None)
    for _ in theirs.training(EPOCHS):
        pass
    mine = [ours.features(images) for images, _ in (ours.bank, ours.test)]
    other = [theirs.features(images) for images, _ in (ours.bank, ours.test)]
    a, b = ours.knn(*mine), theirs.knn(*other)
    rows = [(name, a[name], b[name]) for name in a]

    def add(name: str, probe: Any, layer: nn.Linear) -> None:
        theirs_right = (layer(other[1]).argmax(1) == ours.test[1]).double().mean().item()
        rows.append((name, probe.accuracy(mine[1], ours.test[1]), theirs_right))

    add("linear_precomp, Adam", ours.precomputed(mine[0]), dkobak_linear_precomp(other[0], ours.bank[1], CLASSES))
    for name, schedule, smallest in ON_CROPS:
        short = replace(schedule, epochs=5)
        probe, layer = ours.augmented(short, smallest, steps=None), nn.Linear(128, CLASSES)
        for _ in theirs.augmented(layer, short, smallest):
            pass
        add(f"{name}, 5 epochs", probe, layer)
    return rows


def print_seconds(ours: Ours, theirs: Theirs, small: bool) -> dict[str, Any]:
    """Print the table of seconds and return its figures."""
    parts = seconds_of(ours, theirs, small)
    cached, _ = timed(lambda: ours.augmented(ADAM, 0.2, steps=2 if small else None, cached=protocols.CACHED))
    mine, other = (sum(median(row[i]) for row in parts.values()) for i in (0, 1))
    parts["**the whole job**"] = ([mine], [other], "sum of the medians")
    shorter = mine - median(parts[f"linear_augm, {PROBE_EPOCHS} epochs"][0]) + cached
    parts["the same with linear_augm_cached, another protocol"] = ([shorter], [other], "that probe whole")
    print("| part | TwoViews, s | dkobak's way, s | TwoViews is faster by | ran |\n|:--|--:|--:|--:|:--|")
    for name, (first, second, ran) in parts.items():
        print(f"| {name} | {median_and_range(first, '.1f')} | {median_and_range(second, '.1f')} | {times(second, first):.1f} x | {ran} |")
    return {name: [first, second] for name, (first, second, _) in parts.items()}


def main() -> int:
    """Print Markdown tables; write JSON if asked."""
    options = parser(__doc__, "two steps of each part, one turn, 2,000 images")
    options.add_argument("--data-dir", type=Path, help="CIFAR-10: its archive, folder or an image tree")
    options.add_argument("--accuracy", action="store_true", help="train both sides whole and print accuracies")
    arguments = options.parse_args()
    if arguments.data_dir is None:
        count = 2000 if arguments.small else 50_000
        pictures = made_images(count + count // 5).numpy()  # all different: a search would find copies at once
        labels = torch.arange(count).numpy() % CLASSES
        images, test = pictures[:count], (pictures[count:], labels[: count // 5])
        READERS["cifar10"] = lambda _: Arrays("generated images", images, labels, *test, tuple("0123456789"))
    torch.manual_seed(0)
    ours = Ours(arguments.data_dir)
    theirs = Theirs(ours.bank, ours.test)
    print(f"{device.cpu_name()}, {ours.parts.machine}; torch {torch.__version__}; {ours.parts.dataset.title}, {NET}, batch {BATCH}\n")
    figures: dict[str, Any] = {"machine": str(ours.parts.machine)}
    if arguments.accuracy:
        print("| evaluation | TwoViews, % | dkobak's way, % |\n|:--|--:|--:|")
        for name, mine, other in accuracies(ours, theirs):
            print(f"| {name} | {100 * mine:.1f} | {100 * other:.1f} |", flush=True)
            figures[name] = [mine, other]
    else:
        figures |= print_seconds(ours, theirs, arguments.small)
    save(arguments.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
