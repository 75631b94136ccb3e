"""Runs of earlier releases: every file of theirs is read, and a run that was cut short goes on.

`python tests/test_release.py` stores a run of this version; do so once a release, and keep the older ones.
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
from twoviews import build, checkpoint, config, runs
from twoviews.cli import main
from twoviews.commands import report

STORED = sorted((Path(__file__).parent / "stored").glob("run-*.tar.xz"))
WORDS = ("max_steps=2", "seed=3")


@pytest.mark.parametrize("archive", STORED, ids=lambda path: path.name.removesuffix(".tar.xz"))
def test_c6_a_run_of_an_earlier_release_is_read_and_goes_on(
    archive: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "write", lambda folder, parts: None)
    assert archive.stat().st_size < 200_000
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    path = small.only_run(tmp_path)
    assert [row["step"] for row in runs.metrics(path)] == [0, 1]
    assert len(twoviews.load_backbone(path).state_dict()) > 20
    assert main(["evaluate", f"run={path}", f"data_dir={data}", "probes='knn,moco_demo'"]) == 0
    assert main(["runs", f"runs_dir={tmp_path}"]) == 0
    assert main(["pretrain", f"resume={path}", f"data_dir={data}"]) == 0
    assert "at step 2 of 5" in capsys.readouterr().out
    assert small.summary(path)["train"]["steps"] == 5


def test_c6_there_is_a_run_of_this_release() -> None:
    assert f"run-{version('twoviews')}.tar.xz" in {path.name for path in STORED}


def store() -> None:
    """A run of two steps, its tensors flattened to their means: the form is what is kept, and random weights do not compress."""
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch)
        data = small.write_idx(where / "data", small.arrays())
        assert main(["pretrain", *small.words(data, where / "runs", *WORDS)]) == 0
        path = small.only_run(where / "runs")
        (path / "report.html").unlink()
        with runs.RunFolder(path) as folder:
            cfg = config.load("pretrain", small.words(data, where / "runs", *WORDS))
            parts = build.build(cfg)
            state = checkpoint.load(path, folder.identity)
            for tensors in (state["method"], *state["optimizer"]["state"].values()):
                for x in tensors.values():
                    if isinstance(x, torch.Tensor) and x.is_floating_point():
                        x.fill_(x.mean())
            checkpoint.save(path, state)
            parts.method.load_state_dict(state["method"])
            folder.write(runs.BACKBONE, build.backbone_bytes(cfg, parts, folder.identity))
        for name in (checkpoint.PREVIOUS, ".lock"):
            (path / name).unlink(missing_ok=True)
        target = Path(__file__).parent / f"stored/run-{version('twoviews')}.tar.xz"
        with tarfile.open(where / "run.tar.xz", "w:xz") as tar:
            tar.add(path, "run")
        shutil.copy(where / "run.tar.xz", target)
        print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    store()
