"""Run folders: created with their configuration or not at all, identified, written atomically and read with checks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from twoviews import runs


class Killed(BaseException):
    """Stands for SIGKILL: no `except OSError` catches it."""


def new_run(tmp_path: Path, name: str = "a") -> Path:
    return runs.create(tmp_path, name, "seed: 0\n")


def test_a_folder_without_config_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"), runs.RunFolder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_c1_a_folder_has_its_configuration_or_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            runs.create(tmp_path, "a", "seed: 0\n", "17")
    assert runs.folders(tmp_path) == []
    path = runs.create(tmp_path, "a", "seed: 0\n", "17")
    assert runs.read_config(path) == {"seed": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["a-17"]
    with pytest.raises(ValueError, match=r"run_id=17: .*a-17 exists"):
        runs.create(tmp_path, "a", "seed: 0\n", "17")


def test_c5_a_run_on_other_data_is_another_run(tmp_path: Path) -> None:
    one, same, other, none = (runs.create(tmp_path, "a", "seed: 0\n", None, digest) for digest in ("1f", "1f", "2f", ""))
    assert runs.identity(one) == runs.identity(same)
    assert len({runs.identity(path) for path in (one, other, none)}) == 3
    assert runs.read_config(one) == {"seed": 0}


def test_c5_a_changed_configuration_is_refused(tmp_path: Path) -> None:
    path = new_run(tmp_path)
    text = (path / runs.CONFIG).read_text()
    (path / runs.CONFIG).write_text(text.replace("seed: 0", "seed: 1"))
    with pytest.raises(ValueError, match=r"config\.yaml: damaged or changed: its checksum is wrong"):
        runs.read_config(path)


def test_c5_a_configuration_that_lost_its_checksum_is_damaged(tmp_path: Path) -> None:
    path = new_run(tmp_path)
    with runs.RunFolder(path) as folder:
        folder.write(runs.MANIFEST, {"seed": 0})
    text = (path / runs.CONFIG).read_text(encoding="utf-8")
    (path / runs.CONFIG).write_text(text.partition("\n")[2], encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.yaml: damaged or changed: its checksum is missing"):
        runs.read_config(path)


def test_c4_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=r"runs_dir=.*file: cannot be written"):
        new_run(tmp_path / "file")


def test_a_summary_that_is_not_json_is_named(tmp_path: Path) -> None:
    assert runs.read_json(tmp_path, runs.SUMMARY) == {}
    (tmp_path / runs.SUMMARY).write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json: not JSON"):
        runs.read_json(tmp_path, runs.SUMMARY)


def test_lists_of_numbers_are_written_on_one_line_and_read_back_unchanged(tmp_path: Path) -> None:
    content = {"a": [1, 2.5e-7, None, -3], "b": [[1, 0], [0, 2]], "c": ["nul", "1"], "d": {"e": []}, "f": [1, "x"], "g": "[ 1,\n 2 ]"}
    path = new_run(tmp_path)
    with runs.RunFolder(path) as folder:
        folder.write("x.json", content)
    text = (path / "x.json").read_text()
    assert runs.read_json(path, "x.json") == content
    assert "[ 1, 2.5e-07, null, -3 ]" in text
    assert len(text.splitlines()) < 30


def test_lists_in_texts_stay_as_they_are(tmp_path: Path) -> None:
    content = {"command": "pretrain 'view_sizes=[ 20,  20]'", "classes": ["[  1]", 'quote " and [\t2 ]', "back\\slash [  3]"], "n": [1]}
    path = new_run(tmp_path)
    with runs.RunFolder(path) as folder:
        folder.write("x.json", content)
    assert runs.read_json(path, "x.json") == content


def test_a_failed_flush_of_the_metrics_names_the_file_and_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with runs.RunFolder(new_run(tmp_path)) as folder:
        folder.log([{"step": 0, "loss": 1.0}])
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .* MB free: '.*metrics\.jsonl'"):
            folder.flush_metrics()
