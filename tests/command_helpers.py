"""What the tests of the commands share: they run a command in this process and look at what it printed and wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import contract
import pytest
import tiny as small
from safetensors.torch import load_file

from twoviews import runs
from twoviews.cli import main
from twoviews.config.schema import RULES
from twoviews.data.arrays import Arrays

RECIPE = {method: min(contract.recipes(method), key=lambda name: not name.endswith("_thin")) for method in RULES["method"].choices}
PLAIN = ("threads=1", "precision=fp32", "compile=false", "device=cpu")  # the words of `tiny.words` that `evaluate` takes too


def pretrained(data: Path, runs_dir: Path, *more: str, recipe: str = "fashion_thin") -> Path:
    """Run `pretrain` on the data of the fixture `few` and return the run folder."""
    assert main(["pretrain", *small.words(data, runs_dir, *more, recipe=recipe, batch=small.FEW_BATCH)]) == 0
    return small.only_run(runs_dir)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the one line with which a command is refused, with exit code 2."""
    capsys.readouterr()
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("twoviews: ")
    assert err.count("\n") == 1
    return err


def fail_with(error: BaseException) -> None:
    """Raise the error: for a lambda."""
    raise error


def poisoned(folder: Path, parts: list[Any], *, test: bool = False, test_images: bool = False) -> Path:
    """Write data whose test labels are moved by one class, or whose test images are inverted."""
    images, labels, other_images, other_labels = parts
    return small.write_idx(folder, [images, labels, 255 - other_images if test_images else other_images, (other_labels + test) % 10])


def cut_mini() -> Arrays:
    """Return the first 1000 training and 200 test images of the bundled data."""
    full = small.mini()
    return replace(
        full,
        train_images=full.train_images[:1000],
        train_labels=full.train_labels[:1000],
        test_images=full.test_images[:200],
        test_labels=full.test_labels[:200],
    )


def weights(path: Path) -> bytes:
    """Return the tensors of a run's backbone; the file also names the run."""
    return b"".join(x.numpy().tobytes() for _, x in sorted(load_file(path / runs.BACKBONE).items()))


def protocols_only(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a summary without their results."""
    results = ("accuracy", "per_class", "confusion", "seconds")
    return [{key: value for key, value in row.items() if key not in results} for row in rows]
