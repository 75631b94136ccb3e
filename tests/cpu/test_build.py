"""Compiling C++ files: once per machine, without OpenMP where it is missing, and never a file that another user could have written."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from twoviews import device
from twoviews.cpu import build
from twoviews.cpu.build import load
from twoviews.runs import files


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file that compiles in a moment, and an empty cache folder."""
    if not device.compiler():
        pytest.skip("no C++ compiler on this machine")
    path = tmp_path / "number.cpp"
    path.write_text('extern "C" int forty_two() { return 42; }\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield str(path)
    build._library.cache_clear()


def load_again(source: str) -> ctypes.CDLL | None:
    """Return what a new process would load: `load` keeps its result for the rest of this one."""
    build._library.cache_clear()
    return load(source, {"forty_two": []})


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "twoviews").iterdir())


def test_a_file_is_compiled_once_per_machine(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = load_again(source)
    assert library is not None
    assert library.forty_two() == 42
    assert capsys.readouterr().out == "compiling number.cpp for this machine, once\n"
    (path,) = cached(tmp_path)
    stamp = path.stat().st_mtime_ns
    assert load(source, {"forty_two": []}) is library
    assert load_again(source) is not None
    assert [path.stat().st_mtime_ns for path in cached(tmp_path)] == [stamp]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("change", ["flags", "source", "torch", "processor", "instructions", "compiler"])
def test_another_machine_or_source_gets_another_file(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    assert load_again(source) is not None
    if change == "flags":
        monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, "-DOTHER"])
    elif change == "source":
        Path(source).write_text('extern "C" int forty_two() { return 6 * 7; }\n')
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "0.0")
    elif change == "compiler":
        other = tmp_path / "g++"
        other.write_text(f'#!/bin/sh\necho version 0\nexec {device.compiler()} "$@"\n')
        other.chmod(0o755)
        monkeypatch.setattr(build, "compiler", lambda: str(other))
    else:
        monkeypatch.setattr(build, "cpu_name" if change == "processor" else "cpu_features", lambda: "another")
    assert load_again(source) is not None
    assert len(cached(tmp_path)) == 2


def test_a_compiler_without_openmp_makes_a_library_of_one_thread(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = tmp_path / "cxx"
    fake.write_text(
        f'#!/bin/sh\ncase " $* " in *" -fopenmp "*) echo "unsupported option" >&2; exit 1;; esac\nexec {device.compiler()} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(build, "compiler", lambda: str(fake))
    library = load_again(source)
    assert library is not None
    assert library.forty_two() == 42
    assert f"{fake} has no OpenMP" in capsys.readouterr().out


def test_x1_a_library_that_another_user_could_have_written_is_not_loaded(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_again(source) is not None
    for path in (tmp_path / "twoviews", *cached(tmp_path)):
        mode = path.stat().st_mode
        path.chmod(0o777)
        capsys.readouterr()
        assert load_again(source) is None
        assert "can be written by another user" in capsys.readouterr().out
        path.chmod(mode)
        assert load_again(source) is not None
    real = Path.stat
    foreign = lambda self, **options: os.stat_result([*real(self, **options)[:4], 54321, *real(self, **options)[5:10]])  # noqa: E731
    monkeypatch.setattr(Path, "stat", foreign)
    assert load_again(source) is None


@pytest.mark.parametrize("broken", ["no compiler", "a compiler that fails"])
def test_without_a_library_one_line_says_why(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    if broken == "no compiler":
        monkeypatch.setattr(build, "compiler", lambda: None)
    else:
        monkeypatch.setattr(build, "FLAGS", ["--no-such-flag"])
    assert load_again(source) is None
    printed = capsys.readouterr().out
    assert ("number.cpp could not be compiled or loaded" in printed) == (broken != "no compiler")
    assert printed.count("\n") <= 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_where_the_cache_cannot_be_written_the_library_is_among_the_temporary_files(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "twoviews").write_text("in the way")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files.temporary_cache.cache_clear()
    assert load_again(source) is not None
    files.temporary_cache.cache_clear()
    assert len(list(tmp_path.glob("twoviews-*/number-*.so"))) == 1
    assert "cannot be written: using" in capsys.readouterr().out
