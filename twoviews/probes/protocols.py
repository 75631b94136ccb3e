"""Named read-outs: features or a frozen backbone in, rows of the summary out; the protocol stands in every row."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from twoviews.probes.knn import KS, knn
from twoviews.probes.linear import linear, saga
from twoviews.probes.minibatch import Schedule, on_features

PROBES = ("knn", "knn_euclidean", "linear_precomp", "linear_augm", "linear_sgd")
SOLVERS = ("lbfgs", "adam", "sklearn")
FAST = ("knn", "linear_precomp")
SEEDS = ("knn", "knn_euclidean", "linear_precomp", "linear_precomp adam", "linear_augm", "linear_sgd")
ON_IMAGES = ("linear_augm", "linear_sgd")  # these need the backbone and the images, not features

# The second seed's read-outs: `second_seed` is the README that this project was given, `second_seed_v2` its last revision. Its images
# were augmented by crops of a fifth of the area and more, and flips, in batches as large as those of the training.
_FEATURES = {
    "second_seed": Schedule("adam", 0.1, epochs=100, batch_size=1000),
    "second_seed_v2": Schedule("adam", 0.01, epochs=500, batch_size=1000, weight_decay=5e-6),
}
_AUGMENTED = {
    "second_seed": Schedule("adam", 0.1, epochs=100, batch_size=1024),
    "second_seed_v2": Schedule("adam", 0.1, epochs=100, batch_size=512, weight_decay=5e-6),
}
PROTOCOLS = tuple(_FEATURES)
CROPS = {"linear_augm": (0.2, 1.0), "linear_sgd": (0.08, 1.0)}  # areas

Split = tuple[Tensor, Tensor]  # features (N, D), labels (N,)


def parse(probes: str, solver: str | None = None) -> tuple[str, ...]:
    """`fast`, `seeds`, or a list such as `knn,linear_precomp`, as names of read-outs.

    Args:
        probes: see there.
        solver: of `linear_precomp`: one of `SOLVERS`; None: L-BFGS, in `seeds` Adam too.

    Raises:
        ValueError: naming the one that does not exist, or the solver that nothing asks for.
    """
    listed = tuple(name.strip() for name in probes.split(","))
    names = {"fast": FAST, "seeds": SEEDS}.get(probes, listed)
    for name in listed if names is listed else ():
        if name not in PROBES:
            raise ValueError(f"probes={probes}: expected fast, seeds or a list of {', '.join(PROBES)}, got {name!r}")
    if solver is None:
        return names
    if solver == "sklearn" and find_spec("sklearn") is None:
        raise ValueError("solver=sklearn: scikit-learn is not installed: pip install 'twoviews[report]'")
    if "linear_precomp" not in names:
        raise ValueError(f"solver={solver}: {probes} has no linear_precomp to be solved")
    kept = [name for name in names if not name.startswith("linear_precomp ")]
    return tuple(f"{name} {solver}" if name == "linear_precomp" and solver != "lbfgs" else name for name in kept)


def schedule(name: str, *, protocol: str, backbone: str, batch_size: int, **changes: float | None) -> Schedule:
    """How a probe is trained that is trained by minibatches.

    Args:
        name: `linear_precomp adam`, `linear_augm` or `linear_sgd`.
        protocol: one of `PROTOCOLS`: whose numbers the first two have.
        backbone: of the run: the second seed's last revision decays nothing with resnet50.
        batch_size: of the run: both probes on images have its batch, the first seed's a rate of 0.1 x batch / 256.
        changes: fields of `Schedule`; None leaves one as the protocol has it.
    """
    if name == "linear_sgd":
        found = Schedule("sgd", 0.1 * batch_size / 256, epochs=100, batch_size=batch_size, floor=0.001, unit="step", drop_last=True)
    elif name == "linear_augm":
        found = replace(_AUGMENTED[protocol], batch_size=batch_size)
    else:
        found = _FEATURES[protocol]
    if backbone == "resnet50":
        found = replace(found, weight_decay=0.0)
    found = replace(found, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
    return replace(found, floor=min(found.floor, found.learning_rate))


def read_out(
    name: str, *, train: Split, val: Split, test: Split, classes: int, how: Schedule | None, seed: int, max_steps: int | None = None
) -> list[dict[str, Any]]:
    """Rows of one read-out of features.

    Args:
        name: from `parse`, none of `ON_IMAGES`.
        train, val: the bank of the neighbours and the rows that the linear probe is fitted on.
        test: read once, for the accuracy.
        classes: of the data set.
        how: of `linear_precomp adam`.
        seed: of that one's first weights and order.
        max_steps: cuts that one short.

    Returns:
        Dicts with the protocol, `accuracy` in [0, 1] and `seconds`; rows of one search share its seconds.
    """
    bank, labels = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    if name.startswith("knn"):
        metric = "euclidean" if name == "knn_euclidean" else "cosine"
        return timed(
            lambda: [
                {"probe": "knn", "k": k, "metric": metric, "weights": "uniform", "accuracy": accuracy}
                for k, accuracy in knn(bank, labels, *test, ks=[k for k in KS if k <= len(bank)], metric=metric).items()
            ]
        )
    if name == "linear_precomp":

        def solved() -> list[dict[str, Any]]:
            probe, decay = linear(*train, *val, classes=classes)
            return [{"probe": name, "solver": "lbfgs", "weight_decay": decay, "accuracy": probe.accuracy(*test)}]

        return timed(solved)
    if name == "linear_precomp sklearn":

        def regressed() -> list[dict[str, Any]]:
            probe, passes = saga(bank, labels)
            return [{"probe": "linear_precomp", "solver": "sklearn", "epochs": passes, "accuracy": probe.accuracy(*test)}]

        return timed(regressed)
    assert how is not None, "a probe trained by minibatches needs its schedule"
    fitted = how

    def trained() -> list[dict[str, Any]]:
        probe = on_features(bank, labels, classes=classes, schedule=fitted, seed=seed, max_steps=max_steps, name="linear_precomp")
        return [
            {"probe": "linear_precomp", "solver": "adam", **said(fitted, len(bank), seed, max_steps), "accuracy": probe.accuracy(*test)}
        ]

    return timed(trained)


def said(how: Schedule, rows: int, seed: int, max_steps: int | None) -> dict[str, Any]:
    """What a row says of a schedule on so many rows, and of its being cut short."""
    cut = max_steps is not None and max_steps < how.epochs * how.per_epoch(rows)
    return {
        "optimizer": how.optimizer,
        "learning_rate": how.learning_rate,
        "epochs": how.epochs,
        "batch_size": how.batch_size,
        "weight_decay": how.weight_decay,
        "momentum": how.momentum,
        "floor": how.floor,
        "seed": seed,
    } | ({"steps": max_steps} if cut else {})


def timed(rows: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows, each with the seconds that all of them took."""
    began = time.perf_counter()
    found = rows()
    return [{**row, "seconds": round(time.perf_counter() - began, 3)} for row in found]


def protocol(row: dict[str, Any]) -> str:
    """The protocol of a row in words, for tables: `kNN k=10 cosine uniform` or `linear_precomp L-BFGS, decay chosen on val`."""
    if row["probe"] == "knn":
        return f"kNN k={row['k']} {row['metric']} {row['weights']}"
    if row.get("solver") == "lbfgs":
        return f"{row['probe']} L-BFGS, decay chosen on val"
    if row.get("solver") == "sklearn":
        return f"{row['probe']} scikit-learn saga, no penalty, {row['epochs']} passes"
    optimizer = {"adam": "Adam", "sgd": "SGD"}[row["optimizer"]]
    decay = f", decay {row['weight_decay']:g}" if row["weight_decay"] else ""
    momentum = f", momentum {row['momentum']:g}" if row["momentum"] != 0.9 else ""
    cut = f", cut at step {row['steps']}" if row.get("steps") else ""
    return f"{row['probe']} {optimizer} {row['learning_rate']:g}, {row['epochs']} epochs, batch {row['batch_size']}{decay}{momentum}{cut}"
