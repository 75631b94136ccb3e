"""The whole job: five epochs of SimCLR and all of the seeds' read-outs, ours and done the second seed's way, protocol by protocol.

    python benchmarks/job.py [--data-dir DIR] [--json FILE] [--accuracy] [--small]

thin16 on CIFAR-10 (with --data-dir; without it on made images of its shape), batch 512, the second seed's views, head and SGD. Both do
the same work: 5 epochs; six kNN accuracies (k 1, 5, 10, cosine and Euclidean); Adam on features, 100 epochs; Adam on crops and flips, 100
epochs; SGD on crops and flips, 100 epochs, as the first seed. Theirs is float32, contiguous, two forwards, PIL images in a DataLoader
with a worker a core, scikit-learn's kNN, and probes on images with the projector and a graph through the encoder. Both share a process, so
that theirs too has the memory that ours asks to keep. Each part runs a slice, stated in the table, in turns, and is extrapolated, without
the first step and those whose batches were prefetched meanwhile; features, kNN and Adam on features run whole. Cached
augmentation is a row of its own: another protocol (docs/protocols.md). With --accuracy both train whole, the probes on images for 5 epochs,
and accuracies are printed: half an hour.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import in_turn, said, timed, times
from readouts import seeds_adam
from sklearn.neighbors import KNeighborsClassifier
from steps import PREFETCHED, WORKERS, Pictures, Twice, made_images, net_and_head, sgd
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from views import second_seed_transform

from twoviews import build, config, device, optim, runs, train
from twoviews.data import READERS
from twoviews.data.arrays import Arrays
from twoviews.probes import minibatch, protocols
from twoviews.probes.knn import search, vote

NET, BATCH, EPOCHS, PROBE_EPOCHS, CLASSES, TURNS = "thin16", 512, 5, 100, 10, 2
SGD = minibatch.Schedule("sgd", 0.2, epochs=PROBE_EPOCHS, batch_size=BATCH, floor=0.001, unit="step", drop_last=True)
ADAM = minibatch.Schedule("adam", 0.1, epochs=PROBE_EPOCHS, batch_size=BATCH)

Split = tuple[Tensor, Tensor]


def sliced(steps: Iterator[Any], counted: int, whole: int) -> float:
    """Seconds of `whole` steps: of `counted` ones after the first and those whose batches were prefetched meanwhile."""
    for _ in range(1 + PREFETCHED):
        next(steps)
    began = time.perf_counter()
    for _ in range(counted):
        next(steps)
    return (time.perf_counter() - began) / counted * whole


class Labelled(Pictures):
    """PIL images under a transform, with labels."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Any], Any]) -> None:
        super().__init__(images, transform)
        self.labels = labels

    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i), self.labels[i % len(self.labels)]


class Theirs:
    """The second seed's way, a step at a time."""

    def __init__(self, bank: Split, test: Split) -> None:
        self.bank, self.test = bank, test
        self.backbone, self.head = net_and_head(NET)

    def training(self, epochs: int) -> Iterator[None]:
        data = Pictures(self.bank[0], Twice(second_seed_transform()))
        loader = DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS)
        optimizer = sgd(self.backbone, self.head)
        for epoch in range(epochs):
            rate = optim.learning_rate(
                epoch, steps=epochs, steps_per_epoch=1, peak=0.12, floor=0, warmup_epochs=0, schedule="cosine", unit="epoch"
            )
            optimizer.param_groups[0]["lr"] = rate
            for views in loader:
                z = F.normalize(torch.cat([self.head(self.backbone(x)) for x in views]))
                logits = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
                rows = len(views[0])
                optimizer.zero_grad()
                F.cross_entropy(logits, (torch.arange(2 * rows) + rows) % (2 * rows)).backward()
                optimizer.step()
                yield

    def features(self, images: Tensor) -> Tensor:
        self.backbone.eval()
        with torch.no_grad():
            return torch.cat([self.backbone(chunk.float() / 255) for chunk in images.split(1000)])

    def knn(self, bank: Tensor, test: Tensor) -> dict[str, float]:
        found = {}
        for metric in ("cosine", "euclidean"):
            for k in (1, 5, 10):
                model = KNeighborsClassifier(k, metric=metric, algorithm="brute", n_jobs=-1).fit(bank.numpy(), self.bank[1].numpy())
                found[f"kNN k={k} {metric}"] = float(model.score(test.numpy(), self.test[1].numpy()))
        return found

    def augmented(self, layer: nn.Linear, how: minibatch.Schedule, smallest: float) -> Iterator[None]:
        """A probe on images: the second seed's Adam has the projector in its way, the first seed's SGD has not."""
        transform = transforms.Compose(
            [transforms.RandomResizedCrop(32, scale=(smallest, 1.0)), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )
        loader = DataLoader(Labelled(*self.bank, transform), BATCH, shuffle=True, num_workers=WORKERS, drop_last=how.drop_last)
        kinds = {"adam": torch.optim.Adam, "sgd": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True)}
        optimizer = kinds[how.optimizer](layer.parameters(), how.learning_rate)
        by_step = how.unit == "step"
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.epochs * (len(loader) if by_step else 1), eta_min=how.floor)
        self.backbone.eval()
        for _ in range(how.epochs):
            for images, labels in loader:
                h = self.backbone(images)
                if how.optimizer == "adam":
                    self.head(h)
                optimizer.zero_grad()
                F.cross_entropy(layer(h), labels).backward()
                optimizer.step()
                if by_step:
                    schedule.step()
                yield
            if not by_step:
                schedule.step()


