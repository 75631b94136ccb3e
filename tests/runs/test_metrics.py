"""`metrics.jsonl`: rows are appended, and an incomplete line does no harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twoviews import runs


def new_run(tmp_path: Path, name: str = "a") -> Path:
    return runs.create(tmp_path, name, "seed: 0\n")


def test_c7_an_incomplete_last_line_of_the_metrics_is_skipped_and_cut_on_resume(tmp_path: Path) -> None:
    path = new_run(tmp_path)
    with runs.RunFolder(path) as folder:
        folder.log([{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
        with open(path / runs.METRICS, "a") as file:
            file.write('{"step": 3, "lo')
        assert [row["step"] for row in runs.read_metrics(path)] == [0, 1, 2]
        folder.truncate_metrics(2)
        folder.log([{"step": 2, "loss": 0.25}])
    assert [json.loads(line)["step"] for line in (path / runs.METRICS).read_text().splitlines()] == [0, 1, 2]


def test_c7_an_incomplete_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / runs.METRICS).write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        runs.read_metrics(tmp_path)


def test_a_row_of_another_run_is_refused_or_left_out(tmp_path: Path) -> None:
    one, other = (runs.create(tmp_path, "a", "seed: 0\n", None, digest) for digest in ("1f", "2f"))
    with runs.RunFolder(one) as folder:
        folder.log([{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}])
    lines = (one / runs.METRICS).read_text().splitlines(keepends=True)
    with runs.RunFolder(other) as folder:
        folder.log([{"step": 0, "loss": 1.0}])
        with open(other / runs.METRICS, "a") as file:
            file.write(lines[1])
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*another run"):
        runs.read_metrics(other)
    bad: list[str] = []
    assert runs.read_metrics(other, bad) == [{"step": 0, "loss": 1.0}]
    assert len(bad) == 1
