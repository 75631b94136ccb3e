"""Runs of several processes as users start them: faults, signals, resuming, evaluation and the reference commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import processes
import pytest
import tiny
import torch

from twoviews import runs
from twoviews.runs import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parent.parent.parent
STEPS = 10  # of a run of two epochs


def torchrun(tmp: Path, *words: str, count: int = 2, **environment: str) -> subprocess.Popen[str]:
    """Start a program by torchrun, in a session of its own; its output goes to a file."""
    before = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    argv += ["--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    with open(tmp / "log", "a") as log:
        return subprocess.Popen(
            [*argv, *words],
            cwd=tmp,
            env=before | own | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=processes.all_cores,
        )


def finish(process: subprocess.Popen[str], tmp: Path) -> str:
    """Wait for a program that must succeed, and return its output."""
    assert process.wait(timeout=240) == 0, (tmp / "log").read_text()
    return (tmp / "log").read_text()


def state(path: Path) -> dict[str, Any]:
    return checkpoint.load(path, runs.identity(path))


def check_equal(first: Path, second: Path) -> None:
    """Two runs have equal weights and losses, bit for bit."""
    a, b = state(first)["method"], state(second)["method"]
    assert [name for name, tensor in a.items() if not torch.equal(tensor, b[name])] == []
    assert [row["loss"] for row in runs.read_metrics(first)] == [row["loss"] for row in runs.read_metrics(second)]


def left_behind(tmp: Path) -> list[str]:
    """Return the processes that still write into this test's folder."""
    found = subprocess.run(["pgrep", "-af", str(tmp)], capture_output=True, text=True).stdout.splitlines()
    return [line for line in found if "pgrep" not in line]


@pytest.fixture
def words(few: Path, tmp_path: Path) -> list[str]:
    return ["pretrain", *tiny.words(few, tmp_path / "runs", "epochs=2", batch=tiny.FEW_BATCH)]