class Ours:
    """The real loop and read-outs."""

    def __init__(self, data_dir: Path | None) -> None:
        words = ["recipe=simclr_cifar10", "base_learning_rate=0.06", f"backbone={NET}", f"batch_size={BATCH}", f"epochs={EPOCHS}"]
        words += ["device=cpu", "probe_every=0"] + ([f"data_dir={data_dir}"] if data_dir else [])
        self.cfg = config.load("pretrain", words)
        self.parts = build.build(self.cfg)
        self.bank, self.test = self.parts.dataset.split("train+val"), self.parts.dataset.split("test")

    def train(self, steps: int | None) -> float:
        """Seconds of all steps, extrapolated from those taken but the first."""
        self.cfg["max_steps"] = steps
        with tempfile.TemporaryDirectory() as scratch, runs.RunFolder(runs.create(Path(scratch), "job", "{}")) as folder:
            _, summary = train.fit(self.cfg, self.parts, folder)
        return float(summary["sec_per_epoch"]) * EPOCHS

    def knn(self, bank: Tensor, test: Tensor) -> dict[str, float]:
        found = search(bank, test, k=10)
        return {
            f"kNN k={k} {metric}": (vote(found[metric], self.bank[1], k=k, classes=CLASSES) == self.test[1]).double().mean().item()
            for metric in ("cosine", "euclidean")
            for k in (1, 5, 10)
        }

    def augmented(self, how: minibatch.Schedule, smallest: float, *, steps: int | None, cached: int | None = None) -> Any:
        images, labels = self.bank
        shape = (images.shape[1], images.shape[2], images.shape[3])
        views = minibatch.crop_and_flip_views(shape, crop_scale=(smallest, 1.0), mean=self.parts.mean, std=self.parts.std)
        of: dict[str, Any] = {"views": views, "make_views": build.views_on(self.parts.machine, views)}
        of |= {"dtype": torch.float32, "autocast": self.parts.machine.autocast}
        return minibatch.on_views(
            self.parts.method.backbone,
            images,
            labels,
            classes=CLASSES,
            embed_dim=128,
            schedule=how,
            seed=0,
            max_steps=steps,
            cached=cached,
            name="job",
            **of,
        )


