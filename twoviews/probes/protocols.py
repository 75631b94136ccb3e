"""Named read-outs: features in, rows of the summary out; the protocol stands in every row."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from twoviews.probes.knn import KS, knn
from twoviews.probes.linear import linear

NAMED = {"fast": ("knn", "linear")}
PROBES = ("knn", "linear")

Split = tuple[Tensor, Tensor]  # features (N, D), labels (N,)


def parse(probes: str) -> tuple[str, ...]:
    """`fast`, or a list such as `knn,linear`, as names of probes.

    Raises:
        ValueError: naming the one that does not exist.
    """
    names = NAMED.get(probes) or tuple(name.strip() for name in probes.split(","))
    for name in names:
        if name not in PROBES:
            raise ValueError(f"probes={probes}: expected {', '.join(NAMED)} or a list of {', '.join(PROBES)}, got {name!r}")
    return names


def read_out(
    probes: tuple[str, ...], *, of: str, features: str, train: Split, val: Split, test: Split, classes: int
) -> list[dict[str, Any]]:
    """Rows of `summary.json` for one kind of features.

    Args:
        probes: names from `parse`.
        of: whose features: `raw_pixels`, `untrained` or `trained`.
        features: which: `pixels`, `h` or `z`.
        train, val: the bank of the neighbours and the rows that the linear probe is fitted on.
        test: read once, for the accuracy.
        classes: of the data set.

    Returns:
        Dicts with the protocol, `accuracy` in [0, 1] and `seconds`; rows of one search share its seconds.
    """
    import torch

    bank, bank_labels = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    rows: list[dict[str, Any]] = []
    for probe in probes:
        began = time.perf_counter()
        shared = {"of": of, "probe": probe, "features": features, "split": "test"}
        if probe == "knn":
            found = knn(bank, bank_labels, *test, ks=[k for k in KS if k <= len(bank)])
            new = [{**shared, "k": k, "metric": "cosine", "weights": "uniform", "accuracy": accuracy} for k, accuracy in found.items()]
        else:
            solved, decay = linear(*train, *val, classes=classes)
            new = [{**shared, "solver": "lbfgs", "weight_decay": decay, "accuracy": solved.accuracy(*test)}]
        seconds = round(time.perf_counter() - began, 3)
        rows += [{**row, "seconds": seconds} for row in new]
    return rows


def protocol(row: dict[str, Any]) -> str:
    """The protocol of a row in words, for tables: `kNN k=10 cosine uniform` or `linear L-BFGS`."""
    if row["probe"] == "knn":
        return f"kNN k={row['k']} {row['metric']} {row['weights']}"
    return f"linear {row['solver'].replace('lbfgs', 'L-BFGS')}, decay chosen on val"
