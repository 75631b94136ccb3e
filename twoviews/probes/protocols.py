"""Named read-outs: features in, predictions out, each with a row that says its protocol. No test label comes here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from twoviews.probes.knn import KS, search, vote
from twoviews.probes.linear import linear, saga
from twoviews.probes.minibatch import Schedule, on_features

SOLVERS = ("lbfgs", "adam", "sklearn")
FAST = ("knn", "linear_precomp")
ALL = (
    *("knn", "knn_euclidean", "knn_weighted", "moco_demo", "linear_precomp", "linear_precomp adam", "low_label"),
    *("linear_augm", "linear_augm_cached", "linear_sgd", "low_label_finetune", "finetune"),
)
SEEDS = ("knn", "knn_euclidean", "linear_precomp", "linear_precomp adam", "linear_augm", "linear_sgd")
TUNED = ("finetune", "low_label_finetune")
SHARES = {"low_label": (0.01, 0.1), "low_label_finetune": (0.01, 0.1)}  # of the labels; the others read all
ON_IMAGES = ("linear_augm", "linear_augm_cached", "linear_sgd", *TUNED)  # these need the backbone and the images, not features
CACHED = 16  # views of an image that `linear_augm_cached` makes beforehand


@dataclass(frozen=True)
class Vote:
    """One kNN protocol: k neighbours by a metric, each with a vote of exp(similarity / temperature) or of one, on h or z."""

    k: int
    metric: str = "cosine"
    temperature: float | None = None
    features: str = "h"

    @property
    def weights(self) -> str:
        return "uniform" if self.temperature is None else f"exp(s/{self.temperature:g})"


# The last four are those of the field, with their own settings (docs/protocols.md).
KNN: dict[str, tuple[Vote, ...]] = {
    "knn": tuple(Vote(k) for k in KS),
    "knn_euclidean": tuple(Vote(k, "euclidean") for k in KS),
    "knn_weighted": tuple(Vote(k, temperature=0.1) for k in KS),
    "second_seed": tuple(Vote(k, metric) for metric in ("cosine", "euclidean") for k in (1, 5, 10)),
    "lightly": (Vote(200, temperature=0.1),),
    "moco_demo": (Vote(200, temperature=0.1, features="z"),),
    "wmse": (Vote(5, "euclidean"),),
}
PROBES = (*KNN, "linear_precomp", "low_label", *ON_IMAGES)

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
_CROP_08 = ("linear_sgd", *TUNED)  # SimCLR's smallest crop, the first seed's too; the second seed's is a fifth
CROPS = {name: (0.08 if name in _CROP_08 else 0.2, 1.0) for name in ON_IMAGES}  # areas

Split = tuple[Tensor, Tensor]  # features (N, D), labels (N,)
Read = tuple[dict[str, Any], Tensor]  # a row of the summary, the predicted classes (N,)


def parse(probes: str, solver: str | None = None) -> tuple[str, ...]:
    """`fast`, `seeds`, `all`, or a list such as `knn,linear_precomp`, as names of read-outs.

    Args:
        probes: see there.
        solver: of `linear_precomp`: one of `SOLVERS`; None: L-BFGS, in `seeds` and `all` Adam too.

    Raises:
        ValueError: naming the one that does not exist, or the solver that nothing asks for.
    """
    listed = tuple(name.strip() for name in probes.split(","))
    names = {"fast": FAST, "seeds": SEEDS, "all": ALL}.get(probes, listed)
    for name in listed if names is listed else ():
        if name not in PROBES:
            raise ValueError(f"probes={probes}: expected fast, seeds, all or a list of {', '.join(PROBES)}, got {name!r}")
    if solver is None:
        return names
    if solver == "sklearn" and find_spec("sklearn") is None:
        raise ValueError("solver=sklearn: scikit-learn is not installed: pip install 'twoviews[report]'")
    if "linear_precomp" not in names:
        raise ValueError(f"solver={solver}: {probes} has no linear_precomp to be solved")
    kept = [name for name in names if not name.startswith("linear_precomp ")]
    return tuple(f"{name} {solver}" if name == "linear_precomp" and solver != "lbfgs" else name for name in kept)


def schedule(name: str, *, protocol: str, backbone: str, batch_size: int, share: float = 1.0, **changes: float | None) -> Schedule:
    """How a probe is trained that is trained by minibatches.

    Args:
        name: `linear_precomp adam` or one of `ON_IMAGES`.
        protocol: one of `PROTOCOLS`: whose numbers the first two have.
        backbone: of the run: the second seed's last revision decays nothing with resnet50.
        batch_size: of the run: both probes on images have its batch, the first seed's a rate of 0.1 x batch / 256.
        share: of the labels, for what is fine-tuned: rates and, for 1 % and 10 %, epochs of SimCLR, appendix B.5, in smaller batches.
        changes: fields of `Schedule`; None leaves one as the protocol has it.
    """
    if name == "linear_sgd":
        found = Schedule("sgd", 0.1 * batch_size / 256, epochs=100, batch_size=batch_size, floor=0.001, unit="step", drop_last=True)
    elif name in TUNED:
        batch, epochs = (256, 20) if share == 1 else (64, 60 if share <= 0.01 else 30)
        found = Schedule("sgd", 0.05 * batch / 256, epochs=epochs, batch_size=batch, unit="step")
    elif name in ("linear_augm", "linear_augm_cached"):
        found = replace(_AUGMENTED[protocol], batch_size=batch_size)
    else:
        found = _FEATURES[protocol]
    if backbone == "resnet50":
        found = replace(found, weight_decay=0.0)
    found = replace(found, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
    return replace(found, floor=min(found.floor, found.learning_rate))


def votes(names: Sequence[str], features: str) -> tuple[Vote, ...]:
    """The kNN protocols among the names that read these features (`h` or `z`), each once."""
    return tuple(dict.fromkeys(one for name in names for one in KNN.get(name, ()) if one.features == features))


def neighbours(wanted: Sequence[Vote], *, bank: Split, test: Tensor, classes: int) -> list[Read]:
    """Predictions of kNN protocols, all from one search.

    Args:
        wanted: those with a k above the rows of the bank are left out.
        bank: whose labels vote.
        test: (N, D) features.
        classes: of the data set.

    Returns:
        As `read_out`; rows of one search share its seconds.
    """
    fitting = [one for one in wanted if one.k <= len(bank[0])]
    if not fitting:
        return []

    def searched() -> list[Read]:
        metrics = list(dict.fromkeys(one.metric for one in fitting))
        found = search(bank[0], test, k=max(one.k for one in fitting), metrics=metrics)
        return [
            (
                {"probe": "knn", "k": one.k, "metric": one.metric, "weights": one.weights},
                vote(found[one.metric], bank[1], k=one.k, classes=classes, temperature=one.temperature),
            )
            for one in fitting
        ]

    return timed(searched)


def read_out(
    name: str, *, train: Split, val: Split, test: Tensor, classes: int, how: Schedule | None, seed: int, max_steps: int | None = None
) -> list[Read]:
    """Predictions of one linear read-out of features. Test labels are not among the arguments: the caller scores.

    Args:
        name: from `parse`, none of `KNN` and `ON_IMAGES`.
        train, val: the rows that the probe is fitted on; of `low_label` the few that have labels.
        test: (N, D) features.
        classes: of the data set.
        how: of `linear_precomp adam`.
        seed: of that one's first weights and order.
        max_steps: cuts that one short.

    Returns:
        (a row with the protocol and `seconds`, predicted classes (N,)).
    """
    rows = len(train[1]) + len(val[1])

    def both() -> Split:
        return torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])

    def solved() -> list[Read]:
        probe, decay = linear(*train, *val, classes=classes)
        few = {"labels": rows, "seed": seed} if name == "low_label" else {}
        return [({"probe": name, "solver": "lbfgs", "weight_decay": decay, **few}, probe.predict(test))]

    def regressed() -> list[Read]:
        probe, passes = saga(*both())
        return [({"probe": "linear_precomp", "solver": "sklearn", "epochs": passes}, probe.predict(test))]

    def trained() -> list[Read]:
        assert how is not None, "a probe trained by minibatches needs its schedule"
        probe = on_features(*both(), classes=classes, schedule=how, seed=seed, max_steps=max_steps, name="linear_precomp")
        return [({"probe": "linear_precomp", "solver": "adam", **said(how, rows, seed, max_steps)}, probe.predict(test))]

    return timed({"linear_precomp": solved, "low_label": solved, "linear_precomp sklearn": regressed, "linear_precomp adam": trained}[name])


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


def timed(read: Callable[[], list[Read]]) -> list[Read]:
    """Rows and predictions, each row with the seconds that all of them took."""
    began = time.perf_counter()
    found = read()
    return [({**row, "seconds": round(time.perf_counter() - began, 3)}, predicted) for row, predicted in found]


def protocol(row: dict[str, Any]) -> str:
    """The protocol of a row in words, for tables: `kNN k=10 cosine uniform` or `linear_precomp L-BFGS, decay chosen on val`."""
    if "on" in row:  # another data set than the run's
        return f"{protocol({key: value for key, value in row.items() if key != 'on'})}, on {row['on']}"
    if row["probe"] == "knn":
        on = " on z" if row.get("features") == "z" else ""
        return f"kNN k={row['k']} {row['metric']} {row['weights']}{on}"
    few = f", {row['labels']:,} labels" if "labels" in row else ""
    if row.get("solver") == "lbfgs":
        return f"{row['probe']} L-BFGS, decay chosen on {'a fifth' if few else 'val'}{few}"
    if row.get("solver") == "sklearn":
        return f"{row['probe']} scikit-learn saga, no penalty, {row['epochs']} passes"
    optimizer = {"adam": "Adam", "sgd": "SGD"}[row["optimizer"]]
    decay = f", decay {row['weight_decay']:g}" if row["weight_decay"] else ""
    momentum = f", momentum {row['momentum']:g}" if row["momentum"] != 0.9 else ""
    cut = f", cut at step {row['steps']}" if row.get("steps") else ""
    cut += f", {row['views']} views of each image" if "views" in row else ""
    how = f"{optimizer} {row['learning_rate']:g}, {row['epochs']} epochs, batch {row['batch_size']}"
    return f"{row['probe']} {how}{decay}{momentum}{cut}{few}"