@pytest.fixture(scope="module")
def uninterrupted(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, from its first to its last step."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    words = tiny.words(few, folder / "runs", "epochs=2", batch=tiny.FEW_BATCH)
    finish(torchrun(folder, "-m", "twoviews", "pretrain", *words), folder)
    return tiny.only_run(folder / "runs")


FAULTS = [(fault, rank, step) for fault in ("raise", "kill") for rank in (0, 1) for step in (0, 3, 5, 8)]
FAULTS += [("hang", rank, step) for rank in (0, 1) for step in (0, 6)]


@pytest.mark.parametrize(("fault", "rank", "step"), FAULTS)
def test_p3_a_process_that_fails_ends_the_job_and_names_the_cause(
    fault: str, rank: int, step: int, words: list[str], tmp_path: Path
) -> None:
    program = str(Path(__file__).parent / "faulty.py")
    process = torchrun(tmp_path, program, *words, "wait_seconds=5", FAULT=f"{fault} {rank} {step}")
    code = process.wait(timeout=120)
    seconds, output = time.time() - (tmp_path / "fault").stat().st_mtime, (tmp_path / "log").read_text()
    assert code, output
    last = "\n".join(output.splitlines()[-20:])
    cause = {
        "raise": "ArithmeticError: a fault of this test",
        "kill": "SIGKILL",
        "hang": f"the process of rank {rank} ended, or did not answer",
    }
    assert cause[fault] in last, output
    if fault != "hang":
        assert f"rank      : {rank} (local_rank: {rank})" in last, output
    assert left_behind(tmp_path) == []
    path = tiny.only_run(tmp_path / "runs")
    saved = [name for name in (runs.LAST, runs.PREVIOUS) if (path / name).exists()]
    if saved:
        assert 0 < state(path)["step"] <= step + 1
    print(f"{fault}, rank {rank}, step {step}: the job ended {seconds:.1f} s after the fault")
    assert seconds < (5 + 4 + 30 + 6 if fault == "hang" else 15), "torchrun gives a process that hangs 30 s before it kills it"
    if step != 5 + (fault == "hang"):
        return
    resumed = torchrun(tmp_path, "-m", "twoviews", "pretrain", f"resume={path}")
    assert "test accuracy" in finish(resumed, tmp_path)
    assert state(path)["step"] == STEPS


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", ["torchrun", "1"])
def test_p4_a_signal_to_any_process_stops_all_at_one_step_and_the_run_continues_bit_for_bit(
    number: int, to: str, words: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    program = str(Path(__file__).parent / "slow.py")
    process = torchrun(tmp_path, program, *words)
    pids = wait_for_step(tmp_path, 2)
    os.kill(process.pid if to == "torchrun" else pids[1], number)
    assert process.wait(timeout=120)
    output = (tmp_path / "log").read_text()
    assert re.search(r"stopped at step \d+ of 10, checkpoint saved; to continue: torchrun --nproc-per-node=2 -m twoviews", output), output
    path = tiny.only_run(tmp_path / "runs")
    assert 0 < state(path)["step"] < STEPS
    finish(torchrun(tmp_path, "-m", "twoviews", "pretrain", f"resume={path}"), tmp_path)
    check_equal(path, uninterrupted)


def wait_for_step(tmp: Path, step: int) -> dict[int, int]:
    """Wait until every process has done a step; return their process ids by rank."""
    until = time.monotonic() + 100
    while time.monotonic() < until:
        found = [json.loads(file.read_text() or "{}") for file in tmp.glob("step-*.json")]
        if len(found) == 2 and all(one and one["step"] >= step for one in found):
            return {one["rank"]: one["pid"] for one in found}
        time.sleep(0.05)
    raise AssertionError((tmp / "log").read_text())


def test_p5_another_number_of_processes_is_refused_on_resume(words: list[str], tmp_path: Path) -> None:
    finish(torchrun(tmp_path, "-m", "twoviews", *words, "max_steps=5"), tmp_path)
    path = tiny.only_run(tmp_path / "runs")
    for count, have in ((None, 1), (3, 3)):
        if count is None:
            result = tiny.command(tmp_path, "pretrain", f"resume={path}")
            code, output = result.returncode, result.stderr
        else:
            code, output = torchrun(tmp_path, "-m", "twoviews", "pretrain", f"resume={path}", count=count).wait(timeout=120), ""
            output = (tmp_path / "log").read_text()
        assert code
        assert f"the run has 2 processes, this command {have}, and BatchNorm computes other values then" in output


def test_p6_evaluation_by_several_processes_has_the_rows_of_one(few: Path, tmp_path: Path) -> None:
    probes = ["probes='knn,linear_precomp,linear_augm'", "probe_epochs=1"]
    words = tiny.words(few, tmp_path / "runs", *probes, batch=tiny.FEW_BATCH)
    finish(torchrun(tmp_path, "-m", "twoviews", "pretrain", *words), tmp_path)
    path = tiny.only_run(tmp_path / "runs")
    several = runs.read_json(path, runs.SUMMARY)
    assert several["unfinished"] == []
    assert (path / runs.REPORT).is_file()
    result = tiny.command(
        tmp_path, "evaluate", f"run={path}", f"runs_dir={tmp_path}/runs", *probes, "device=cpu", "threads=1", "compile=false"
    )
    assert result.returncode == 0, result.stderr
    one = runs.read_json(path, runs.SUMMARY)
    same = ("probe", "k", "of", "features", "metric", "labels")
    assert len(one["evaluations"]) == len(several["evaluations"]) > 10
    for row in one["evaluations"]:
        (other,) = [found for found in several["evaluations"] if all(found.get(key) == row.get(key) for key in same)]
        assert other["accuracy"] == pytest.approx(row["accuracy"], abs=0.051), "one of twenty images"
    again = finish(torchrun(tmp_path, "-m", "twoviews", "evaluate", f"run={path}", "probes=knn"), tmp_path)
    assert again.count("| kNN k=1 cosine uniform") == 2, "in each table once: only the first process prints"


def test_p7_a_wrong_command_is_answered_once(few: Path, tmp_path: Path) -> None:
    assert torchrun(tmp_path, "-m", "twoviews", "pretrain", *tiny.words(few, tmp_path / "runs", "batch_size=7")).wait(timeout=120)
    output = (tmp_path / "log").read_text()
    message = "batch_size=7: 2 processes cannot share it: choose a multiple of 2"
    assert len(re.findall(rf"^twoviews: {message}", output, flags=re.M)) == 1, output
    assert message in "\n".join(output.splitlines()[-20:])
    assert not (tmp_path / "runs").exists()


def test_p8_the_commands_of_the_reference_projects_run_with_two_processes(few: Path, tmp_path: Path) -> None:
    shared = ["dataset=fashion_mnist", f"data_dir={few}", f"runs_dir={tmp_path}/runs", "threads=1", "device=cpu", "max_steps=2"]
    trained = [*shared, "epochs=1", "backbone=thin16", "compile=false", "view_sizes=[12,12]", "warmup_epochs=0", "min_learning_rate=0"]
    commands = [
        ["simclr.py", *trained, "batch_size=8"],
        ["simclr_lin.py", *shared, "backbone=thin16", "batch_size=8", "finetune_epochs=1"],
        ["moco.py", *trained, "batch_size=8", "moco_k=16", "moco_t=0.2", "bn_splits=4"],
        ["simclr_lin.py", *shared, "backbone=thin16", "batch_size=8", "finetune_epochs=1"],
        ["simclr-cifar10.py", *trained, "batch_size=8", "probe_epochs=1"],
    ]
    for script, *words in commands:
        process = torchrun(tmp_path, str(ROOT / script), *words)
        assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    found = [runs.read_json(path, runs.SUMMARY) for path in runs.folders(tmp_path / "runs")]
    assert sorted(summary["recipe"] for summary in found) == ["moco", "simclr", "simclr_cifar10"]
    assert all(summary["evaluations"] and summary["unfinished"] == [] for summary in found)
    assert {runs.read_json(path, runs.MANIFEST)["processes"] for path in runs.folders(tmp_path / "runs")} == {2}
