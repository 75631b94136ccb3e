"""`twoviews embed`: features of a folder in a file that is complete, never overwritten, and the same in every format."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import fail_with, refused
from image_files import write_tree
from pyarrow import parquet

from twoviews.cli import main
from twoviews.commands import embed
from twoviews.embedder import Embedder

MODEL = "simclr-blood_cells-thin32"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Words of a command that embeds six images in two folders."""
    write_tree(tmp_path / "photos", "b", "a", each=3)
    return ["embed", f"run={MODEL}", f"data_dir={tmp_path / 'photos'}", f"runs_dir={tmp_path}", "device=cpu", "threads=1"]


NAMES = [f"{folder}/00{i}.png" for folder in "ab" for i in range(3)]


def read(path: Path) -> tuple[list[str], np.ndarray]:
    """Return names and features of a file in any of the formats."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            assert MODEL.split("-")[1] in str(file["model"])
            return file["names"].tolist(), file["features"]
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as text:
            header, *rows = csv.reader(text)
        assert header[:3] == ["name", "h0", "h1"]
        return [row[0] for row in rows], np.array([row[1:] for row in rows], np.float32)
    table = parquet.read_table(path)
    assert table.column_names[:2] == ["name", "h0"]
    return table["name"].to_pylist(), np.stack([table[name].to_numpy() for name in table.column_names[1:]], 1)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet", ".CSV"])
def test_a_file_has_names_and_exact_features(suffix: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / f"features, a=b{suffix}"
    assert main([*words, f"to={to}"]) == 0
    names, features = read(to.rename(to.with_suffix(suffix.lower())))
    assert names == NAMES
    assert features.dtype == np.float32
    assert np.array_equal(features, Embedder(MODEL).transform(tmp_path / "photos"))
    out = capsys.readouterr().out
    assert f"features, a=b{suffix}: 6 rows, 128 features of each image" in out
    assert out.startswith(f"model: {MODEL}: thin32, 3 x 32 x 32 pixels (recipe ")


def test_bad_files_stop_before_anything_is_written_or_are_listed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(30):
        (tmp_path / f"photos/a/bad{i:02}.jpg").write_text("no image")
    to = tmp_path / "a.csv"
    line = refused(capsys, *words, f"to={to}")
    assert "30 of 36 images cannot be read: a/bad00.jpg: not an image" in line
    assert line.rstrip().endswith("and 10 more: repair or remove them, or leave them out with on_bad=skip")
    assert not to.exists()
    assert main([*words, f"to={to}", "on_bad=skip"]) == 0
    out = capsys.readouterr().out
    assert "30 images cannot be read and left out:\n  a/bad00.jpg: not an image" in out
    assert "  and 10 more" in out
    assert read(to)[0] == NAMES


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("to=a.txt", "to=a.txt: expected a file that ends in .npz, .csv, .parquet"),
        ("to=nowhere/a.npz", "to=nowhere/a.npz: nowhere is no folder: create it"),
        ("data_dir=null", "expected data_dir=<folder of images>"),
        ("data_dir=nowhere", "nowhere: no such file or folder"),
        ("run=nowhere", "no such run"),
        ("compile=true", "compile=true: embed has no key 'compile'"),
        ("value_range='[1,0]'", "value_range"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    word: str, says: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    key = word.partition("=")[0]
    assert says in refused(capsys, *[other for other in words if not other.startswith(f"{key}=")], word)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_an_existing_file_is_never_overwritten(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "a.npz"
    to.write_text("the user's own")
    monkeypatch.setattr(embed.Embedder, "embed", lambda *_: fail_with(AssertionError("work was done")))
    assert "a.npz: exists already and is not overwritten: remove it, or choose another name" in refused(capsys, *words, f"to={to}")
    assert to.read_text() == "the user's own"
    to.unlink()
    to.symlink_to("nowhere")
    assert "exists already" in refused(capsys, *words, f"to={to}")


def test_a_file_that_appears_during_the_work_is_kept(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to, real = tmp_path / "a.npz", Embedder.embed

    def slowly(self: Embedder, images: Any) -> Any:
        result = real(self, images)
        to.write_text("of another program")
        return result

    monkeypatch.setattr(embed.Embedder, "embed", slowly)
    assert "exists already" in refused(capsys, *words, f"to={to}")
    assert to.read_text() == "of another program"


def test_an_interrupted_write_leaves_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.replace", lambda *_: fail_with(OSError(28, "No space left on device")))
    assert main([*words, f"to={tmp_path / 'a.npz'}"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_without_pyarrow_a_parquet_file_is_refused_with_the_package(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embed, "find_spec", lambda name: None)
    line = refused(capsys, *words, f"to={tmp_path / 'a.parquet'}")
    assert "needs the package pyarrow: pip install pyarrow, or write " in line
    assert "a.csv" in line


def test_a_name_that_is_no_utf_8_is_written_with_escapes(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "photos/a/000.png").rename(tmp_path / 'photos/a/\udce9, "x"\n.png')
    for suffix in (".csv", ".npz", ".parquet"):
        assert main([*words, f"to={tmp_path / f'a{suffix}'}"]) == 0
        assert read(tmp_path / f"a{suffix}")[0][2] == 'a/\\udce9, "x"\n.png'


def test_the_latest_run_is_embedded_by_default(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path / "photos", ".", each=3)
    to = tmp_path / "a.npz"
    assert main(["embed", f"data_dir={tmp_path / 'photos'}", f"runs_dir={finished.parent}", f"to={to}", "device=cpu", "threads=1"]) == 0
    with np.load(to) as file:
        assert np.array_equal(file["features"], Embedder(finished).transform(tmp_path / "photos"))
