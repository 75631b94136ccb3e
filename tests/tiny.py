"""A data set and command words small enough for a test: IDX files of a few Fashion-MNIST images, and runs of seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twoviews import runs
from twoviews.data import READERS
from twoviews.data.arrays import Arrays
from twoviews.data.idx import FILES

TRAIN, TEST, BATCH = 320, 100, 64  # 5 steps an epoch
TIMES = ("seconds", "views_per_s", "tflops")  # what two equal runs may differ in

# The first folder of a subprocess's path: Python imports it at start, and no socket of that process can connect.
GUARD = """
import socket

def refuse(*words):
    raise RuntimeError("a test tried to reach the network")

socket.socket.connect = socket.socket.connect_ex = refuse
"""


@cache
def mini() -> Arrays:
    """The embedded data, read once a process."""
    return READERS["fashion_mini"](None)


def arrays() -> list[np.ndarray]:
    """Training images and labels, test images and labels: the first of each class, classes in turn."""
    full, out = mini(), []
    for images, labels, count in ((full.train_images, full.train_labels, TRAIN), (full.test_images, full.test_labels, TEST)):
        rows = np.stack([np.flatnonzero(labels == c)[: count // 10] for c in range(10)], axis=1).reshape(-1)
        out += [images[rows, 0], labels[rows].astype(np.uint8)]
    return out


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, parts: list[np.ndarray]) -> Path:
    """The four files of Fashion-MNIST, made of `parts`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(FILES, parts, strict=True):
        (folder / name).write_bytes(idx_bytes(part))
    return folder


def words(data: Path, runs_dir: Path, *more: str, recipe: str = "fashion_thin") -> list[str]:
    """A run of one epoch of five steps; a word in `more` takes the place of the word for its key."""
    chosen = [
        f"recipe={recipe}",
        "dataset=fashion_mnist",
        f"data_dir={data}",
        "backbone=thin16",
        f"batch_size={BATCH}",
        "epochs=1",
        "probes=knn",
        "probe_every=0",
        "threads=1",
        "compile=false",
        "precision=fp32",
        "device=cpu",
        f"runs_dir={runs_dir}",
    ]
    if recipe.startswith("moco"):
        chosen += ["queue_size=144", "bn_splits=4"]  # no multiple of a batch: the cursor goes around in the middle of one
    keys = {word.partition("=")[0] for word in more}
    return [word for word in chosen if word.partition("=")[0] not in keys] + list(more)


def environment(tmp: Path, **more: str) -> dict[str, str]:
    """Of a subprocess: one thread, and no way to the network."""
    guard = tmp / "guard"
    guard.mkdir(exist_ok=True)
    (guard / "sitecustomize.py").write_text(GUARD)
    path = os.pathsep.join([str(guard), *filter(None, [os.environ.get("PYTHONPATH")])])  # a mutant's copy of the package, say
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **more}


def command(tmp: Path, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m twoviews <argv>` as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "twoviews", *argv], cwd=cwd or tmp, env=environment(tmp), capture_output=True, text=True, timeout=240
    )


def start(tmp: Path, *argv: str) -> subprocess.Popen[str]:
    """The same, not waited for; its output goes to files, because nobody reads a pipe of a process that is to be killed."""
    with open(tmp / "stdout", "w") as out, open(tmp / "stderr", "w") as err:
        return subprocess.Popen([sys.executable, "-m", "twoviews", *argv], cwd=tmp, env=environment(tmp), stdout=out, stderr=err, text=True)


def only_run(runs_dir: Path) -> Path:
    """The single run folder there."""
    (path,) = [p.parent for p in runs_dir.glob("*/config.yaml")]
    return path


def change(path: Path, name: str, **values: Any) -> None:
    """Other values in one JSON file of a run, sealed as the run would have."""
    with runs.RunFolder(path) as folder:
        folder.write(name, {**runs.read_json(path, name), **values})


def summary(path: Path) -> dict[str, Any]:
    """Of a run."""
    found = json.loads((path / "summary.json").read_text())
    return {key: value for key, value in found.items() if key != "sha256"}


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics or read-outs, less what the clock put there."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def blobs(n: int, d: int, classes: int, *, seed: int, apart: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Noisy points around one centre a class; the centres do not depend on the seed."""
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) * apart
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return (centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64)).to(dtype), labels
