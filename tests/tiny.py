"""Data and commands small enough for a test: IDX files of a few Fashion-MNIST images, and runs of seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twoviews import config, runs
from twoviews.data import READERS
from twoviews.data.arrays import Arrays
from twoviews.data.idx import FILES
from twoviews.models import resnet

TRAIN, TEST, BATCH = 320, 100, 64  # 5 steps an epoch
FEW, FEW_TEST, FEW_BATCH = 40, 20, 8  # 5 steps an epoch too
TIMES = ("seconds", "views_per_s", "tflops")  # what two equal runs may differ in

# Python imports this file when a subprocess starts; no socket of that process can connect.
GUARD = """
import socket

def refuse(*words):
    raise RuntimeError("a test tried to reach the network")

socket.socket.connect = socket.socket.connect_ex = refuse
"""


@cache
def mini() -> Arrays:
    """Return the bundled data, read once per process."""
    return READERS["fashion_mini"](None)


def arrays(train: int = TRAIN, test: int = TEST) -> list[np.ndarray]:
    """Return training images and labels, test images and labels: the first of each class, classes in turn."""
    full, out = mini(), []
    for images, labels, count in ((full.train_images, full.train_labels, train), (full.test_images, full.test_labels, test)):
        rows = np.stack([np.flatnonzero(labels == c)[: count // 10] for c in range(10)], axis=1).reshape(-1)
        out += [images[rows, 0], labels[rows].astype(np.uint8)]
    return out


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an IDX file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, parts: list[np.ndarray]) -> Path:
    """Write the four files of Fashion-MNIST and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(FILES, parts, strict=True):
        (folder / name).write_bytes(idx_bytes(part))
    return folder


def words(data: Path, runs_dir: Path, *more: str, recipe: str = "fashion_thin", batch: int = BATCH) -> list[str]:
    """Return the words of a run of one epoch of five steps; a word in `more` replaces the word for its key.

    Args:
        data: the folder of the fixture `data`, or of `few` with `batch=FEW_BATCH`.
        runs_dir: where the run folder is created.
        more: words that replace others or are added.
        recipe: its name.
        batch: the batch size.
    """
    chosen = [
        f"recipe={recipe}",
        "dataset=fashion_mnist",
        f"data_dir={data}",
        "backbone=thin16",
        f"batch_size={batch}",
        "epochs=1",
        "probes=knn",
        "probe_every=0",
        "checkpoint_seconds=0",
        "threads=1",
        "compile=false",
        "precision=fp32",
        "device=cpu",
        f"runs_dir={runs_dir}",
    ]
    cfg = config.load("pretrain", [f"recipe={recipe}"])
    if cfg.get("queue_size"):
        chosen += [f"queue_size={batch * 9 // 4}"]  # no multiple of a batch: the cursor wraps in the middle of one
    chosen += ["bn_splits=4"] if "bn_splits" in cfg else []
    chosen += [f"whitening_size={batch}", f"out_dim={batch // 2}"] if "whitening_size" in cfg else []
    keys = {word.partition("=")[0] for word in more}
    return [word for word in chosen if word.partition("=")[0] not in keys] + list(more)


def environment(tmp: Path, **more: str) -> dict[str, str]:
    """Return the environment of a subprocess: one thread, and no network."""
    guard = tmp / "guard"
    guard.mkdir(exist_ok=True)
    (guard / "sitecustomize.py").write_text(GUARD)
    path = os.pathsep.join([str(guard), *filter(None, [os.environ.get("PYTHONPATH")])])  # it may name a mutant of the package
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **more}


def command(tmp: Path, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m twoviews <argv>`, as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "twoviews", *argv], cwd=cwd or tmp, env=environment(tmp), capture_output=True, text=True, timeout=240
    )


def start(tmp: Path, *argv: str) -> subprocess.Popen[str]:
    """Start the same without waiting; the output goes to files, because nobody reads the pipe of a process that is killed."""
    with open(tmp / "stdout", "w") as out, open(tmp / "stderr", "w") as err:
        return subprocess.Popen([sys.executable, "-m", "twoviews", *argv], cwd=tmp, env=environment(tmp), stdout=out, stderr=err, text=True)


def make_fast(set_attribute: Callable[..., object]) -> None:
    """Make the runs of this process ten times faster.

    `thin16` gets 8 channels, operations are not counted, no map is computed, no report is drawn, and files are not flushed to
    disk, which only a power failure would show.

    Args:
        set_attribute: `setattr`, or a monkeypatch's, which undoes it.
    """
    from twoviews import inspection, train
    from twoviews.report import html

    def smaller(in_channels: int, image_size: int) -> tuple[nn.Module, int]:
        return resnet.ThinResNet(in_channels=in_channels, widths=(8, 16), blocks=(1, 1), stem_stride=2), 16

    set_attribute(resnet, "BACKBONES", {**resnet.BACKBONES, "thin16": smaller})
    set_attribute(train, "step_flops", lambda *args, **more: None)
    set_attribute(html, "write", lambda *args: None)
    set_attribute(inspection, "_plane", lambda h: ("t-SNE", h[:, :2]))
    set_attribute(os, "fsync", lambda handle: None)


def only_run(runs_dir: Path) -> Path:
    """Return the single run folder there."""
    (path,) = [p.parent for p in runs_dir.glob("*/config.yaml")]
    return path


def change(path: Path, name: str, **values: Any) -> None:
    """Change values in one JSON file of a run, with a new checksum."""
    with runs.RunFolder(path) as folder:
        folder.write(name, {**runs.read_json(path, name), **values})


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Return the content of one JSON file of a run, without its checksum."""
    return {key: value for key, value in json.loads((path / name).read_text()).items() if key != "sha256"}


def summary(path: Path) -> dict[str, Any]:
    """Return the summary of a run."""
    return read_json(path, runs.SUMMARY)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of metrics or evaluations, without values that depend on the clock."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def blobs(n: int, d: int, classes: int, *, seed: int, apart: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return noisy points around one centre per class; the centres do not depend on the seed."""
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) * apart
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return (centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64)).to(dtype), labels
