"""A process from which the tests of this folder fork their runs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny as small

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def harness(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Return a function that runs one method of `Harness` in a process of its own, and asserts that nothing went wrong."""
    folder = tmp_path_factory.mktemp("harness")
    command = [sys.executable, str(Path(__file__).with_name("harness.py")), str(few), str(folder / "runs")]
    environment = small.environment(folder, XDG_CACHE_HOME=str(folder / "cache"))
    environment["PYTHONPATH"] += f":{Path(__file__).parent.parent}"
    with open(folder / "errors", "w") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(method: str, count: int, *, recipe: str = "fashion_thin", seed: int = 0) -> dict[str, Any]:
        try:
            process.stdin.write(json.dumps([method, recipe, count, seed]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BaseException:  # a test that ran out of time: its answer must not reach the next test
            process.kill()
            raise
        assert answer, (folder / "errors").read_text()[-2000:]
        found: dict[str, Any] = json.loads(answer)
        assert found["wrong"] == []
        return found

    yield ask
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()
