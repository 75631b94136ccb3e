"""Run folders are found by path, by name, or as the newest finished run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from twoviews import runs


def new_run(tmp_path: Path, name: str = "a") -> Path:
    return runs.create(tmp_path, name, "seed: 0\n")


def test_latest_is_the_newest_finished_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        runs.find("latest", tmp_path)
    older, newer, unfinished = (new_run(tmp_path, name) for name in ("a", "b", "c"))
    with pytest.raises(ValueError, match=f"no finished run.*{unfinished.name}"):
        runs.find("latest", tmp_path)
    for age, path in ((20, older), (10, newer)):
        (path / runs.SUMMARY).write_text("{}")
        (path / runs.BACKBONE).write_text("weights")
        os.utime(path / runs.BACKBONE, (1e9 - age, 1e9 - age))
    assert runs.find("latest", tmp_path) == newer
    assert runs.find(unfinished.name, tmp_path) == runs.find(str(unfinished), Path("elsewhere")) == unfinished
    with pytest.raises(ValueError, match="run=nothing: no such run folder"):
        runs.find("nothing", tmp_path)


def test_weights_of_an_epoch_are_found_or_the_saved_epochs_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"load_epoch=3: .* only the last one: log_interval="):
        runs.epoch_file(tmp_path, 3)
    for epoch in (10, 2):
        (tmp_path / f"epoch-{epoch}.safetensors").write_bytes(b"")
    assert runs.epoch_file(tmp_path, 10) == tmp_path / "epoch-10.safetensors"
    with pytest.raises(ValueError, match=r"load_epoch=3: .*saved epochs: 2, 10"):
        runs.epoch_file(tmp_path, 3)


def test_the_end_of_a_name_is_enough_where_one_run_alone_has_it(tmp_path: Path) -> None:
    cold, warm = (runs.create(tmp_path, "recipe", "seed: 0\n", name) for name in ("a-cold", "b-warm"))
    assert (runs.find("cold", tmp_path), runs.find("a-cold", tmp_path), runs.find("warm", tmp_path)) == (cold, cold, warm)
    runs.create(tmp_path, "other", "seed: 0\n", "a-cold")
    for name in ("cold", "old", ""):
        with pytest.raises(ValueError, match="no such run folder"):
            runs.find(name, tmp_path)
