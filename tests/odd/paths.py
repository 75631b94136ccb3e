"""Paths: `~`, no home folder, caches that cannot be written, and commands in another folder than before."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
import yaml

from odd.odd import Odd
from twoviews import config, runs
from twoviews.cli import main
from twoviews.config import PATH_KEYS
from twoviews.runs import files


def the_home_folder_is_put_in_place_of_a_tilde_in_every_path_key(odd: Odd) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(odd.root))
        for verb, key in (("pretrain", key) for key in ("resume", "init", "runs_dir", "data_dir", "classes")):
            for typed in ("~/x y", "'~/x y'"):
                assert config.load(verb, [f"{key}={typed}"])[key] == str(odd.root / "x y"), key
        assert config.load("evaluate", ["run=~"]).run == str(odd.root)
        assert config.load("embed", ["to=~/a.csv"]).to == str(odd.root / "a.csv")
        assert config.load("pretrain", [config.word("data_dir", Path("~/photos"))]).data_dir == str(odd.root / "photos")
        assert config.load("pretrain", ["run_id=~x"]).run_id == "~x", "not a path: refused later, as it is"
    assert set(PATH_KEYS) == {"resume", "init", "runs_dir", "data_dir", "classes", "run", "to", "run_id", "export_dir"}


def a_tilde_that_is_no_home_folder_is_refused_or_written_with_a_dot(odd: Odd) -> None:
    assert "data_dir=~nobody-has-this-name/x: ~nobody-has-this-name has no home folder here" in odd.refused(
        "pretrain", "data_dir=~nobody-has-this-name/x"
    )
    for literal in ("./~x", "a~b", "a/~/b"):
        assert config.load("pretrain", [f"data_dir={literal}"]).data_dir == literal


def the_home_folder_of_a_user_is_found(odd: Odd) -> None:
    import pwd

    user = pwd.getpwuid(os.getuid())
    assert config.load("pretrain", [f"data_dir=~{user.pw_name}/x"]).data_dir == f"{user.pw_dir}/x"


def _without_home(patch: pytest.MonkeyPatch, temporary: Path) -> None:
    """Make this process one of a user number without a home folder, as in a container."""

    def fail(key: object) -> None:
        raise KeyError(key)

    import pwd

    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        patch.delenv(name, raising=False)
    patch.setattr(pwd, "getpwuid", fail)
    patch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    patch.setattr(tempfile, "tempdir", str(temporary))
    files.temporary_cache.cache_clear()


def without_a_home_folder_the_cache_is_a_temporary_folder_and_this_is_said_once(odd: Odd) -> None:
    odd.images("cat", "dog", each=20)
    with pytest.MonkeyPatch.context() as patch:
        _without_home(patch, odd.root)
        (path, out) = odd.trained()
        cache = odd.root / f"twoviews-{os.getuid()}"
        assert out.count("cannot be written: using") == 1
        assert str(cache) in out
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700
        assert list(cache.glob("images-*"))
        assert os.environ["MPLCONFIGDIR"] == str(cache), "matplotlib would warn"
        assert "has no home folder here" in odd.said(lambda: main(["pretrain", "data_dir=~/x"]))[2]
    files.temporary_cache.cache_clear()
    assert (path / runs.SUMMARY).is_file()


def a_temporary_folder_that_others_can_write_is_not_trusted(odd: Odd) -> None:
    for prepare in (
        lambda path: path.mkdir(mode=0o777) or path.chmod(0o777),
        lambda path: path.write_text(""),
        lambda path: path.symlink_to("/"),
    ):
        path = odd.root / f"twoviews-{os.getuid()}"
        prepare(path)
        with pytest.MonkeyPatch.context() as patch:
            _without_home(patch, odd.root)
            chosen = odd.said(lambda: files.cache_file("a.bin"))[0]
        files.temporary_cache.cache_clear()
        assert chosen.parent != path
        assert stat.S_IMODE(chosen.parent.stat().st_mode) == 0o700
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def a_cache_that_cannot_be_written_is_replaced_but_its_files_are_used(odd: Odd) -> None:
    cache = odd.root / "cache/twoviews"
    cache.mkdir(parents=True)
    (cache / "old.bin").write_bytes(b"")
    real = os.access
    with pytest.MonkeyPatch.context() as patch:  # root may write everywhere, so the system's answer is simulated
        patch.setattr(os, "access", lambda path, mode: Path(path) != cache and real(path, mode))
        patch.setattr(tempfile, "gettempdir", lambda: str(odd.root))
        assert files.cache_file("old.bin") == cache / "old.bin"
        (path, out, _) = odd.said(lambda: [files.cache_file("new.bin"), files.cache_file("newer.bin")])
    files.temporary_cache.cache_clear()
    assert [file.parent for file in path] == [odd.root / f"twoviews-{os.getuid()}"] * 2
    assert out.count("\n") == 1
    assert f"the cache folder {cache} cannot be written" in out


def a_cache_folder_that_is_a_file_does_not_stop_a_run(odd: Odd) -> None:
    odd.images("cat", "dog", each=20)
    (odd.root / "cache").write_text("not a folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "gettempdir", lambda: str(odd.root))
        _, out = odd.trained()
    files.temporary_cache.cache_clear()
    assert "cannot be written: using" in out


def commands_in_another_folder_find_data_that_were_given_by_a_relative_path(odd: Odd) -> None:
    odd.images("cat", "dog", each=20)
    (odd.root / "classes.txt").write_text("dog\ncat\n")
    (odd.root / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(odd.root)
        path, _ = odd.trained("data_dir=photos", "classes=classes.txt")
        patch.chdir(odd.root / "elsewhere")
        code, _, err = odd.run("evaluate", f"run={path}", "threads=1", "compile=false", "precision=fp32")
        assert (code, err) == (0, "")
    stored = yaml.safe_load((path / runs.CONFIG).read_text())
    assert (stored["data_dir"], stored["classes"]) == (str(odd.data), str(odd.root / "classes.txt"))
