"""The command line: usage, version, and how errors become one line and an exit code."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny as small
from command_helpers import fail_with, refused

from twoviews import config
from twoviews.cli import USAGE, main
from twoviews.commands import pretrain


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]], ids=str)
def test_nothing_and_help_print_the_usage(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out == USAGE
    assert all(f"twoviews {verb}" in USAGE for verb in config.VERBS)


def test_every_command_of_the_usage_is_accepted() -> None:
    lines = re.findall(r"^  twoviews (\w+) (.*?)  ", USAGE, flags=re.M)
    assert {verb for verb, _ in lines} == {*config.VERBS, "completion"}
    for verb, rest in ((verb, rest) for verb, rest in lines if verb != "completion"):  # which has no keys
        words = [f"view={word}" if verb == "runs" and "=" not in word else word for word in rest.split() if word not in config.FLAGS]
        config.check(verb, words, sweep="--multirun" in rest)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"twoviews \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("verb", ["evaluate", "report", "runs"])
def test_verbs_that_need_a_run_say_so(capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str) -> None:
    said = refused(capsys, verb, f"runs_dir={tmp_path}")
    assert "no run" in said or "no finished run" in said
    assert "twoviews pretrain creates one" in said


def test_a_real_command_prints_one_line_and_with_debug_a_traceback(tmp_path: Path) -> None:
    plain, debug = (small.command(tmp_path, "pretrain", "epochs=0", f"debug={value}") for value in ("false", "true"))
    assert (plain.returncode, plain.stdout, plain.stderr.count("\n")) == (2, "", 1)
    assert debug.returncode == 1
    assert debug.stderr.startswith("Traceback")


@pytest.mark.parametrize("value", ["true", "True", "TRUE"])
def test_debug_gives_a_traceback_however_it_is_written(tmp_path: Path, value: str) -> None:
    argv = ["pretrain", "dataset=cifar10", f"data_dir={tmp_path / 'nowhere'}", f"runs_dir={tmp_path / 'runs'}"]
    assert main(argv) == 2
    with pytest.raises(ValueError, match="cifar10"):
        main([*argv, f"debug={value}"])


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RuntimeError("of a kind\nnobody expected"), 1, "RuntimeError: of a kind nobody expected (debug=true shows where)"),
        (ValueError("batch_size=1: too small"), 2, "batch_size=1: too small"),
        (FileNotFoundError("no such file"), 2, "no such file"),
        (FloatingPointError("loss nan at step 3"), 3, "loss nan at step 3"),
        (MemoryError("out of memory with batch_size=8"), 1, "out of memory with batch_size=8"),
        (MemoryError(), 1, "out of memory, before anything was trained"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failure_while_running_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    monkeypatch.setattr(pretrain, "run", lambda cfg: fail_with(error))
    assert main(["pretrain"]) == code
    assert capsys.readouterr().err == f"twoviews: {says}\n"


def test_x3_the_tests_cannot_reach_the_network(tmp_path: Path) -> None:
    with socket.socket() as here, pytest.raises(RuntimeError, match="reach the network"):
        here.connect(("127.0.0.1", 9))
    script = "import socket; socket.create_connection(('127.0.0.1', 9))"
    done = subprocess.run([sys.executable, "-c", script], env=small.environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert "RuntimeError: a test tried to reach the network" in done.stderr


@pytest.mark.parametrize(("given", "expected"), [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_idle_threads_wait_actively_for_a_short_time_only_unless_the_user_decides(
    given: dict[str, str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # restored at the end, also if a command sets it
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["runs", f"runs_dir={tmp_path}"]) == 2
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_a_benchmark_leaves_the_waiting_of_threads_to_every_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr("twoviews.commands.bench.run", lambda cfg: 0)
    assert main(["bench"]) == 0
    assert "GOMP_SPINCOUNT" not in os.environ
