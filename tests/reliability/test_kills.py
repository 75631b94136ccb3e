"""Runs that are killed, signalled and starved: short forms here, full counts in `make test-hard` (docs/reliability.md)."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny as small

from twoviews import runs
from twoviews.cli import main

HARD = (pytest.mark.slow, pytest.mark.timeout(2400))
Ask = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("recipe", ["fashion_thin", "moco_thin"])
@pytest.mark.parametrize(
    ("count", "seed"), [(2, 0), *(pytest.param(25, seed, marks=HARD) for seed in (1, 2, 3, 4))]
)  # for parallel workers
def test_c1_a_run_killed_at_random_instants_equals_the_straight_run(harness: Ask, recipe: str, count: int, seed: int) -> None:
    assert harness("kills", count, recipe=recipe, seed=seed)["runs"] == count


def test_c2_a_save_killed_at_eight_points_leaves_the_old_or_the_new_checkpoint(harness: Ask) -> None:
    assert harness("saves", 1)["loaded"] == [2] * 5 + [3] * 3


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=HARD)])
def test_c3_a_full_disk_keeps_the_last_checkpoint_and_reports_the_space_needed(harness: Ask, count: int) -> None:
    assert harness("disk", count)["cases"] == count


@pytest.mark.parametrize("count", [3, pytest.param(60, marks=HARD)])
def test_s1_a_signal_in_any_step_leaves_a_checkpoint_of_that_step(harness: Ask, count: int) -> None:
    assert harness("signals", count)["runs"] == count


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=HARD)])  # of the three signals
def test_s1_a_signal_during_start_probe_save_or_evaluation_leaves_no_traceback(harness: Ask, count: int) -> None:
    assert harness("moments", count)["moments"] == 4 * count


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=HARD)])
def test_s2_a_second_interrupt_does_not_wait_for_the_step(harness: Ask, count: int) -> None:
    assert harness("interrupts", count)["runs"] == count


@pytest.mark.parametrize("count", [1, pytest.param(40, marks=HARD)])  # a lost lock of the thread pool once hung one in fifteen
def test_s3_a_signal_to_the_group_while_images_are_decoded_ends_it(harness: Ask, count: int) -> None:
    assert harness("decodes", count)["runs"] == count


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_n4_two_hundred_epochs_leak_nothing(harness: Ask) -> None:
    found = harness("leaks", 200)
    assert found["exit"] == 0
    rows = found["rows"]
    assert len(rows) == 200
    settled = rows[20:]  # everything that is created once exists by then
    pages = [row[0] for row in settled]
    assert max(pages) < 1.02 * pages[0]
    assert len({tuple(row[1:]) for row in settled}) == 1, "open files and threads"


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.usefixtures("fast")
def test_s5_fifty_commands_on_a_run_folder_in_use_are_refused_and_a_killed_holder_frees_it(tmp_path: Path, few: Path) -> None:
    assert main(["pretrain", *small.words(few, tmp_path / "runs", "max_steps=1", batch=small.FEW_BATCH)]) == 0
    path = small.only_run(tmp_path / "runs")
    hold = "import sys, time; from pathlib import Path; from twoviews import runs\n"
    hold += "with runs.RunFolder(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(path)], env=small.environment(tmp_path), stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for i in range(50):
            done = small.command(tmp_path, *(["pretrain", f"resume={path}"] if i % 2 else ["evaluate", f"run={path}"]))
            assert done.returncode == 2, done.stderr
            assert f"in use by process {holder.pid} on " in done.stderr
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with runs.RunFolder(path):
        pass
    shutil.rmtree(path)
