"""What every test shares: one thread, a cache of its own, no network, and tiny runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import tiny as small
import torch

from twoviews.cli import main


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
    def refuse(*args: object) -> NoReturn:
        raise RuntimeError(f"a test tried to reach the network: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Fashion-MNIST's four files: 320 training and 100 test images."""
    return small.write_idx(tmp_path_factory.mktemp("data"), small.arrays())


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
