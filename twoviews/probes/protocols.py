"""Probes by name: features in, predictions out, each with a row that describes its protocol. No test labels are used here."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from twoviews.probes.knn import KS, search, vote
from twoviews.probes.linear import linear
from twoviews.probes.minibatch import Schedule, on_features
from twoviews.probes.saga import saga

SOLVERS = ("lbfgs", "adam", "sklearn")
FAST = ("knn", "linear_precomp")
ALL = (
    *("knn", "knn_euclidean", "knn_weighted", "moco_demo", "linear_precomp", "linear_precomp adam", "low_label"),
    *("linear_augm", "linear_augm_cached", "linear_sgd", "low_label_finetune", "finetune"),
)
REFERENCE = ("knn", "knn_euclidean", "linear_precomp", "linear_precomp adam", "linear_augm", "linear_sgd")
TUNED = ("finetune", "low_label_finetune")
SHARES = {"low_label": (0.01, 0.1), "low_label_finetune": (0.01, 0.1)}  # of the labels; the other probes use all
ON_IMAGES = ("linear_augm", "linear_augm_cached", "linear_sgd", *TUNED)  # these need the backbone and the images, not features
CACHED = 16  # views of each image that `linear_augm_cached` computes in advance


@dataclass(frozen=True)
class Vote:
    """A kNN protocol: k neighbours by a metric on h or z. A vote weighs exp(similarity / temperature), or 1 without temperature."""

    k: int
    metric: str = "cosine"
    temperature: float | None = None
    features: str = "h"

    @property
    def weights(self) -> str:
        return "uniform" if self.temperature is None else f"exp(s/{self.temperature:g})"


# The last four are protocols of other projects, with their settings (docs/protocols.md).
KNN: dict[str, tuple[Vote, ...]] = {
    "knn": tuple(Vote(k) for k in KS),
    "knn_euclidean": tuple(Vote(k, "euclidean") for k in KS),
    "knn_weighted": tuple(Vote(k, temperature=0.1) for k in KS),
    "dkobak": tuple(Vote(k, metric) for metric in ("cosine", "euclidean") for k in (1, 5, 10)),
    "lightly": (Vote(200, temperature=0.1),),
    "moco_demo": (Vote(200, temperature=0.1, features="z"),),
    "wmse": (Vote(5, "euclidean"),),
}
PROBES = (*KNN, "linear_precomp", "low_label", *ON_IMAGES)

# Probes of dkobak/simclr-cifar10: `dkobak` has the settings of its README of June 2025, `dkobak_v2` those of its last revision. Its images
# are augmented by crops of at least a fifth of the area and flips, in batches as large as in training.
_FEATURES = {
    "dkobak": Schedule("adam", 0.1, epochs=100, batch_size=1000),
    "dkobak_v2": Schedule("adam", 0.01, epochs=500, batch_size=1000, weight_decay=5e-6),
}
_AUGMENTED = {
    "dkobak": Schedule("adam", 0.1, epochs=100, batch_size=1024),
    "dkobak_v2": Schedule("adam", 0.1, epochs=100, batch_size=512, weight_decay=5e-6),
}
PROTOCOLS = tuple(_FEATURES)
_CROP_08 = ("linear_sgd", *TUNED)  # smallest crop of SimCLR and of p3i0t; dkobak's is a fifth
CROPS = {name: (0.08 if name in _CROP_08 else 0.2, 1.0) for name in ON_IMAGES}  # crop_scale of each

Split = tuple[Tensor, Tensor]  # features (N, D), labels (N,)
Prediction = tuple[dict[str, Any], Tensor]  # a row of the summary, the predicted classes (N,)


def parse(probes: str, solver: str | None = None) -> tuple[str, ...]:
    """Return the names of probes for `fast`, `reference`, `all`, or a list such as `knn,linear_precomp`.

    Args:
        probes: see above.
        solver: of `linear_precomp`, one of `SOLVERS`; None: L-BFGS, in `reference` and `all` Adam too.

    Raises:
        ValueError: if a name does not exist, scikit-learn is missing, or no probe uses the solver.
    """
    listed = tuple(name.strip() for name in probes.split(","))
    names = {"fast": FAST, "reference": REFERENCE, "all": ALL}.get(probes, listed)
    for name in listed if names is listed else ():
        if name not in PROBES:
            raise ValueError(f"probes={probes}: expected fast, reference, all or a list of {', '.join(PROBES)}, got {name!r}")
    if solver is None:
        return names
    if "linear_precomp" not in names:
        raise ValueError(f"solver={solver}: probes={probes} has no linear_precomp: add it, or leave solver out")
    kept = [name for name in names if not name.startswith("linear_precomp ")]
    return tuple(f"{name} {solver}" if name == "linear_precomp" and solver != "lbfgs" else name for name in kept)


def schedule(name: str, *, protocol: str, backbone: str, batch_size: int, share: float = 1.0, **changes: float | None) -> Schedule:
    """Return the schedule of a probe that is trained by minibatches.

    Args:
        name: `linear_precomp adam` or one of `ON_IMAGES`.
        protocol: one of `PROTOCOLS`: the settings of the Adam probes.
        backbone: of the run; dkobak's last revision has no weight decay with resnet50.
        batch_size: of the run; probes on images use it, and `linear_sgd` (p3i0t's) has a rate of 0.1 x batch / 256.
        share: of the labels, for fine-tuning: rates and epochs of SimCLR, appendix B.5, in smaller batches.
        changes: fields of `Schedule`; None keeps the protocol's value.
    """
    if name == "linear_sgd":
        chosen = Schedule("sgd", 0.1 * batch_size / 256, epochs=100, batch_size=batch_size, floor=0.001, unit="step", drop_last=True)
    elif name in TUNED:
        batch, epochs = (256, 20) if share == 1 else (64, 60 if share <= 0.01 else 30)
        chosen = Schedule("sgd", 0.05 * batch / 256, epochs=epochs, batch_size=batch, unit="step")
    elif name in ("linear_augm", "linear_augm_cached"):
        chosen = replace(_AUGMENTED[protocol], batch_size=batch_size)
    else:
        chosen = _FEATURES[protocol]
    if backbone == "resnet50":
        chosen = replace(chosen, weight_decay=0.0)
    chosen = replace(chosen, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
    return replace(chosen, floor=min(chosen.floor, chosen.learning_rate))


def votes(names: Sequence[str], features: str) -> tuple[Vote, ...]:
    """Return the kNN protocols among the names that use these features (`h` or `z`), each once."""
    return tuple(dict.fromkeys(one for name in names for one in KNN.get(name, ()) if one.features == features))


def neighbours(wanted: Sequence[Vote], *, bank: Split, test: Tensor, classes: int, leave_one_out: bool = False) -> list[Prediction]:
    """Return predictions of kNN protocols, all from one search.

    Args:
        wanted: the protocols; those with k above the rows of the bank are skipped.
        bank: features and labels of the voting images.
        test: (N, D) features.
        classes: of the data set.
        leave_one_out: see `knn.search`.

    Returns:
        As `predict`; rows of one search share its seconds.
    """
    labels = bank[1].to(test.device)
    fitting = [one for one in wanted if one.k <= len(bank[0]) - leave_one_out]
    if not fitting:
        return []

    def run() -> list[Prediction]:
        metrics = list(dict.fromkeys(one.metric for one in fitting))
        neighbours_by_metric = search(bank[0], test, k=max(one.k for one in fitting), metrics=metrics, leave_one_out=leave_one_out)
        return [
            (
                {"probe": "knn", "k": one.k, "metric": one.metric, "weights": one.weights},
                vote(neighbours_by_metric[one.metric], labels, k=one.k, classes=classes, temperature=one.temperature),
            )
            for one in fitting
        ]

    return timed(run)


def predict(
    name: str, *, train: Split, val: Split, test: Tensor, classes: int, training: Schedule | None, seed: int, max_steps: int | None = None
) -> list[Prediction]:
    """Return predictions of one linear probe on features. Test labels are not among the arguments: the caller compares.

    Args:
        name: from `parse`, none of `KNN` and `ON_IMAGES`.
        train, val: the rows that the probe is fitted on; for `low_label`, only those with labels.
        test: (N, D) features.
        classes: of the data set.
        training: schedule of `linear_precomp adam`.
        seed: of the initial weights and the order of the rows.
        max_steps: stop training after so many steps.

    Returns:
        (a row with the protocol and `seconds`, predicted classes (N,)).
    """
    rows = len(train[1]) + len(val[1])
    train, val = ((features, labels.to(test.device)) for features, labels in (train, val))

    def train_and_val() -> Split:
        return torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])

    def run_lbfgs() -> list[Prediction]:
        probe, decay = linear(*train, *val, classes=classes)
        few = {"labels": rows, "seed": seed} if name == "low_label" else {}
        return [({"probe": name, "solver": "lbfgs", "weight_decay": decay, **few}, probe.predict(test))]

    def run_saga() -> list[Prediction]:
        probe, passes = saga(*train_and_val())
        return [({"probe": "linear_precomp", "solver": "sklearn", "epochs": passes}, probe.predict(test))]

    def run_adam() -> list[Prediction]:
        assert training is not None, "a probe trained by minibatches needs its schedule"
        probe = on_features(*train_and_val(), classes=classes, schedule=training, seed=seed, max_steps=max_steps, name="linear_precomp")
        return [({"probe": "linear_precomp", "solver": "adam", **describe(training, rows, seed, max_steps)}, probe.predict(test))]

    by_lbfgs = dict.fromkeys(("linear_precomp", "low_label"), run_lbfgs)
    return timed({**by_lbfgs, "linear_precomp sklearn": run_saga, "linear_precomp adam": run_adam}[name])


def describe(training: Schedule, rows: int, seed: int, max_steps: int | None) -> dict[str, Any]:
    """Return the fields of a row that describe a schedule on so many training rows, and `steps` if it was cut short."""
    cut = max_steps is not None and max_steps < training.epochs * training.per_epoch(rows)
    return {
        "optimizer": training.optimizer,
        "learning_rate": training.learning_rate,
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "weight_decay": training.weight_decay,
        "momentum": training.momentum,
        "floor": training.floor,
        "seed": seed,
    } | ({"steps": max_steps} if cut else {})


def timed(run: Callable[[], list[Prediction]]) -> list[Prediction]:
    """Return rows and predictions; each row has the seconds that they all took together."""
    began = time.perf_counter()
    predictions = run()
    seconds = round(time.perf_counter() - began, 3)
    return [({**row, "seconds": seconds}, predicted) for row, predicted in predictions]


def protocol(row: dict[str, Any]) -> str:
    """Return the protocol of a row for tables: `kNN k=10 cosine uniform` or `linear_precomp L-BFGS, decay chosen on val`."""
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
