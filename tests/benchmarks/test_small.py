"""Every benchmark that a page names really runs, small; its figures then mean nothing. No test asserts a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny as small
from command_helpers import pretrained
from pages import commands

from twoviews.cli import main
from twoviews.commands import bench

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "RESULTS.md", ROOT / "results/README.md", *sorted((ROOT / "docs").glob("*.md"))]
TESTED = {"benchmarks/p3i0t_faults.py", "benchmarks/protocols.py", "benchmarks/busy.py"}  # here, and in test_p3i0t_faults.py


def named() -> set[str]:
    """Return the scripts in `benchmarks/` that a page tells the reader to run."""
    return {script for page in PAGES for script in re.findall(r"python (benchmarks/\w+\.py)", page.read_text(encoding="utf-8"))}


def test_no_other_script_is_named_and_every_bench_is_one_of_those_below() -> None:
    assert named() <= TESTED
    for page in PAGES:
        for program, *words in commands(page.read_text(encoding="utf-8")):
            if program == "twoviews" and words[:1] == ["bench"]:
                (what,) = [word.partition("=")[2] for word in words if word.startswith("what=")] or ["all"]
                assert what in (*bench.ALL, "all")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", bench.ALL)
def test_a_benchmark_runs_beside_the_other_tools(what: str, tmp_path: Path) -> None:
    assert main(["bench", f"what={what}", "small=true", f"runs_dir={tmp_path}"]) == 0
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / f"{what}.json").read_text())
    assert "|" in (folder / "tables.md").read_text()


def script(tmp_path: Path, *words: str) -> str:
    """Run a script of the repository and return what it printed."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=small.environment(tmp_path), capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_gpu_check_runs_on_a_cpu_and_every_step_reports(tmp_path: Path) -> None:
    out = tmp_path / "gpu_check.json"
    printed = script(tmp_path, "scripts/gpu_check.py", "--device", "cpu", "--small", "--out", str(out))
    report = json.loads(out.read_text())
    steps = ("start", "parity", "speed", "profile", "resume", "evaluation", "recipe")
    assert [name for name in steps if f"{name}: done" not in printed] == []
    assert report["resume"]["deterministic=True"]["equal bit for bit"] is True
    assert report["parity"]["share of equal neighbours"] == 1
    assert len(report["speed"]) >= 5
    assert (tmp_path / "gpu_check.md").read_text().startswith("# GPU check: cpu")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    assert "|" in script(tmp_path, "benchmarks/epoch.py", "--device", "cpu", "--small")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_benchmark_of_protocols_prints_its_tables(few: Path, tmp_path: Path, fast: None) -> None:
    path = pretrained(few, tmp_path / "runs", "backbone=thin32")
    assert script(tmp_path, "benchmarks/protocols.py", str(path), "--epochs", "1").count("|:--|") >= 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_benchmark_of_busy_machines_prints_a_step(tmp_path: Path) -> None:
    assert "ms" in script(tmp_path, "benchmarks/busy.py", "--busy", "0", "--small")
