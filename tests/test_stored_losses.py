"""Fifty losses of every method in float64, step for step as they were: any change to the numbers shows here.

A change that is meant to change them: `python tests/test_stored_losses.py` writes the files anew; say why in the commit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import contract
import pytest
import torch

from twoviews import build, config, runs, train
from twoviews.methods import METHODS

STORED = Path(__file__).parent / "stored"
STEPS = 50
# The cards are tuned; what is stored here is not. So every key of a card is set here, or free because it decides no loss.
PINNED = {
    "dataset": "fashion_mini",
    "backbone": "thin32",
    "whiten_stem": "false",
    "train_on": "train+val",
    "train_size": "null",
    "epochs": "1",
    "batch_size": "32",
    "drop_last": "true",
    "view_sizes": "[12,12]",
    "crop_scale": "[0.2,1.0]",
    "crop_ratio": "[0.75,1.3333333333]",
    "interpolation": "bilinear",
    "flip_p": "0.5",
    "jitter_p": "0.8",
    "brightness": "0.4",
    "contrast": "0.4",
    "saturation": "0.4",
    "hue": "0.1",
    "grayscale_p": "0.2",
    "blur_p": "0.5",
    "blur_kernel": "3",
    "blur_sigma": "[0.1,2.0]",
    "solarize_p": "0.1",
    "normalize": "true",
    "hidden_dims": "[64]",
    "out_dim": "32",
    "hidden_bn": "true",
    "output_bn": "false",
    "one_forward": "true",
    "temperature": "0.5",
    "queue_size": "240",
    "ema_decay": "0.9",
    "symmetric": "true",
    "bn_splits": "4",
    "optimizer": "sgd",
    "learning_rate": "null",
    "base_learning_rate": "0.3",
    "min_learning_rate": "0.0",
    "momentum": "0.9",
    "nesterov": "true",
    "weight_decay": "0.0005",
    "decay_norms": "false",
    "schedule": "cosine",
    "schedule_unit": "step",
    "warmup_epochs": "0.05",
}
FREE = ("recipe", "method", "probe_every", "checkpoint_every", "log_interval", "probes")
MACHINE = ("seed=0", "precision=fp64", "compile=false", "threads=1", "device=cpu", f"max_steps={STEPS}", "probe_every=0")


def losses(method: str, runs_dir: Path) -> list[float]:
    """The first losses of the real loop, from the method's first card with every number pinned."""
    path = contract.card_paths(method)[0]
    card = contract.read_card(path)
    loose = [key for key in card if key not in PINNED and key not in FREE]
    assert not loose, f"{path.name}: pin {', '.join(loose)} in {Path(__file__).name}, so that tuning the card changes no stored loss"
    pins = [f"{key}={value}" for key, value in PINNED.items() if key in card]
    cfg = config.load("pretrain", [f"recipe={path.stem}", *pins, *MACHINE, f"runs_dir={runs_dir}"])
    threads = torch.get_num_threads()
    try:
        parts = build.build(cfg)
        with runs.RunFolder(runs.create(runs_dir, method, "{}")) as run:
            train.fit(cfg, parts, run)
            return [row["loss"] for row in runs.metrics(run.path)]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("method", list(METHODS))
def test_r5_losses_are_the_stored_ones(method: str, tmp_path: Path) -> None:
    path = STORED / f"{method}.json"
    assert path.is_file(), f"{path.name} is missing: python tests/test_stored_losses.py writes it"
    stored = json.loads(path.read_text())
    assert len(stored) == STEPS
    assert losses(method, tmp_path) == pytest.approx(stored, rel=1e-6, abs=0)


def test_every_stored_file_belongs_to_a_method() -> None:
    assert {path.stem for path in STORED.glob("*.json")} == set(METHODS)


if __name__ == "__main__":
    STORED.mkdir(exist_ok=True)
    for name in sys.argv[1:] or METHODS:
        with tempfile.TemporaryDirectory() as scratch:
            values = losses(name, Path(scratch))
        (STORED / f"{name}.json").write_text("[\n" + ",\n".join(map(repr, values)) + "\n]\n")
        print(f"{name}: {values[0]:.4f} ... {values[-1]:.4f}")
