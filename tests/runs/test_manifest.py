"""The manifest: the command as it was typed, and the commit of the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny as small

from twoviews.cli import main
from twoviews.runs import manifest


@pytest.mark.parametrize(
    ("program", "typed", "kept"),
    [
        ("/home/me/.venv/bin/twoviews", ["/home/me/.venv/bin/twoviews", "pretrain", "seed=0,1", "-m"], "twoviews pretrain seed=0,1 -m"),
        ("twoviews pretrain", ["/home/me/.venv/bin/twoviews", "pretrain", "seed=0,1", "-m"], "twoviews pretrain seed=0,1 -m"),  # in a sweep
        ("/lib/twoviews/__main__.py", ["-m", "twoviews", "pretrain", "data_dir=a b"], "twoviews pretrain 'data_dir=a b'"),
        ("/lib/twoviews/__main__.py", ["-W", "ignore", "-Xdev", "-mtwoviews", "pretrain"], "twoviews pretrain"),
        ("simclr.py", ["-O", "simclr.py", "backbone=resnet18"], "python simclr.py backbone=resnet18"),
        ("/home/me/script.py", ["/home/me/script.py"], "python script.py"),
        ("", [], "python"),
    ],
)
def test_the_manifest_keeps_the_command_as_it_was_typed(program: str, typed: list[str], kept: str) -> None:
    assert manifest._command([program], ["python", *typed]) == kept


def test_the_manifests_commit_is_the_packages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the commit of a repository that contains the environment."""
    package = tmp_path / "lib/twoviews"
    package.mkdir(parents=True)

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-qm", "a")
    monkeypatch.setattr(manifest, "__file__", str(package / "runs/manifest.py"))
    assert manifest._commit() is None
    (tmp_path / "twoviews").mkdir()
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "twoviews/runs/manifest.py"))
    assert manifest._commit() == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("b")
    assert manifest._commit() == git("rev-parse", "HEAD") + "+"


def test_the_manifests_of_a_sweep_have_the_verb_and_no_folder_of_hydra(
    fast: None, tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = small.words(few, tmp_path / "runs", "seed=0,1", "max_steps=1", batch=small.FEW_BATCH)
    typed = ["twoviews", "pretrain", *words, "--multirun"]
    monkeypatch.setattr(sys, "argv", ["/home/me/.venv/bin/twoviews", *typed[1:]])
    monkeypatch.setattr(sys, "orig_argv", ["/home/me/.venv/bin/python", *sys.argv])
    assert main() == 0
    manifests = list((tmp_path / "runs").glob("*/manifest.json"))
    assert len(manifests) == 2
    for path in manifests:
        command = json.loads(path.read_text())["command"]
        assert command.startswith("twoviews pretrain recipe=")
        assert command.endswith("--multirun")
