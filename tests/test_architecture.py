"""The directions of the house: who may import whom, how long a file may be, and that importing does nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import environment

import twoviews

PACKAGE = Path(twoviews.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]

# Ground floor: each module, and the siblings that it may use.
GROUND: dict[str, set[str]] = {
    "views": {"pixels", "native"},
    "native": {"device"},
    "pixels": set(),
    "batchnorm": {"native"},
    "memory": {"native"},
    "layers": {"batchnorm", "native"},
    "blocks": {"layers"},
    "backbones": {"blocks", "layers"},
    "heads": set(),
    "losses": {"parallel"},
    "momentum": {"parallel"},
    "optim": set(),
    "parallel": set(),
    "device": set(),
    "checkpoint": set(),
    "lock": {"checkpoint"},
    "runs": {"checkpoint", "lock"},
    "manifest": set(),
    "config": {"rules"},
    "rules": set(),
    "progress": set(),
    "profiling": set(),
    "tables": set(),
    "formats": set(),
    "seeds": {"config", "rules"},
    "data": {"data", "progress"},
}
ABOVE: dict[str, set[str]] = {
    "methods": {"methods", "heads", "losses", "momentum", "parallel"},
    "probes": {"probes", "views", "native", "optim", "momentum", "parallel", "progress"},
    "build": {*GROUND, "methods", "probes"},
    "train": {*GROUND, "methods", "probes", "build"},
    "readout": {*GROUND, "methods", "probes", "build"},
    "commands": {*GROUND, "methods", "probes", "build", "train", "readout", "commands"},
    "cli": {"config", "rules", "lock", "runs", "seeds", "commands"},
    "__main__": {"cli"},
    "__init__": {*GROUND, "methods", "probes", "build", "commands"},  # lazily: the names of the Python interface
}
MAY = {**GROUND, **ABOVE}
SEE_CONFIG = {"build", "train", "readout", "commands", "cli", "seeds"}


def part(name: str) -> str:
    """The part of the house that a file belongs to: `methods/simclr.py` to `methods`."""
    return name.split("/")[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of the package that a file imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" if node.module == "twoviews" else str(node.module) for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("twoviews."):
            names = [node.value]  # importlib.import_module("twoviews....")
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("twoviews.")}
    return {name for name in found if name != "{verb}"}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_imports_only_what_stands_below_it(name: str) -> None:
    assert part(name) in MAY, f"{name}: say in this test on which floor it stands"
    wrong = imported(PACKAGE / name) - MAY[part(name)]
    assert not wrong, f"{name} imports {sorted(wrong)}"


def test_the_rules_speak_of_files_that_exist() -> None:
    assert set(MAY) == {part(name) for name in NAMES}


def test_the_configuration_is_seen_only_upstairs() -> None:
    assert {part(name) for name in NAMES if "config" in imported(PACKAGE / name)} <= SEE_CONFIG


def test_nothing_calls_upwards() -> None:
    for name in NAMES:
        uses = imported(PACKAGE / name)
        assert "cli" not in uses or part(name) in ("__main__", "__init__"), name
        assert "commands" not in uses or part(name) in ("cli", "commands", "__init__"), name
        assert "train" not in uses or part(name) == "commands", name


def test_a_new_upward_import_would_be_seen(tmp_path: Path) -> None:
    forms = {
        "from twoviews import train, heads": {"train", "heads"},
        "from twoviews.train import fit": {"train"},
        "import twoviews.commands.runs": {"commands"},
        "def f():\n    from twoviews.cli import main": {"cli"},
        "importlib.import_module('twoviews.train')": {"train"},
        "import torch": set(),
    }
    for source, expected in forms.items():
        (tmp_path / "a.py").write_text(source)
        assert imported(tmp_path / "a.py") == expected


def test_there_is_no_drawer_for_everything() -> None:
    assert not {"utils.py", "util.py", "common.py", "helpers.py", "misc.py", "callbacks.py", "trainer.py"} & {path.name for path in FILES}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_short_enough_to_read(name: str) -> None:
    assert len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_public_names_have_docstrings(name: str) -> None:
    tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    missing = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                missing.append(node.name)
            if isinstance(node, ast.ClassDef) and not node.bases:  # a method that a base declares has its text there
                public = [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_") and not n.decorator_list]
                missing += [f"{node.name}.{n.name}" for n in public if not ast.get_docstring(n)]
    assert not missing


def test_a_function_that_raises_says_so() -> None:
    """A public function with a `raise ValueError` of its own has a `Raises` section."""
    silent = []
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name != "run":
                raises = any(isinstance(n, ast.Raise) and n.exc is not None for n in ast.walk(node))
                if raises and "Raises:" not in (ast.get_docstring(node) or ""):
                    silent.append(f"{path.name}:{node.name}")
    assert silent == []


def test_importing_every_module_does_nothing_that_is_seen(tmp_path: Path) -> None:
    modules = ["twoviews", *(f"twoviews.{name.removesuffix('.py').replace('/', '.')}" for name in NAMES if "__" not in name)]
    script = """
import importlib, os, signal, sys, warnings
import numpy, torch, torchvision  # the last sets TORCHINDUCTOR_CACHE_DIR
warnings.simplefilter("error")
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    random = (torch.random.get_rng_state().tolist()[:50], numpy.random.get_state()[1].tolist()[:5])
    settings = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision())
    return dict(os.environ), os.getcwd(), handlers, random, settings, sys.argv
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert state() == before
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *modules],
        env=environment(tmp_path, PYTHONWARNINGS="ignore"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == ["guard"]  # noqa: PTH208 - names are enough


def test_the_command_line_is_there_before_torch(tmp_path: Path) -> None:
    script = "import sys, twoviews, twoviews.cli, twoviews.config\nassert not {'torch', 'numpy', 'hydra'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=environment(tmp_path), timeout=60).returncode == 0
