"""Atomic files: a failed write keeps the old file and reports the space it needs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from twoviews.runs import files


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_c3_a_failed_write_keeps_the_old_file_and_reports_the_space_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "summary.json"
    files.write_atomic(path, b"old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"No space left on device: 2\.0 MB needed, \d+ MB free") as failed:
        files.write_atomic(path, bytes(2 * 2**20))
    assert str(path) in str(failed.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_that_no_longer_exists_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the folder no longer exists") as failed:
        files.write_atomic(tmp_path / "gone/summary.json", b"new")
    assert str(tmp_path / "gone") in str(failed.value)


def test_a_checksum_covers_values_and_run_and_not_the_format() -> None:
    content = {"b": 1, "a": [1.5, None]}
    digest = files.checksum(content, "run")
    assert digest == files.checksum({"a": [1.5, None], "b": 1}, "run")
    assert len({digest, files.checksum(content, "other"), files.checksum({**content, "b": 2}, "run")}) == 3
    assert files.verified({**content, "sha256": digest}, "run") == content
    assert files.verified({**content, "sha256": digest[:8]}, "run") == content  # a row of the metrics
    assert files.verified(content, "") == content
    for damaged in ({**content, "sha256": digest[:7]}, {**content, "sha256": ""}, {"b": 2, "sha256": digest}, content):
        with pytest.raises(ValueError, match="damaged"):
            files.verified(damaged, "run")


def test_temporary_files_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in ("checkpoint.12.tmp", ".holder.12.tmp", "checkpoint", ".lock"):
        (tmp_path / name).write_bytes(b"")
    files.remove_temporary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", ".lock"}
