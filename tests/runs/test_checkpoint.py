"""Checkpoints: two per run, each complete or refused, whatever interrupts a save."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import payloads
import pytest
import torch

from twoviews import runs
from twoviews.runs import checkpoint

STATE = {"step": 3, "method": {"w": torch.arange(500.0)}, "clock": {"epochs": [1.0, 2.0]}}


class Killed(BaseException):
    """Stands for SIGKILL: no `except OSError` catches it."""


def test_a_checkpoint_is_read_back_unchanged_and_the_previous_one_is_kept(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE)
    checkpoint.save(tmp_path, {"step": 4})
    before = checkpoint.read(tmp_path / runs.PREVIOUS)
    assert before["step"] == 3
    assert before["clock"] == STATE["clock"]
    assert torch.equal(before["method"]["w"], STATE["method"]["w"])
    assert checkpoint.load(tmp_path) == {"step": 4}


def test_c2_without_hard_links_the_previous_checkpoint_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    checkpoint.save(tmp_path, {"step": 1})
    checkpoint.save(tmp_path, {"step": 2})
    assert [checkpoint.read(tmp_path / name)["step"] for name in (runs.LAST, runs.PREVIOUS)] == [2, 1]
    assert not list(tmp_path.glob("*.tmp"))


def test_c2_the_save_after_one_that_was_killed_before_its_file_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"step": 1})
    os.link(tmp_path / runs.LAST, tmp_path / runs.PREVIOUS)  # killed between the two: both names are one file
    checkpoint.save(tmp_path, {"step": 2})
    assert [checkpoint.read(tmp_path / name)["step"] for name in (runs.LAST, runs.PREVIOUS)] == [2, 1]
    assert not list(tmp_path.glob("*.tmp"))


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Die at the n-th system call of a save; the list counts the calls."""
    count = [0]

    def counted(real: Any) -> Any:
        def wrapper(*args: Any, **more: Any) -> Any:
            count[0] += 1
            if count[0] == call:
                raise Killed
            return real(*args, **more)

        return wrapper

    for name in ("link", "replace", "fsync", "open"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    return count


@pytest.mark.parametrize("last_damaged", [False, True], ids=["after-two-saves", "after-a-fallback"])
def test_c2_a_save_killed_at_any_point_leaves_a_checkpoint_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], last_damaged: bool
) -> None:
    calls = 0
    for call in range(1, 100):
        folder = tmp_path / str(call)
        folder.mkdir()
        checkpoint.save(folder, {"step": 1})
        checkpoint.save(folder, {"step": 2})
        if last_damaged:
            (folder / runs.LAST).write_bytes(b"noise")
            assert checkpoint.load(folder) == {"step": 1}
        with monkeypatch.context() as patch:
            count = kill_at(patch, call)
            try:
                checkpoint.save(folder, {"step": 3})
            except Killed:
                killed = True
            else:
                killed = False
            calls = max(calls, count[0])
        assert checkpoint.load(folder)["step"] in ((1, 3) if last_damaged else (2, 3))
        if not killed:
            break
    assert calls >= 4  # after a fallback: fsync and replace of the file, open and fsync of the folder; else link and replace before
    assert checkpoint.load(folder) == {"step": 3}


def damaged(blob: bytes, kind: str, random_: random.Random) -> bytes:
    at = random_.randrange(len(blob))
    return {
        "bit flip": blob[:at] + bytes([blob[at] ^ (1 << random_.randrange(8))]) + blob[at + 1 :],
        "truncated": blob[:at],
        "zeros": blob[:at] + bytes(min(64, len(blob) - at) or 1) + blob[at + 64 :],
        "longer": blob + b"\0",
        "empty": b"",
        "HTML page": b"<!doctype html><title>502 Bad Gateway</title>",
        "noise": random_.randbytes(len(blob)),
    }[kind]


@pytest.mark.parametrize("kind", ["bit flip", "truncated", "zeros", "longer", "empty", "HTML page", "noise"])
def test_c5_damage_is_detected_and_the_previous_checkpoint_used(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    random_ = random.Random(kind)
    tried = 0
    while tried < 20:
        checkpoint.save(tmp_path, {"step": 3})
        checkpoint.save(tmp_path, STATE | {"step": 4})
        blob = (tmp_path / runs.LAST).read_bytes()
        broken = damaged(blob, kind, random_)
        if broken == blob:  # zeros over zeros change nothing
            continue
        tried += 1
        (tmp_path / runs.LAST).write_bytes(broken)
        with pytest.raises(ValueError, match=f"{runs.LAST}: "):
            checkpoint.read(tmp_path / runs.LAST)
        assert checkpoint.load(tmp_path)["step"] == 3
        assert "continuing from checkpoint.previous" in capsys.readouterr().out


def test_c5_two_damaged_checkpoints_are_refused_with_both_reasons(tmp_path: Path) -> None:
    (tmp_path / runs.LAST).write_bytes(b"")
    (tmp_path / runs.PREVIOUS).write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"checkpoint: not a TwoViews.*; .*checkpoint\.previous: not a TwoViews"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("form", payloads.FORMS)
def test_x1_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "ran"
    payload = payloads.make(form, marker)
    checkpoint.save(tmp_path, {"step": 1})
    checkpoint.save(tmp_path, {"step": 2})
    (tmp_path / runs.LAST).write_bytes(payloads.sealed(payload))  # even with a correct checksum
    with pytest.raises(ValueError, match=f"{runs.LAST}: .*more than tensors"):
        checkpoint.read(tmp_path / runs.LAST)
    assert checkpoint.load(tmp_path) == {"step": 1}
    (tmp_path / runs.LAST).write_bytes(payload)  # and without one
    with pytest.raises(ValueError, match=f"{runs.LAST}: not a TwoViews checkpoint"):
        checkpoint.read(tmp_path / runs.LAST)
    assert not marker.exists()


def test_x1_the_payloads_would_have_acted(tmp_path: Path) -> None:
    for form in payloads.FORMS:
        payloads.run_freely(form, tmp_path / form)
