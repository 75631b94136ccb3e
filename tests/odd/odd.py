"""What a case of `test_odd_inputs.py` needs: make files, run a command, and look at what it printed and left."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twoviews.cli import main

SIZE = 16  # pixels of the images that `Odd.images` writes, and the image_size of its runs
WORDS = ("backbone=thin16", "batch_size=8", "epochs=1", "probes=knn", "probe_every=0", "threads=1", "compile=false", "precision=fp32")


@dataclass
class Odd:
    """A folder for one case.

    Args:
        root: an empty folder; `data` in it is the user's, `runs` is ours.
    """

    root: Path
    before: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The user's folder of images."""
        return self.root / "photos"

    @property
    def runs(self) -> Path:
        """The folder of the run folders."""
        return self.root / "runs"

    def images(self, *folders: str, each: int = 12, seed: int = 0) -> None:
        """Write `each` different images of noise to each folder below `data`."""
        random = np.random.default_rng([seed, len(folders)])
        for name in folders:
            (self.data / name).mkdir(parents=True, exist_ok=True)
            for i in range(each):
                pixels = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
                Image.fromarray(pixels).save(self.data / name / f"{seed}-{i:03}.png")

    def run(self, verb: str, *words: str) -> tuple[int, str, str]:
        """Run a command in this process on `data` and return (exit code, standard output, standard error)."""
        given = {word.partition("=")[0] for word in words}
        common: list[str] = []
        if verb == "pretrain":
            common = ["recipe=cifar_thin", "dataset=folder", f"data_dir={self.data}", f"image_size={SIZE}", f"runs_dir={self.runs}", *WORDS]
        elif verb == "data":
            common = [f"data_dir={self.data}", f"image_size={SIZE}", f"to={self.root / 'images.png'}"]
        kept = [word for word in common if word.partition("=")[0] not in given]
        self.before = self.before or fingerprints(self.data)
        return self.said(lambda: main([verb, *kept, *words]))

    def said(self, action: Callable[[], Any]) -> tuple[Any, str, str]:
        """Call a function and return (what it returns, standard output, standard error)."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            result = action()
        return result, out.getvalue(), err.getvalue()

    def refused(self, verb: str, *words: str) -> str:
        """Run a command that must be refused in one line with exit code 2 and leave no run; return the line."""
        code, _, err = self.run(verb, *words)
        assert code == 2, f"exit code {code}: {err}"
        assert err.startswith("twoviews: ")
        assert err.count("\n") == 1, err
        assert not list(self.runs.glob("*/config.yaml")), "a refused command left a run"
        return err

    def trained(self, *words: str) -> tuple[Path, str]:
        """Run `pretrain`, which must succeed; return its run folder and what it printed."""
        code, out, err = self.run("pretrain", *words)
        assert code == 0, err
        (path,) = [file.parent for file in self.runs.glob("*/config.yaml")]
        return path, out

    def check_nothing_lost(self) -> None:
        """Fail if a file of the user's folder was changed, removed or added."""
        assert not self.before or fingerprints(self.data) == self.before


def fingerprints(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by name."""
    found: dict[str, str] = {}
    for current, _, names in os.walk(folder):
        for name in names:
            path = Path(current) / name
            if path.is_file() and os.access(path, os.R_OK):
                found[os.fsencode(path).hex()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


Case = Callable[[Odd], Any]
