"""Evaluation: TwoViews beside scikit-learn and dkobak's loops, in one run. kNN, the linear probe, the probe on augmented images.

    python benchmarks/evaluation.py [--json FILE] [--small]

- kNN and linear probes read generated features as large as ResNet-18's on CIFAR-10: 50,000 and 10,000 rows of 512, rectified, ten
  overlapping classes.
- kNN: the six accuracies of dkobak/simclr-cifar10 (k 1, 5, 10, cosine and Euclidean) are six calls of scikit-learn's
  KNeighborsClassifier, brute force, all cores. Ours are one search.
- Linear probe: dkobak's `lin precomp` is Adam 0.1, 100 epochs, batch 1000. Ours solves the problem by L-BFGS, for five weight decays.
- Probe on augmented images, on the bundled data: the plain loop is fp32, contiguous, with projector and autograd on, as in dkobak's
  script. It uses our crops, so that only the loops differ; its network is plain PyTorch.

The contenders run in turns; seconds are the median of the turns, with the smallest and the largest.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import tempfile
from statistics import mean, median
from typing import Any

import numpy as np
import sklearn
import torch
from measure import in_turn, median_and_range, parser, peak_gib, save, timed, times
from peers import dkobak_linear_precomp
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews import build, config, device, optim, pretrain
from twoviews.models.heads import mlp
from twoviews.models.resnet import build_backbone
from twoviews.probes import minibatch
from twoviews.probes.embed import embed
from twoviews.probes.knn import search, vote
from twoviews.probes.linear import DECAYS, Problem, linear
from twoviews.rng import PROBE_ORDER, philox

CLASSES, WIDTH, TURNS = 10, 512, 3
SEEDS = 3  # of the probe on augmented images, whose accuracy differs by half a point between seeds


def features(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return rectified noisy points around ten centres, about as far apart as those of a trained ResNet-18."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(CLASSES, (n,), generator=generator)
    return F.relu(0.13 * centres[labels] + torch.randn(n, WIDTH, generator=generator)), labels


def knn(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> dict[str, Any]:
    """Measure six accuracies by one search, and by six calls."""

    def ours() -> dict[tuple[str, int], float]:
        found = search(bank, queries, k=10)
        return {
            (metric, k): (vote(neighbours, labels, k=k, classes=CLASSES) == truth).double().mean().item()
            for metric, neighbours in found.items()
            for k in (1, 5, 10)
        }

    seconds, theirs, extra = [], {}, 0.0
    calls: dict[str, float] = {}
    for metric in ("cosine", "euclidean"):
        for k in (1, 5, 10):
            before = peak_gib(reset=True)
            took, accuracies = timed(ours)
            seconds.append(took)
            extra = extra or peak_gib() - before  # of the first search: later ones reuse its memory
            model = KNeighborsClassifier(k, metric=metric, algorithm="brute", n_jobs=-1)
            calls[f"{metric} k={k}"], theirs[metric, k] = timed(
                lambda model=model: model.fit(bank.numpy(), labels.numpy()).score(queries.numpy(), truth.numpy())
            )
            print(f"  scikit-learn, k={k} {metric}: {calls[f'{metric} k={k}']:.1f} s", flush=True)
    return {
        "ours_s": seconds,
        "sklearn_s": calls,
        "extra_GiB": extra,
        "largest_difference": max(abs(accuracies[key] - theirs[key]) for key in accuracies),
        "accuracies": {f"{metric} k={k}": value for (metric, k), value in accuracies.items()},
    }


def linear_probe(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, turns: int) -> dict[str, Any]:
    """Measure L-BFGS with its choice of the weight decay, dkobak's Adam, and the distance to scikit-learn's optimum."""
    cut = len(bank) // 10
    few = bank[:1000], labels[:1000]  # a small first run: the first optimiser of a process imports for a second
    linear(*few, *few, classes=CLASSES)
    dkobak_linear_precomp(*few, CLASSES)
    seconds, results = in_turn(
        {
            "ours": lambda: linear(bank[cut:], labels[cut:], bank[:cut], labels[:cut], classes=CLASSES),
            "adam": lambda: dkobak_linear_precomp(bank, labels, CLASSES),
        },
        turns,
    )
    (probe, decay), adam = results["ours"], results["adam"]
    problem = Problem(bank, labels, CLASSES)
    (w,) = problem.solve([decay])
    x = ((bank - problem.mean) / problem.std).numpy()
    sklearn_s, model = timed(lambda: LogisticRegression(C=1 / (decay * len(x)), max_iter=2000, tol=1e-8).fit(x, labels.numpy()))
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    ours, _ = problem.objective(w, decay, problem.x, labels)
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


def plain_loop(
    encoder: tuple[nn.Module, nn.Module], data: tuple[Tensor, Tensor], crops: dict[str, Any], schedule: minibatch.Schedule, seed: int
) -> nn.Linear:
    """Train dkobak's probe on augmented images as its script does: fp32, contiguous, a graph through encoder and projector."""
    (module, projector), (images, labels) = encoder, data
    torch.manual_seed(seed)
    layer = nn.Linear(128, CLASSES)
    optimizer = torch.optim.Adam(layer.parameters(), schedule.learning_rate)
    per_epoch = schedule.per_epoch(len(images))
    module.eval()
    projector.eval()
    for step in range(schedule.epochs * per_epoch):
        epoch, batch = divmod(step, per_epoch)
        if batch == 0:
            order = torch.from_numpy(np.argsort(philox(seed, epoch, PROBE_ORDER, len(images)), kind="stable"))
        rows = order[batch * schedule.batch_size : (batch + 1) * schedule.batch_size]
        optimizer.param_groups[0]["lr"] = optim.learning_rate(
            step,
            steps=schedule.epochs * per_epoch,
            steps_per_epoch=per_epoch,
            peak=schedule.learning_rate,
            floor=0.0,
            warmup_epochs=0,
            schedule="cosine",
            unit="epoch",
        )
        (x,) = crops["make_views"](images[rows], crops["views"].draw(seed, step, len(rows)))
        h = module(x.contiguous())
        projector(h)
        optimizer.zero_grad()
        F.cross_entropy(layer(h), labels[rows]).backward()
        optimizer.step()
    return layer


