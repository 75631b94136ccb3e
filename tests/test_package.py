"""The wheel contains every file that the program needs, and works without the checkout."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.build import build_sdist, build_wheel
from tiny import environment, only_run, summary

import twoviews
from twoviews import config

PACKAGE = Path(twoviews.__file__).parent
ROOT = PACKAGE.parent


def run(tmp: Path, site: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a Python command in an empty folder, where the package is imported from `site`."""
    env = environment(tmp)
    env["PYTHONPATH"] = f"{site}:{env['PYTHONPATH']}"
    empty = tmp / "empty"
    empty.mkdir()
    return subprocess.run([sys.executable, *argv], cwd=empty, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout, built by the function that pip calls."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / build_wheel(str(folder))


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """The folder of the unpacked wheel, which is how pip installs one."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(wheel.parent / "site")
    return wheel.parent / "site"


def test_x5_the_wheel_contains_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        packed = {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}
        metadata = [name for name in file.namelist() if ".dist-info/" in name]
    paths = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert packed == {str(path.relative_to(ROOT)): path.read_bytes() for path in paths}
    for name in (
        "config/base.yaml",
        "config/pretrain.yaml",
        "config/recipes/fashion_thin.yaml",
        "assets/fashion_mini.npz.xz",
        "assets/fashion_mini.LICENSE",
        "assets/blood_cells.jpg",
        "assets/blood_cells.LICENSE",
        "cpu/views.cpp",
        "cpu/batchnorm.cpp",
        "report/templates/report.html",
    ):
        assert f"twoviews/{name}" in packed
    assert not [name for name in packed if "test" in name]
    assert [name for name in metadata if name.endswith("LICENSE")]
    assert [name for name in metadata if name.endswith("entry_points.txt")]
    assert wheel.stat().st_size < 16_000_000


def test_the_installed_package_is_the_one_that_runs(tmp_path: Path, site: Path) -> None:
    process = run(tmp_path, site, "-c", "import twoviews; print(twoviews.__file__)")
    assert process.stdout.strip() == str(site / "twoviews/__init__.py")


def test_an_installed_package_shows_a_recipe_that_inherits_from_another(tmp_path: Path, site: Path) -> None:
    process = run(tmp_path, site, "-m", "twoviews", "pretrain", "recipe=simclr_cifar10_v2", "--cfg", "job")
    assert process.returncode == 0, process.stderr
    assert yaml.safe_load(process.stdout) == dict(config.load("pretrain", ["recipe=simclr_cifar10_v2"]))


def test_x5_an_installed_package_trains_on_its_bundled_data(tmp_path: Path, site: Path) -> None:
    words = ["dataset=fashion_mini", "backbone=thin16", "max_steps=2", "train_size=300", "probes=knn", "threads=1", "compile=false"]
    process = run(tmp_path, site, "-m", "twoviews", "pretrain", "recipe=fashion_thin", *words, "device=cpu")
    assert process.returncode == 0, process.stderr
    path = only_run(tmp_path / "empty/runs")
    assert summary(path)["train"]["steps"] == 2
    assert (path / "report.html").is_file()
    assert [p.name for p in (tmp_path / "empty").iterdir()] == ["runs"]


@pytest.mark.slow
def test_an_installed_package_needs_no_compiler_and_no_git(tmp_path: Path, site: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    env = environment(tmp_path) | {"PATH": str(tmp_path / "nothing")}
    env["PYTHONPATH"] = f"{site}:{env['PYTHONPATH']}"
    here = ["threads=1", "device=cpu"]
    for words in (
        ["pretrain", "recipe=demo", "backbone=thin16", "train_size=300", "max_steps=2", "probes=knn", *here],
        ["evaluate", "run=latest", "probes=knn", *here],
        ["report", "run=latest", *here],
        ["export", "run=latest", "export_dir=exported"],
        ["runs"],
        ["doctor"],
    ):
        done = subprocess.run([sys.executable, "-m", "twoviews", *words], cwd=empty, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, (words, done.stderr)
    (path,) = [path for path in (empty / "runs").iterdir() if path.is_dir()]
    assert (path / "report.html").is_file()


def test_the_sdist_builds_the_same_wheel_and_needs_no_git(tmp_path: Path, wheel: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        archive = tmp_path / build_sdist(str(tmp_path))
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path, filter="data")
        patch.chdir(tmp_path / archive.name.removesuffix(".tar.gz"))
        patch.setenv("PATH", "")
        again = tmp_path / build_wheel(str(tmp_path))
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {name: first.read(name) for name in first.namelist() if not name.endswith("RECORD")} == {
            name: second.read(name) for name in second.namelist() if not name.endswith("RECORD")
        }


def test_version_citation_and_changelog_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert newest is not None
    assert project["version"] == citation["version"] == newest[1] == twoviews.__version__
    assert project["license"] == citation["license"]
    extras = project["optional-dependencies"]
    (every,) = extras["all"]
    assert set(re.split("[\\[\\],]", every)[1:-1]) == set(extras) - {"all", "dev", "bench"}
    for name in set(extras) - {"all", "dev", "bench"}:
        assert set(extras[name]) <= set(extras["dev"]) | set(extras["bench"]) | set(project["dependencies"]), name


OF_EXTRAS = {  # modules that `dependencies` does not install, and the only files that import them
    "parquet": {"pyarrow": "commands/embed.py"},
    "onnx": {"onnx": "export/onnx.py", "onnxscript": "export/onnx.py", "onnxruntime": "export/onnx.py"},
    "hub": {"huggingface_hub": "export/hub.py"},
    "umap": {"umap": "inspection.py"},
}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "hydra": "hydra-core", "sklearn": "scikit-learn"}


def test_every_module_that_is_imported_is_a_dependency_or_an_extra_of_one_file() -> None:
    """An environment without the tools of developers has the dependencies alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = {re.split(r"[<>=\[]", line)[0] for line in project["dependencies"]}
    optional = {name: file for modules in OF_EXTRAS.values() for name, file in modules.items()}
    optional |= dict.fromkeys(("tensorboard", "wandb", "trackio", "mlflow"), "trackers/followers.py")
    missing = []
    for path in PACKAGE.rglob("*.py"):
        file = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"twoviews"}:
                if DISTRIBUTIONS.get(name, name) not in installed and optional.get(name) != file:
                    missing.append(f"{file}: {name}")
    assert missing == []
