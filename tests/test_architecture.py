"""The import order, the size of files and functions, docstrings, and that importing does nothing."""

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
CPP = sorted(PACKAGE.rglob("*.cpp"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))

# The import order of docs/architecture.md: a part may import itself, what is on the same line, and every line below.
LAYERS = [
    {"__main__"},
    {"cli", "api", "__init__"},  # __init__ imports lazily: the names of the Python API
    {"commands"},
    {"train", "monitor", "evaluation", "embedder", "export", "inspection", "finish"},
    {"build", "foreign", "inputs", "pretrained"},
    {"cpu", "report"},
    {"methods", "probes"},
    {"models", "views", "data"},
    {"trackers"},
    {"losses", "optim", "images", "runs"},
    {"config", "distributed", "device", "rng", "progress", "contention", "output", "profiling"},
]
PARTS = [part for layer in LAYERS for part in layer]
# What the order alone does not forbid.
ONLY = {
    "methods": {"methods", "models", "losses", "distributed"},
    "cli": {"config", "runs", "commands", "device", "distributed", "output", "contention"},
}
# `config.load`; `config.schema` says what a key is, not its value
SEE_CONFIG = {"build", "inputs", "train", "evaluation", "inspection", "finish", "commands", "cli", "api"}


def part(name: str) -> str:
    """Return the part of the package that a file belongs to: `methods` for `methods/simclr.py`."""
    return name.split("/")[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, at its top or inside a function, such as `runs.files`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("twoviews."):
            names = [node.value]  # importlib.import_module("twoviews....")
        else:
            continue
        found |= {name.removeprefix("twoviews.") for name in names if name.startswith("twoviews.")}
    return found


def imported_parts(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imported(path)} - {""}


def allowed(name: str) -> set[str]:
    """Return the parts that a file may import."""
    mine = part(name)
    level = next(i for i, layer in enumerate(LAYERS) if mine in layer)
    below = {p for layer in LAYERS[level:] for p in layer}
    return ONLY.get(mine, below) - ({"cpu"} if mine not in ("build", "cpu") else set())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_imports_only_what_is_below_it(name: str) -> None:
    assert part(name) in PARTS, f"{name}: add it to LAYERS in this test"
    wrong = imported_parts(PACKAGE / name) - allowed(name)
    assert not wrong, f"{name} imports {sorted(wrong)}"


def test_every_layer_names_parts_that_exist() -> None:
    assert set(PARTS) == {part(name) for name in NAMES}


def test_only_the_upper_layers_see_the_configuration() -> None:
    sees = {
        part(name) for name in NAMES for module in imported(PACKAGE / name) if module.split(".")[0] == "config" and "schema" not in module
    }
    assert sees - {"config", "__init__"} <= SEE_CONFIG


def test_probes_never_import_methods() -> None:
    assert not {name for name in NAMES if part(name) == "probes" and "methods" in imported_parts(PACKAGE / name)}


def test_an_upward_import_would_be_seen(tmp_path: Path) -> None:
    forms = {
        "from twoviews import train, losses": {"train", "losses"},
        "from twoviews.train import fit": {"train"},
        "import twoviews.commands.runs": {"commands"},
        "def f():\n    from twoviews.cli import main": {"cli"},
        "importlib.import_module('twoviews.train')": {"train"},
        "import torch": set(),
    }
    for source, expected in forms.items():
        (tmp_path / "a.py").write_text(source)
        assert imported_parts(tmp_path / "a.py") == expected


def test_there_is_no_file_for_everything() -> None:
    assert not {"utils.py", "util.py", "common.py", "helpers.py", "misc.py", "callbacks.py", "trainer.py"} & {path.name for path in FILES}


def test_a_method_fits_on_a_page() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (PACKAGE / "methods").glob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > 80} == {}


def test_files_and_functions_are_short_enough_to_read() -> None:
    long = [str(path) for path in [*FILES, *CPP] if len(path.read_text(encoding="utf-8").splitlines()) > 300]
    long += [str(path) for path in TESTS if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and node.end_lineno - node.lineno >= 60:
                long.append(f"{path}: {node.name}")
    assert long == []


def test_modules_and_public_names_have_docstrings() -> None:
    missing = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        missing += [str(path)] * (not ast.get_docstring(tree))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                missing += [f"{path}: {node.name}"] * (not ast.get_docstring(node))
                if isinstance(node, ast.ClassDef) and not node.bases:  # a base class documents the methods that it declares
                    public = [
                        n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_") and not n.decorator_list
                    ]
                    missing += [f"{path}: {node.name}.{n.name}" for n in public if not ast.get_docstring(n)]
    assert missing == []


def test_a_function_that_raises_says_so() -> None:
    """A public function with a `raise` of its own has a `Raises` section."""
    silent = []
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name != "run":
                raises = any(isinstance(n, ast.Raise) and n.exc is not None for n in ast.walk(node))
                if raises and "Raises:" not in (ast.get_docstring(node) or ""):
                    silent.append(f"{path.name}:{node.name}")
    assert silent == []


def test_importing_every_module_changes_nothing(tmp_path: Path) -> None:
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
    environ = environment(tmp_path, PYTHONWARNINGS="ignore")
    command = [sys.executable, "-c", script, *modules]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == ["guard"]  # noqa: PTH208 - names are enough


def test_the_command_line_is_there_before_torch(tmp_path: Path) -> None:
    script = "import sys, twoviews, twoviews.cli, twoviews.config, twoviews.runs\nassert not {'torch', 'numpy', 'hydra'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=environment(tmp_path), timeout=60).returncode == 0