def seconds_of(ours: Ours, theirs: Theirs, small: bool) -> dict[str, tuple[list[float], list[float], str]]:
    """Each part: our seconds and theirs, turn by turn, and the slices."""
    n = len(ours.bank[1])
    mine, backbone = ours.parts, ours.parts.method.backbone
    bank, test = (mine.embed(backbone, images) for images in (ours.bank[0], ours.test[0]))
    search(bank[:1000], test[:10], k=10)  # what is compiled once a machine
    how = protocols.schedule("linear_precomp adam", protocol="second_seed", backbone=NET, batch_size=BATCH)
    whole: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "features": (
            lambda: [mine.embed(backbone, images) for images in (ours.bank[0], ours.test[0])],
            lambda: [theirs.features(images) for images in (ours.bank[0], ours.test[0])],
        ),
        "six kNN accuracies": (lambda: ours.knn(bank, test), lambda: theirs.knn(bank, test)),
        "linear_precomp, Adam": (
            lambda: minibatch.on_features(bank, ours.bank[1], classes=CLASSES, schedule=how, seed=0, max_steps=None, name="Adam"),
            lambda: seeds_adam(bank, ours.bank[1]),
        ),
    }
    training = -(-n // BATCH) * EPOCHS
    a, b = (2, 2) if small else (50, 4)  # counted steps of a turn
    ran = f"{a} and {b} of {training} steps, {TURNS} times"
    found: dict[str, tuple[list[float], list[float], str]] = {f"training, {EPOCHS} epochs": ([], [], ran)}
    for _ in range(TURNS):
        one, other, _ = found[f"training, {EPOCHS} epochs"]
        one.append(ours.train(a + 1))
        other.append(sliced(theirs.training(EPOCHS), b, training))
    for name, (one_way, other_way) in whole.items():
        seconds, _ = in_turn({"ours": one_way, "theirs": other_way}, 1 if "kNN" in name else TURNS)
        found[name] = (seconds["ours"], seconds["theirs"], "whole")
    c, d = (2, 2) if small else (30, 4)
    for name, schedule, smallest in (("linear_augm", ADAM, 0.2), ("linear_sgd", SGD, 0.08)):
        probing = schedule.per_epoch(n) * PROBE_EPOCHS
        one, other = [], []
        for _ in range(TURNS):
            first, more = (timed(lambda s=s, m=schedule, x=smallest: ours.augmented(m, x, steps=s))[0] for s in (1, 1 + c))
            one.append(first + (more - first) / c * probing)
            other.append(sliced(theirs.augmented(nn.Linear(128, CLASSES), schedule, smallest), d, probing))
        found[f"{name}, {PROBE_EPOCHS} epochs"] = (one, other, f"{c} and {d} of {probing} steps, {TURNS} times")
    return found


def accuracies(ours: Ours, theirs: Theirs) -> list[tuple[str, float, float]]:
    """Both ways from one end to the other, probes on images for 5 epochs: accuracy of each read-out."""
    ours.train(None)
    for _ in theirs.training(EPOCHS):
        pass
    mine = [ours.parts.embed(ours.parts.method.backbone, images) for images, _ in (ours.bank, ours.test)]
    other = [theirs.features(images) for images, _ in (ours.bank, ours.test)]
    a, b = ours.knn(*mine), theirs.knn(*other)
    rows = [(name, a[name], b[name]) for name in a]
    truth = ours.test[1]
    how = protocols.schedule("linear_precomp adam", protocol="second_seed", backbone=NET, batch_size=BATCH)
    probe = minibatch.on_features(mine[0], ours.bank[1], classes=CLASSES, schedule=how, seed=0, max_steps=None, name="Adam")
    layer = seeds_adam(other[0], ours.bank[1])

    def right(layer: nn.Linear) -> float:
        return (layer(other[1]).argmax(1) == truth).double().mean().item()

    rows.append(("linear_precomp, Adam", probe.accuracy(mine[1], truth), right(layer)))
    for name, schedule, smallest in (("linear_augm", ADAM, 0.2), ("linear_sgd", SGD, 0.08)):
        short = replace(schedule, epochs=5)
        probe, layer = ours.augmented(short, smallest, steps=None), nn.Linear(128, CLASSES)
        for _ in theirs.augmented(layer, short, smallest):
            pass
        rows.append((f"{name}, 5 epochs", probe.accuracy(mine[1], truth), right(layer)))
    return rows


def main() -> int:
    """Print Markdown tables; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10: its archive, folder or an image tree")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--accuracy", action="store_true", help="train both whole and print accuracies")
    parser.add_argument("--small", action="store_true", help="two steps of each part, 5,000 images: a trial")
    arguments = parser.parse_args()
    if arguments.data_dir is None:
        count = 5000 if arguments.small else 50_000
        pictures = made_images(count + count // 5).numpy()  # no two alike: a search would find copies at once
        labels = torch.arange(count).numpy() % CLASSES
        images, test = pictures[:count], (pictures[count:], labels[: count // 5])
        READERS["cifar10"] = lambda _: Arrays("made images", images, labels, *test, tuple("0123456789"))
    torch.manual_seed(0)
    ours = Ours(arguments.data_dir)
    theirs = Theirs(ours.bank, ours.test)
    print(f"{device.cpu_name()}, {ours.parts.machine}; torch {torch.__version__}; {ours.parts.dataset.title}, {NET}, batch {BATCH}\n")
    figures: dict[str, Any] = {"machine": str(ours.parts.machine)}
    if arguments.accuracy:
        print("| read-out | ours, % | the second seed's way, % |\n|:--|--:|--:|")
        for name, mine, other in accuracies(ours, theirs):
            print(f"| {name} | {100 * mine:.1f} | {100 * other:.1f} |", flush=True)
            figures[name] = [mine, other]
    else:
        found = seconds_of(ours, theirs, arguments.small)
        steps = 2 if arguments.small else None
        cached = timed(lambda: ours.augmented(ADAM, 0.2, steps=steps, cached=protocols.CACHED))[0]
        both = [sum(median(seconds[i]) for seconds in found.values()) for i in (0, 1)]
        found["**the whole job**"] = ([both[0]], [both[1]], "sum of the medians")
        shorter = both[0] - median(found[f"linear_augm, {PROBE_EPOCHS} epochs"][0]) + cached
        found["the same with linear_augm_cached, another protocol"] = ([shorter], [both[1]], "that probe whole")
        print("| part | ours, s | the second seed's way, s | ours is faster by | ran |\n|:--|--:|--:|--:|:--|")
        for name, (mine, other, ran) in found.items():
            print(f"| {name} | {said(mine, '.1f')} | {said(other, '.1f')} | {times(other, mine):.1f} x | {ran} |")
            figures[name] = [mine, other]
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
