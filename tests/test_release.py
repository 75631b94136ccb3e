"""Runs of earlier releases: every file is read, and a run that `max_steps` ended is continued.

`python tests/test_release.py` stores a run of this version. Do so once per release, and keep the older ones.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
import tiny as small
import torch

import twoviews
from twoviews import build, config, runs
from twoviews.cli import main
from twoviews.runs import checkpoint

STORED = sorted((Path(__file__).parent / "stored").glob("run-*.tar.xz"))
WORDS = ("max_steps=2", "seed=3")


@pytest.mark.parametrize("archive", STORED, ids=lambda path: path.name.removesuffix(".tar.xz"))
def test_c6_a_run_of_an_earlier_release_is_read_and_continues(
    archive: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert archive.stat().st_size < 200_000
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    path = small.only_run(tmp_path)
    assert [row["step"] for row in runs.read_metrics(path)] == [0, 1]
    assert len(twoviews.load_backbone(path).state_dict()) > 20
    assert main(["evaluate", f"run={path}", f"data_dir={few}", "probes='knn,moco_demo'"]) == 0
    assert main(["runs", f"runs_dir={tmp_path}"]) == 0
    assert main(["report", f"run={path}", f"data_dir={few}"]) == 0
    shutil.copytree(path, tmp_path / "other")
    assert main(["report", "run=run,other", f"runs_dir={tmp_path}", f"to={tmp_path / 'page.html'}"]) == 0
    shutil.rmtree(tmp_path / "other")
    assert main(["pretrain", f"resume={path}", f"data_dir={few}"]) == 0
    assert "at step 2 of 5" in capsys.readouterr().out
    assert small.summary(path)["train"]["steps"] == 5
    assert "How to repeat it" in (path / runs.REPORT).read_text(encoding="utf-8")


def test_c6_there_is_a_run_of_this_release() -> None:
    assert f"run-{version('twoviews')}.tar.xz" in {path.name for path in STORED}


def store() -> None:
    """Store a run of two steps, its tensors replaced by their means: only the form matters, and random weights do not compress."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = small.write_idx(folder / "data", small.arrays(small.FEW, small.FEW_TEST))
        words = small.words(data, folder / "runs", *WORDS, batch=small.FEW_BATCH)
        assert main(["pretrain", *words]) == 0
        path = small.only_run(folder / "runs")
        with runs.RunFolder(path) as run:
            cfg = config.load("pretrain", words)
            parts = build.build(cfg)
            state = checkpoint.load(path, run.identity)
            for tensors in (state["method"], *state["optimizer"]["state"].values()):
                for x in tensors.values():
                    if isinstance(x, torch.Tensor) and x.is_floating_point():
                        x.fill_(x.mean())
            checkpoint.save(path, state)
            parts.method.load_state_dict(state["method"])
            run.write(runs.BACKBONE, build.backbone_bytes(cfg, parts, run.identity))
        for name in (runs.PREVIOUS, runs.REPORT, ".lock", ".holder"):
            (path / name).unlink(missing_ok=True)
        target = Path(__file__).parent / f"stored/run-{version('twoviews')}.tar.xz"
        with tarfile.open(target, "w:xz") as tar:
            tar.add(path, "run")
        print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    store()
