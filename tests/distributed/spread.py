"""A program for several processes: the loss of SimCLR after 200 steps, for some seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import steps
import tiny
import torch

from twoviews import distributed

SEEDS, STEPS, BATCH = 4, 200, 64


def main(file: str) -> None:
    tiny.make_fast(setattr)
    found = []
    with distributed.group(60):
        for seed in range(SEEDS):
            changes = {
                "batch_size": BATCH,
                "epochs": STEPS * BATCH // steps.SMALL["train_size"],
                "max_steps": None,
                "precision": "fp32",
                "seed": seed,
            }
            found.append(steps.trained(steps.configuration("simclr", **changes))["losses"])
    torch.save({"losses": found}, file)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(*sys.argv[1:])