def augmented(small: bool) -> dict[str, Any]:
    """Measure both loops on the bundled data with thin16, the same crops and order: seconds and mean accuracies over seeds."""
    schedule = minibatch.Schedule("adam", 0.1, epochs=2 if small else 10, batch_size=1000)
    with tempfile.TemporaryDirectory() as runs_dir:  # an encoder that has learned something
        changes = {"backbone": "thin16", "device": "cpu", "epochs": 2, "probe_every": 0, "probes": "knn", "runs_dir": runs_dir}
        with contextlib.redirect_stdout(sys.stderr):
            run = pretrain("demo", **changes, max_steps=2 if small else None)
        parts = build.build(config.load("pretrain", ["recipe=demo", "backbone=thin16", "device=cpu", f"init={run}"]))
    images, labels = parts.dataset.split("train+val")
    test, truth = parts.dataset.split("test")
    if small:
        images, labels, test, truth = images[:2000], labels[:2000], test[:500], truth[:500]
    shape = (images.shape[1], images.shape[2], images.shape[3])
    views = minibatch.crop_and_flip_views(shape, crop_scale=(0.2, 1.0), mean=parts.views.mean, std=parts.views.std)
    crops: dict[str, Any] = {"views": views, "make_views": build.make_views(parts.machine, views)}
    plain, _ = build_backbone("thin16", in_channels=shape[0], image_size=shape[1])
    plain.load_state_dict(parts.method.backbone.state_dict())
    projector = mlp([128, 1024, 128], hidden_bn=False, output_bn=False)
    options: dict[str, Any] = {"classes": CLASSES, "schedule": schedule, "max_steps": None, "embed_dim": 128, "dtype": torch.float32}
    options |= {"autocast": parts.machine.autocast, **crops}
    h = parts.embed(parts.method.backbone, test)
    plain_h = embed(
        plain, test, mean=parts.views.mean, std=parts.views.std, device=h.device, autocast=contextlib.nullcontext
    )  # all in fp32
    results: dict[str, list[tuple[float, float]]] = {"other": [], "ours": [], "cached_2_of_10_epochs": []}
    for seed in range(1 if small else SEEDS):
        seconds, layer = timed(lambda seed=seed: plain_loop((plain, projector), (images, labels), crops, schedule, seed))
        results["other"].append((seconds, (layer(plain_h).argmax(1) == truth).double().mean().item()))
        for name, cached in (("ours", None), ("cached_2_of_10_epochs", 2)):
            seconds, probe = timed(
                lambda seed=seed, name=name, cached=cached: minibatch.on_views(
                    parts.method.backbone, images, labels, name=name, cached=cached, seed=seed, **options
                )
            )
            results[name].append((seconds, probe.accuracy(h, truth)))
    figures: dict[str, Any] = {f"{name}_s": [seconds for seconds, _ in rows] for name, rows in results.items()}
    return figures | {f"{name}_accuracy": mean(accuracy for _, accuracy in rows) for name, rows in results.items()}


