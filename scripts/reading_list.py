"""List what a reader opens to follow SimCLR from the command line to the loss, and count its lines.

Not in the list: `config/schema.py`, a table of ranges that nobody reads in order, and what follows the loss (optimiser, probes, report).

    python scripts/reading_list.py
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "twoviews"
FILES = [  # in reading order
    "cli.py",
    "config/base.yaml",
    "config/recipes/cifar_thin.yaml",
    "config/load.py",
    "commands/pretrain.py",
    "build.py",
    "inputs.py",
    "data/dataset.py",
    "rng.py",
    "views/spec.py",
    "views/ops.py",
    "models/resnet.py",
    "models/heads.py",
    "methods/base.py",
    "methods/simclr.py",
    "losses/contrastive.py",
    "train.py",
]

if __name__ == "__main__":
    total = 0
    for name in FILES:
        lines = len((PACKAGE / name).read_text(encoding="utf-8").splitlines())
        total += lines
        print(f"{lines:5}  twoviews/{name}")
    print(f"{total:5}  lines in {len(FILES)} files")
