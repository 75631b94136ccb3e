"""docs/add-a-method.md: its example costs three files, and the contract tests find it by themselves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COPIED = ("twoviews", "tests", "examples", "pyproject.toml")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in git, with the example added as the page says."""
    copy = tmp_path_factory.mktemp("checkout") / "project"
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    git(copy, "init", "-q")
    commit(copy, "before")
    shutil.copy(copy / "examples/methods/align_uniform.py", copy / "twoviews/methods")
    shutil.copy(copy / "examples/recipes/align_uniform_thin.yaml", copy / "twoviews/config/recipes")
    registry = copy / "twoviews/methods/__init__.py"
    text = registry.read_text()
    line = "from twoviews.methods.barlow_twins import BarlowTwins\n"
    text = text.replace(line, f"from twoviews.methods.align_uniform import AlignUniform\n{line}")
    registry.write_text(text.replace('"simclr": SimCLR,', '"simclr": SimCLR, "align_uniform": AlignUniform,'))
    commit(copy, "align_uniform")
    return copy


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", message)


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=checkout, env=environ, capture_output=True, text=True, timeout=280)


def test_the_example_costs_three_files(checkout: Path) -> None:
    stat = git(checkout, "show", "--stat", "--format=", "HEAD")
    assert "3 files changed" in stat, stat
    assert len((ROOT / "examples/methods/align_uniform.py").read_text().splitlines()) < 80


def test_the_contract_tests_find_it_and_pass(checkout: Path) -> None:
    done = run(
        checkout,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "align_uniform and not stored",
        "tests/methods",
        "tests/test_stored_losses.py",
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 10, "every contract test runs on the new method"


def test_a_missing_stored_file_names_the_command_that_writes_it(checkout: Path) -> None:
    done = run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "align_uniform", "tests/test_stored_losses.py")
    assert done.returncode == 1
    assert "python tests/test_stored_losses.py align_uniform" in done.stdout


@pytest.mark.slow
def test_it_trains_from_the_command_line(checkout: Path) -> None:
    words = [
        "recipe=align_uniform_thin",
        "dataset=fashion_mini",
        "saturation=0",
        "hue=0",
        "grayscale_p=0",
        "max_steps=3",
        "train_size=600",
        "probes=knn",
    ]
    done = run(checkout, "-m", "twoviews", "pretrain", *words, "probe_every=0", "device=cpu", "compile=false", "threads=1")
    assert done.returncode == 0, done.stderr
    assert "kNN k=10 cosine" in done.stdout


@pytest.mark.parametrize("file", ["methods/align_uniform.py", "recipes/align_uniform_thin.yaml"])
def test_the_page_shows_the_files_of_the_example(file: str) -> None:
    page = (ROOT / "docs/add-a-method.md").read_text(encoding="utf-8")
    assert f"\n{(ROOT / 'examples' / file).read_text(encoding='utf-8')}```\n" in page