def main() -> int:
    """Print the figures as Markdown; write JSON if asked."""
    arguments = parser(__doc__, "few rows, one turn, two epochs of the augmented probe, one seed").parse_args()
    scale, turns = (50, 1) if arguments.small else (1, TURNS)
    bank, queries = features(50_000 // scale, 0), features(10_000 // scale, 1)
    versions = f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, Python {platform.python_version()}"
    size = f"{len(bank[0]):,} x {len(queries[0]):,} x {WIDTH}"
    print(f"{device.cpu_name()}, {torch.get_num_threads()} threads; {versions}; {size}\n", flush=True)
    k, p, a = knn(*bank, *queries), linear_probe(*bank, *queries, turns), augmented(arguments.small)
    calls, one_search = list(k["sklearn_s"].values()), median(k["ours_s"])
    accuracies = [f"{100 * x['ours_accuracy']:.2f} and {100 * x['other_accuracy']:.2f}" for x in (p, a)]
    difference = f"differ by {100 * k['largest_difference']:.2f}"
    print("\n| evaluation | TwoViews, s | the other, s | TwoViews is faster by | accuracy, TwoViews and the other, % |")
    print("|:--|--:|--:|--:|:--|")
    for name, ours, other, faster, accuracy in (
        ("six kNN accuracies, against six calls", k["ours_s"], [sum(calls)], sum(calls) / one_search, difference),
        ("the same, against the fastest single call", k["ours_s"], [min(calls)], min(calls) / one_search, ""),
        ("linear, five decays by L-BFGS, against Adam", p["ours_s"], p["other_s"], times(p["other_s"], p["ours_s"]), accuracies[0]),
        ("linear on augmented images, against the plain loop", a["ours_s"], a["other_s"], times(a["other_s"], a["ours_s"]), accuracies[1]),
    ):
        print(f"| {name} | {median_and_range(ours)} | {median_and_range(other, '.1f')} | {faster:.1f} x | {accuracy} |")
    print(f"\nextra memory of the search: {k['extra_GiB']:.2f} GiB")
    excess, one_decay = p["relative_excess_of_objective"], p["sklearn_one_decay_s"]
    print(f"L-BFGS objective above scikit-learn's optimum by {excess:.1e} of it (scikit-learn: {one_decay:.1f} s for one decay)")
    save(arguments.json, {"cpu": device.cpu_name(), "versions": versions, "knn": k, "linear": p, "augmented": a})
    return 0


if __name__ == "__main__":
    sys.exit(main())
