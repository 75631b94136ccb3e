"""The wheel holds what the program needs, and works where there is no checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from tiny import environment, only_run, summary

import twoviews
from twoviews import config, rules

PACKAGE = Path(twoviews.__file__).parent
ROOT = PACKAGE.parent


def run(tmp: Path, *argv: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """A Python command in an empty folder, with `path` before everything else that Python would import."""
    env = environment(tmp)
    env["PYTHONPATH"] = ":".join(filter(None, (path, env["PYTHONPATH"])))
    empty = tmp / "empty"
    empty.mkdir(exist_ok=True)
    return subprocess.run([sys.executable, *argv], cwd=empty, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network from what is in the checkout."""
    tmp = tmp_path_factory.mktemp("wheel")
    built = run(tmp, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp / "dist"), str(ROOT))
    assert built.returncode == 0, built.stderr
    (path,) = (tmp / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The folder that the wheel is installed in."""
    tmp = tmp_path_factory.mktemp("installed")
    done = run(tmp, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(tmp / "site"), str(wheel))
    assert done.returncode == 0, done.stderr
    return tmp / "site"


def test_x5_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        about = [name for name in file.namelist() if ".dist-info/" in name]
    here = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == here
    for kind in (
        "conf/pretrain.yaml",
        "conf/recipe/fashion_thin.yaml",
        "assets/fashion_mini.npz.xz",
        "pixels.cpp",
        "batchnorm.cpp",
        "memory.cpp",
        "templates/report.html",
    ):
        assert f"twoviews/{kind}" in names
    assert not [name for name in names if "test" in name]
    assert [name for name in about if name.endswith("LICENSE")]
    assert [name for name in about if name.endswith("entry_points.txt")]
    assert wheel.stat().st_size < 8 * 2**20


def test_the_installed_package_is_the_one_that_runs(tmp_path: Path, installed: Path) -> None:
    done = run(tmp_path, "-c", "import twoviews; print(twoviews.__file__)", path=str(installed))
    assert done.stdout.strip() == str(installed / "twoviews/__init__.py")


def test_an_installed_package_shows_its_cards(tmp_path: Path, installed: Path) -> None:
    for recipe in rules.RULES["recipe"].choices:
        done = run(tmp_path, "-m", "twoviews", "pretrain", f"recipe={recipe}", "--cfg", "job", path=str(installed))
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(done.stdout) == dict(config.load("pretrain", [f"recipe={recipe}"]))


def test_x5_an_installed_package_trains_on_its_embedded_data(tmp_path: Path, installed: Path) -> None:
    words = ["dataset=fashion_mini", "backbone=thin16", "max_steps=2", "probes=knn", "threads=1", "compile=false", "device=cpu"]
    done = run(tmp_path, "-m", "twoviews", "pretrain", "recipe=fashion_thin", *words, path=str(installed))
    assert done.returncode == 0, done.stderr
    path = only_run(tmp_path / "empty/runs")
    assert summary(path)["train"]["steps"] == 2
    assert (path / "report.html").is_file()
    assert [p.name for p in (tmp_path / "empty").iterdir()] == ["runs"]
