"""`twoviews runs`: the list, the comparison over seeds, the best run, and the formats."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny as small
from command_helpers import refused

from twoviews import runs
from twoviews.cli import main


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory, few: Path) -> Path:
    """A folder with two finished runs that differ in their seed."""
    runs_dir = tmp_path_factory.mktemp("two_seeds") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        small.make_fast(patch.setattr)
        assert main(["pretrain", *small.words(few, runs_dir, "max_steps=2", batch=small.FEW_BATCH), "seed=0,1", "--multirun"]) == 0
    return runs_dir


def headline(path: Path) -> float:
    """Return the accuracy by which runs are compared: kNN, k=10."""
    (accuracy,) = [r["accuracy"] for r in small.summary(path)["evaluations"] if r["of"] == "trained" and r.get("k") == 10]
    return float(accuracy)


def test_runs_lists_every_run_and_marks_unfinished_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path) -> None:
    assert main(["runs", f"runs_dir={two_seeds}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2
    assert all(path.name in "\n".join(lines) for path in two_seeds.iterdir())
    unfinished = runs.create(tmp_path / "runs", "half", "seed: 0\n")
    with runs.RunFolder(unfinished) as folder:
        folder.log([{"step": 6}])
    assert main(["runs", f"runs_dir={tmp_path / 'runs'}"]) == 0
    assert "unfinished, step 7" in capsys.readouterr().out
    assert "none finished: to finish one: twoviews pretrain resume=" in refused(capsys, "runs", "best", f"runs_dir={tmp_path / 'runs'}")


def test_runs_skips_a_damaged_run_and_reports_it(capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    first, second = sorted((tmp_path / "runs").iterdir())
    (first / runs.SUMMARY).write_text("{")
    assert main(["runs", f"runs_dir={tmp_path / 'runs'}"]) == 0
    out, err = capsys.readouterr()
    assert second.name in out
    assert first.name not in out
    assert f"skipped: {first / runs.SUMMARY}: not JSON" in err


def test_runs_compare_gives_mean_and_sample_deviation_over_seeds(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    accuracies = [100 * headline(path) for path in two_seeds.iterdir()]
    assert len(accuracies) == 2
    expected = f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}"
    for form, cell in (("markdown", f"| {expected} |"), ("csv", f",{expected},"), ("latex", " " + expected.replace("±", r"$\pm$") + " &")):
        assert main(["runs", "compare", f"runs_dir={two_seeds}", f"format={form}"]) == 0
        assert cell in capsys.readouterr().out, form
    assert main(["runs", "compare", f"runs_dir={two_seeds}"]) == 0
    head, _, row = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert dict(zip(head, row, strict=False))["seeds"] == "2"


def test_runs_best_shows_the_run_with_the_highest_accuracy(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    assert main(["runs", "best", f"runs_dir={two_seeds}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1
    shown = next(path for path in two_seeds.iterdir() if path.name in lines[-1])
    assert headline(shown) == max(headline(path) for path in two_seeds.iterdir())


def test_latex_and_csv_are_well_formed(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    assert main(["runs", f"runs_dir={two_seeds}", "format=csv"]) == 0
    table = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert len({len(row) for row in table}) == 1
    assert len(table) == 1 + 2
    assert main(["runs", f"runs_dir={two_seeds}", "format=latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0][:15], lines[-1]) == (r"\begin{tabular}", r"\end{tabular}")
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines if line.endswith(r"\\")}) == 1
    assert not re.search(r"(?<!\\)[_%#]", "\n".join(lines))
