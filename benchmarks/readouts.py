"""Read-outs beside scikit-learn's and the seeds' loops, in one run: kNN, the linear probe, the probe on augmented images.

    python benchmarks/readouts.py [--json FILE] [--small]

kNN and linear probes read made features of the size of ResNet-18's on CIFAR-10 (50,000 and 10,000 rows of 512, rectified, ten
overlapping classes). The second seed's six kNN accuracies (k 1, 5, 10, cosine and Euclidean) are six calls of scikit-learn's
KNeighborsClassifier, brute force, all cores; ours are one search. Its `lin precomp` is Adam 0.1, 100 epochs, batch 1000; ours solves that
problem by L-BFGS, five weight decays included. The probe on augmented images runs on the embedded data: the plain loop is fp32, contiguous,
with the projector and autograd on as in the seed's script, but its crops come from our views, so that the loops alone are compared.
Rivals take turns; seconds are the median of the turns, and least to most. `--small` divides the rows by ten: a trial.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import sklearn
import torch
from measure import in_turn, peak_gib, said, timed, times
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews import backbones, build, config, optim, pretrain
from twoviews.device import cpu_name
from twoviews.heads import mlp
from twoviews.probes import minibatch
from twoviews.probes.embed import embed
from twoviews.probes.knn import search, vote
from twoviews.probes.linear import DECAYS, Problem, linear

CLASSES, WIDTH, TURNS = 10, 512, 3
SEEDS = range(3)  # of the probe on augmented images: its accuracy moves by half a point from one to the next
AUGMENTED = minibatch.Schedule("adam", 0.1, epochs=10, batch_size=1000)


def features(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rectified noisy points around ten centres: about as far apart as those of a trained ResNet-18."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(CLASSES, (n,), generator=generator)
    return F.relu(0.13 * centres[labels] + torch.randn(n, WIDTH, generator=generator)), labels


def knn(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> dict[str, Any]:
    """Six accuracies by one search, and by six calls."""

    def ours() -> dict[tuple[str, int], float]:
        found = search(bank, queries, k=10)
        return {
            (metric, k): (vote(found[metric], labels, k=k, classes=CLASSES) == truth).double().mean().item()
            for metric in found
            for k in (1, 5, 10)
        }

    search(bank[:1000], queries[:10], k=10)  # on a new machine this compiles, once
    mine, theirs, extra = [], {}, 0.0
    calls: dict[str, float] = {}
    for metric in ("cosine", "euclidean"):
        for k in (1, 5, 10):
            before = peak_gib(reset=True)
            seconds, accuracies = timed(ours)
            mine.append(seconds)
            extra = extra or peak_gib() - before  # of the first: later ones use what it left
            model = KNeighborsClassifier(k, metric=metric, algorithm="brute", n_jobs=-1)
            calls[f"{metric} k={k}"], theirs[metric, k] = timed(
                lambda model=model: model.fit(bank.numpy(), labels.numpy()).score(queries.numpy(), truth.numpy())
            )
            print(f"  scikit-learn, k={k} {metric}: {calls[f'{metric} k={k}']:.1f} s", flush=True)
    return {
        "ours_s": mine,
        "sklearn_s": calls,
        "extra_GiB": extra,
        "largest_difference": max(abs(accuracies[key] - theirs[key]) for key in accuracies),
        "accuracies": {f"{metric} k={k}": value for (metric, k), value in accuracies.items()},
    }


def seeds_adam(bank: Tensor, labels: Tensor) -> nn.Linear:
    """The second seed's `lin precomp` as its script runs it: Adam 0.1, 100 epochs, batch 1000, cosine by epoch."""
    layer = nn.Linear(bank.shape[1], CLASSES)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for _ in range(100):
        for rows in torch.randperm(len(bank)).split(1000):
            optimizer.zero_grad()
            F.cross_entropy(layer(bank[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    return layer


def linear_probe(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> dict[str, Any]:
    """L-BFGS with its choice of the decay, the second seed's Adam, and how near to scikit-learn's optimum the former is."""
    cut = len(bank) // 10
    few = bank[:1000], labels[:1000]  # both once in small: the first optimiser of a process imports for a second
    linear(*few, *few, classes=CLASSES)
    seeds_adam(*few)
    seconds, given = in_turn(
        {
            "ours": lambda: linear(bank[cut:], labels[cut:], bank[:cut], labels[:cut], classes=CLASSES),
            "adam": lambda: seeds_adam(bank, labels),
        },
        TURNS,
    )
    (probe, decay), adam = given["ours"], given["adam"]
    problem = Problem(bank, labels, CLASSES)
    w = problem.solve([decay])
    x = ((bank - problem.mean) / problem.std).numpy()
    sklearn_s, model = timed(lambda: LogisticRegression(C=1 / (decay * len(x)), max_iter=2000, tol=1e-8).fit(x, labels.numpy()))
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    ours, _ = problem.objective(w, torch.tensor([decay]), problem.x, labels)
    theirs = F.cross_entropy(torch.from_numpy(x) @ weight.T.float() + bias.float(), labels) + decay / 2 * weight.square().sum()
    return {
        "ours_s": seconds["ours"],
        "other_s": seconds["adam"],
        "decays": len(DECAYS),
        "sklearn_one_decay_s": sklearn_s,
        "ours_accuracy": probe.accuracy(queries, truth),
        "other_accuracy": (adam(queries).argmax(1) == truth).double().mean().item(),
        "relative_excess_of_objective": float((ours - theirs) / theirs),
    }


def plain_loop(module: nn.Module, projector: nn.Module, images: Tensor, labels: Tensor, of: dict[str, Any], seed: int) -> nn.Linear:
    """The second seed's probe on augmented images as its script runs it: fp32, contiguous, a graph through encoder and projector."""
    torch.manual_seed(seed)
    layer = nn.Linear(128, CLASSES)
    optimizer = torch.optim.Adam(layer.parameters(), AUGMENTED.learning_rate)
    per_epoch = AUGMENTED.per_epoch(len(images))
    module.eval()
    projector.eval()
    for step in range(AUGMENTED.epochs * per_epoch):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.from_numpy(np.argsort(minibatch.philox(seed, epoch, minibatch.ORDER, len(images)), kind="stable"))
        rows = order[place * AUGMENTED.batch_size : (place + 1) * AUGMENTED.batch_size]
        optimizer.param_groups[0]["lr"] = optim.learning_rate(
            step,
            steps=AUGMENTED.epochs * per_epoch,
            steps_per_epoch=per_epoch,
            peak=AUGMENTED.learning_rate,
            floor=0.0,
            warmup_epochs=0,
            schedule="cosine",
            unit="epoch",
        )
        (x,) = of["make_views"](images[rows], of["views"].draw(seed, step, len(rows)))
        h = module(x.contiguous())
        projector(h)
        optimizer.zero_grad()
        F.cross_entropy(layer(h), labels[rows]).backward()
        optimizer.step()
    return layer


def augmented() -> dict[str, Any]:
    """Both ways on the embedded data, thin16, the same crops and order; median seconds and mean accuracies of some seeds."""
    with tempfile.TemporaryDirectory() as runs_dir:  # an encoder that has learned something
        with contextlib.redirect_stdout(sys.stderr):  # its tables are none of ours
            run = pretrain("demo", backbone="thin16", device="cpu", epochs=2, probe_every=0, probes="knn", runs_dir=runs_dir)
        parts = build.build(config.load("pretrain", ["recipe=demo", "backbone=thin16", "device=cpu", f"init={run}"]))
    images, labels = parts.dataset.split("train+val")
    test, truth = parts.dataset.split("test")
    shape = (images.shape[1], images.shape[2], images.shape[3])
    views = minibatch.crop_and_flip_views(shape, crop_scale=(0.2, 1.0), mean=parts.mean, std=parts.std)
    of: dict[str, Any] = {"views": views, "make_views": build.views_on(parts.machine, views)}
    torch.manual_seed(0)
    plain, _ = backbones.build("thin16", in_channels=shape[0], image_size=shape[1])
    plain.load_state_dict(parts.method.backbone.state_dict())
    projector = mlp([128, 1024, 128], hidden_bn=False, output_bn=False)
    how: dict[str, Any] = {"classes": CLASSES, "schedule": AUGMENTED, "max_steps": None, "embed_dim": 128}
    how |= {"dtype": torch.float32, "autocast": parts.machine.autocast, **of}
    h = parts.embed(parts.method.backbone, test)
    plain_h = embed(plain, test, mean=parts.mean, std=parts.std, device=h.device, autocast=contextlib.nullcontext)  # fp32 from end to end
    ways: dict[str, list[tuple[float, float]]] = {"other": [], "ours": [], "cached_2_of_10_epochs": []}
    for seed in SEEDS:
        seconds, layer = timed(lambda seed=seed: plain_loop(plain, projector, images, labels, of, seed))
        ways["other"].append((seconds, (layer(plain_h).argmax(1) == truth).double().mean().item()))
        for name, cached in (("ours", None), ("cached_2_of_10_epochs", 2)):
            seconds, probe = timed(
                lambda seed=seed, name=name, cached=cached: minibatch.on_views(
                    parts.method.backbone, images, labels, name=name, cached=cached, seed=seed, **how
                )
            )
            ways[name].append((seconds, probe.accuracy(h, truth)))
    found: dict[str, Any] = {f"{name}_s": [s for s, _ in of_seeds] for name, of_seeds in ways.items()}
    return found | {f"{name}_accuracy": mean(a for _, a in of_seeds) for name, of_seeds in ways.items()}


def main() -> int:
    """Print the figures as Markdown; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--small", action="store_true", help="a tenth of the rows")
    arguments = parser.parse_args()
    scale = 10 if arguments.small else 1
    bank, queries = features(50_000 // scale, 0), features(10_000 // scale, 1)
    versions = f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, Python {platform.python_version()}"
    print(f"{cpu_name()}, {torch.get_num_threads()} threads; {versions}; {len(bank[0]):,} x {len(queries[0]):,} x {WIDTH}\n", flush=True)
    figures: dict[str, Any] = {"knn": knn(*bank, *queries)}
    figures["linear"] = linear_probe(*bank, *queries)
    figures["augmented"] = augmented()
    k, p, a = figures["knn"], figures["linear"], figures["augmented"]
    calls, small = list(k["sklearn_s"].values()), median(k["ours_s"])
    accuracies = [f"{100 * x['ours_accuracy']:.2f} and {100 * x['other_accuracy']:.2f}" for x in (p, a)]
    print("\n| read-out | ours, s | the other, s | ours is faster by | accuracy, ours and the other, % |\n|:--|--:|--:|--:|:--|")
    for name, mine, other, faster, accuracy in (
        (
            "six kNN accuracies, against six calls",
            k["ours_s"],
            [sum(calls)],
            sum(calls) / small,
            f"differ by {100 * k['largest_difference']:.2f}",
        ),
        ("the same, against the fastest single call", k["ours_s"], [min(calls)], min(calls) / small, ""),
        ("linear, five decays by L-BFGS, against Adam", p["ours_s"], p["other_s"], times(p["other_s"], p["ours_s"]), accuracies[0]),
        ("linear on augmented images, against the plain loop", a["ours_s"], a["other_s"], times(a["other_s"], a["ours_s"]), accuracies[1]),
    ):
        print(f"| {name} | {said(mine)} | {said(other, '.1f')} | {faster:.1f} x | {accuracy} |")
    print(
        f"\nextra memory of the search: {k['extra_GiB']:.2f} GiB; objective above scikit-learn's optimum by "
        f"{p['relative_excess_of_objective']:.1e} of it ({p['sklearn_one_decay_s']:.1f} s there for one decay)"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"cpu": cpu_name(), "versions": versions, **figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
