"""What every test shares: one core, one thread, a cache of its own, no network, and tiny runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which

import pytest
import tiny as small
import torch

from twoviews import device
from twoviews.cli import main


@pytest.fixture(scope="session", autouse=True)
def _one_core() -> None:
    """Give each worker, and what it starts, a core of its own.

    Threads of two runs that wait for each other on the same cores take up to twenty times as long.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base  # workers share what is slow to make, such as font lists
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _only_to_this_machine(getattr(socket.socket, name)))


def _only_to_this_machine(connect: Callable[..., object]) -> Callable[..., object]:
    def refuse(self: socket.socket, address: object) -> object:
        if self.family == socket.AF_UNIX:
            return connect(self, address)
        raise RuntimeError(f"a test tried to reach the network: {address}")

    return refuse


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Fashion-MNIST's four files: 320 training and 100 test images."""
    return small.write_idx(tmp_path_factory.mktemp("data"), small.arrays())


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same four files: 40 training and 20 test images, for tests of many runs."""
    return small.write_idx(tmp_path_factory.mktemp("few"), small.arrays(small.FEW, small.FEW_TEST))


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder that only this test uses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process are ten times faster: see `tiny.make_fast`."""
    small.make_fast(monkeypatch.setattr)


@pytest.fixture
def tiny(tmp_path: Path, data: Path) -> list[str]:
    """Words of a fast run; its folder comes to lie under `tmp_path / "runs"`."""
    return small.words(data, tmp_path / "runs")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A finished run with both probes. Read it, never write it."""
    runs_dir = tmp_path_factory.mktemp("finished") / "runs é, a=b"  # a path that a careless parser trips over
    assert main(["pretrain", *small.words(data, runs_dir, "probes='knn,linear_precomp'")]) == 0
    return small.only_run(runs_dir)


# Files whose tests take seconds: `make check` leaves them out, `make test` runs them.
LONG = (
    *("reliability/", "benchmarks/", "commands/", "data/test_folder.py", "methods/test_methods.py", "test_add_a_method.py", "test_api.py"),
    *("test_build.py", "test_cli.py", "test_gpu.py", "test_leakage.py", "test_package.py", "test_plug.py", "test_profiling.py"),
    *(
        "images/test_layout_fuzz.py",
        "test_embedder",
        "test_readme.py",
        "test_release.py",
        "test_resume.py",
        "test_train.py",
        "cpu/",
        "config/test_wrong_words.py",
        "config/test_reference.py",
    ),
    *("config/test_load.py", "runs/", "probes/test_minibatch.py", "probes/test_finetune.py", "test_no_code_execution.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `LONG`."""
    for item in items:
        path = str(item.path.relative_to(Path(__file__).parent))
        if path.startswith(LONG):
            item.add_marker("long")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the processor and the code paths that no test of this session could run."""
    paths = {
        "AMX instructions": torch.cpu._is_amx_tile_supported(),
        "bfloat16 in oneDNN": torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "C++": device.compiler() is not None,
        "CUDA": torch.cuda.is_available(),
        "MPS": torch.backends.mps.is_available(),
        "fish": which("fish") is not None,
        "zsh": which("zsh") is not None,
    }
    missing = ", ".join(name for name, runs in paths.items() if not runs)
    terminalreporter.write_line(f"processor: {device.cpu_name()}; not run, because this machine lacks it: {missing or 'nothing'}")
