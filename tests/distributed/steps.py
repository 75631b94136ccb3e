"""A program for several processes: gradients, views, weights and queue of every method, stored for comparison."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import contract
import tiny
import torch

from twoviews import build, config, distributed, runs, train
from twoviews.data.dataset import batch_rows
from twoviews.methods import METHODS

BATCH, STEPS = 16, 8
SMALL: dict[str, Any] = {
    **{"dataset": "fashion_mini", "backbone": "thin16", "epochs": 1, "batch_size": BATCH, "precision": "fp64", "seed": 0},
    **{"queue_size": 72, "train_size": 640},  # the queue's cursor wraps in the middle of a batch
    **{"device": "cpu", "threads": 1, "compile": False, "probe_every": 0, "max_steps": STEPS, "log_interval": 0},
}
CASES = {**{name: {} for name in METHODS}, "moco": {"bn_splits": 4}, "moco, whole batch": {"bn_splits": 1}}


def configuration(case: str, **changes: Any) -> config.Config:
    method = case.split(",")[0]
    settings = contract.settings(contract.recipes(method)[0])
    return config.Config(
        {
            **settings,
            **SMALL,
            **contract.small(method, batch=BATCH),
            "view_sizes": [12] * len(contract.sizes(method)),
            **CASES[case],
            **changes,
        }
    )


def gradients(cfg: config.Config) -> dict[str, Any]:
    """Return loss, gradients and views of the first step."""
    parts = build.build(cfg)
    forward = build.make_forward(parts.machine, parts.method, BATCH // distributed.size())
    parts.method.train()
    batch = batch_rows(cfg.seed, 0, len(parts.images), BATCH, drop_last=True)
    own = distributed.rows(BATCH)
    u = parts.views.draw(cfg.seed, 0, BATCH // distributed.size(), own.start).to(parts.machine.dtype)
    views = build.make_views(parts.machine, parts.views)(parts.images[batch[own]], u)
    loss, _ = forward(views, None if parts.labels is None else parts.labels[batch[own]], torch.tensor(0.0))
    loss.backward()
    grads = {name: p.grad for name, p in parts.method.named_parameters() if p.grad is not None}
    return {"loss": distributed.mean(loss), "gradients": grads, "views": views}


def trained(cfg: config.Config) -> dict[str, Any]:
    """Return the method's state after some steps of the training loop, and the losses."""
    parts = build.build(cfg)
    with tempfile.TemporaryDirectory() as scratch:
        path = runs.create(Path(scratch), "run", "{}")
        with runs.RunFolder(path, writes=distributed.first()) as run:
            train.fit(cfg, parts, run)
            losses = [row["loss"] for row in runs.read_metrics(path)] if distributed.first() else []
    return {"state": parts.method.state_dict(), "losses": losses}


def main(file: str, sync_bn: str, splits: str = "", *cases: str) -> None:
    """Store what some cases give, or all; `splits` replaces the number of sub-batches."""
    tiny.make_fast(setattr)
    found = {}
    with distributed.group(60):
        for case in cases or CASES:
            cfg = configuration(case, sync_bn=sync_bn == "true", **({"bn_splits": int(splits)} if splits else {}))
            found[case] = {**gradients(cfg), **trained(cfg)}
    torch.save(found, file)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(*sys.argv[1:])
