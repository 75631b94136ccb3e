"""Run folders, their lock, and files that are either whole or refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import payloads
import pytest
import torch
from tiny import command, environment, words

from twoviews import checkpoint, lock, manifest, runs

STATE = {"step": 3, "method": {"w": torch.arange(500.0)}, "clock": {"epochs": [1.0, 2.0]}}


def new_run(tmp_path: Path, name: str = "a") -> Path:
    return runs.create(tmp_path, name, "seed: 0\n")


def test_s5_eight_processes_at_one_instant_get_eight_folders(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from twoviews import lock, runs
instant = time.time() + 0.3
pids = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        time.sleep(max(0, instant - time.time()))
        made = runs.create(Path(sys.argv[1]), "same", "seed: 0\\n")
        os.write(1, f"{made}\\n".encode())  # one write: print's line and its end may be torn apart by another process's
        os._exit(0)
    pids.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
"""
    where = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-c", script, str(where)], env=environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == len(list(where.iterdir())) == 8
    assert all(runs.config(path) == {"seed": 0} for path in where.iterdir())


def test_s5_a_folder_in_use_is_refused_with_its_holder_and_free_after_sigkill(tmp_path: Path) -> None:
    path = new_run(tmp_path)
    script = "import sys, time\nfrom pathlib import Path\nfrom twoviews.runs import RunFolder\n"
    script += "with RunFolder(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(300)\n"
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            with pytest.raises(ValueError, match=f"in use by process {holder.pid} on ") as refused, runs.RunFolder(path):
                pass
            assert str(path) in str(refused.value)
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    with runs.RunFolder(path) as folder:
        assert f"process {os.getpid()} " in (folder.path / ".lock").read_text()


@pytest.mark.parametrize("words", [["pretrain", "resume={}"], ["evaluate", "run={}"], ["report", "run={}"]])
def test_s5_a_command_on_a_folder_in_use_is_refused_before_torch_is_imported(tmp_path: Path, words: list[str]) -> None:
    path = new_run(tmp_path)
    script = "import sys\nfrom twoviews.cli import main\ncode = main(sys.argv[1:])\nassert 'torch' not in sys.modules\nsys.exit(code)"
    command = [sys.executable, "-c", script, *(word.format(path) for word in words)]
    with runs.RunFolder(path):
        done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert f"{path}: in use by process {os.getpid()} on " in done.stderr


def test_s5_a_look_at_a_lock_does_not_keep_a_run_from_taking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new_run(tmp_path)
    with runs.RunFolder(path):
        pass
    with open(path / lock.LOCK, encoding="utf-8") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(lock.time, "sleep", lambda seconds: looking.close())
        with runs.RunFolder(path), pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "):
            lock.look(path)
    lock.look(path)


def test_c1_the_lock_is_released_at_the_end_and_stale_files_are_swept(tmp_path: Path) -> None:
    path = new_run(tmp_path)
    (path / "checkpoint.12345.tmp").write_bytes(b"half")
    for _ in range(2):
        with runs.RunFolder(path):
            assert not list(path.glob("*.tmp"))


def test_a_folder_without_config_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"), runs.RunFolder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_c1_a_folder_has_its_configuration_or_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            runs.create(tmp_path, "a", "seed: 0\n", "17")
    assert runs.folders(tmp_path) == []
    path = runs.create(tmp_path, "a", "seed: 0\n", "17")
    assert runs.config(path) == {"seed": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["a-17"]
    with pytest.raises(ValueError, match=r"run_id=17: .*a-17 is there"):
        runs.create(tmp_path, "a", "seed: 0\n", "17")


def test_c5_a_run_on_other_data_is_another_run(tmp_path: Path) -> None:
    one, same, other, none = (runs.create(tmp_path, "a", "seed: 0\n", None, digest) for digest in ("1f", "1f", "2f", ""))
    assert runs.identity(one) == runs.identity(same)
    assert len({runs.identity(path) for path in (one, other, none)}) == 3
    assert runs.config(one) == {"seed": 0}


def test_s5_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = new_run(tmp_path)

    def none(*args: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with runs.RunFolder(path) as folder:
        folder.write("x.json", {"a": 1})
    assert "its file system has no locks (Function not implemented)" in capsys.readouterr().out


def test_c2_where_a_file_has_one_name_only_the_previous_checkpoint_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    checkpoint.save(tmp_path, {"step": 1})
    checkpoint.save(tmp_path, {"step": 2})
    assert [checkpoint.read(tmp_path / name)["step"] for name in (checkpoint.LAST, checkpoint.PREVIOUS)] == [2, 1]
    assert not list(tmp_path.glob("*.tmp"))


def test_c4_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=r"runs_dir=.*file: cannot be written"):
        new_run(tmp_path / "file")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_c3_a_failed_write_keeps_the_old_file_and_says_how_much_room_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "summary.json"
    checkpoint.write_atomic(path, b"old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"No space left on device: 2\.0 MB needed, \d+ MB free") as failed:
        checkpoint.write_atomic(path, bytes(2 * 2**20))
    assert str(path) in str(failed.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


class Killed(BaseException):
    """Stands for SIGKILL: no `except OSError` sees it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Die at the n-th of the calls that a save makes to the system; the list counts them."""
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
            (folder / checkpoint.LAST).write_bytes(b"noise")
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


def test_a_checkpoint_comes_back_as_it_was_and_the_one_before_is_kept(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE)
    checkpoint.save(tmp_path, {"step": 4})
    before = checkpoint.read(tmp_path / checkpoint.PREVIOUS)
    assert before["step"] == 3
    assert before["clock"] == STATE["clock"]
    assert torch.equal(before["method"]["w"], STATE["method"]["w"])
    assert checkpoint.load(tmp_path) == {"step": 4}


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
def test_c5_damage_is_detected_and_the_previous_checkpoint_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    random_ = random.Random(kind)
    tried = 0
    while tried < 40:
        checkpoint.save(tmp_path, {"step": 3})
        checkpoint.save(tmp_path, STATE | {"step": 4})
        blob = (tmp_path / checkpoint.LAST).read_bytes()
        broken = damaged(blob, kind, random_)
        if broken == blob:  # zeros over zeros are no damage
            continue
        tried += 1
        (tmp_path / checkpoint.LAST).write_bytes(broken)
        with pytest.raises(ValueError, match=f"{checkpoint.LAST}: "):
            checkpoint.read(tmp_path / checkpoint.LAST)
        assert checkpoint.load(tmp_path)["step"] == 3
        assert "going on from checkpoint.previous" in capsys.readouterr().out


def test_c5_two_damaged_checkpoints_are_refused_with_both_reasons(tmp_path: Path) -> None:
    (tmp_path / checkpoint.LAST).write_bytes(b"")
    (tmp_path / checkpoint.PREVIOUS).write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"checkpoint: not a TwoViews.*; .*checkpoint\.previous: not a TwoViews"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("form", payloads.FORMS)
def test_x1_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "ran"
    payload = payloads.make(form, marker)
    checkpoint.save(tmp_path, {"step": 1})
    checkpoint.save(tmp_path, {"step": 2})
    (tmp_path / checkpoint.LAST).write_bytes(payloads.sealed(payload))  # even with a checksum that holds
    with pytest.raises(ValueError, match=f"{checkpoint.LAST}: .*more than tensors"):
        checkpoint.read(tmp_path / checkpoint.LAST)
    assert checkpoint.load(tmp_path) == {"step": 1}
    (tmp_path / checkpoint.LAST).write_bytes(payload)  # and without one
    with pytest.raises(ValueError, match=f"{checkpoint.LAST}: not a TwoViews checkpoint"):
        checkpoint.read(tmp_path / checkpoint.LAST)
    assert not marker.exists()


def test_x1_the_payloads_would_have_acted(tmp_path: Path) -> None:
    for form in payloads.FORMS:
        payloads.run_freely(form, tmp_path / form)


def test_c7_a_torn_last_line_of_the_metrics_is_skipped_and_cut_on_resume(tmp_path: Path) -> None:
    path = new_run(tmp_path)
    with runs.RunFolder(path) as folder:
        folder.log([{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
        with open(path / runs.METRICS, "a") as file:
            file.write('{"step": 3, "lo')
        assert [row["step"] for row in runs.metrics(path)] == [0, 1, 2]
        folder.truncate_metrics(2)
        folder.log([{"step": 2, "loss": 0.25}])
    assert [json.loads(line)["step"] for line in (path / runs.METRICS).read_text().splitlines()] == [0, 1, 2]


def test_c7_a_torn_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / runs.METRICS).write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        runs.metrics(tmp_path)


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
    with pytest.raises(ValueError, match="run=nothing: no run folder there"):
        runs.find("nothing", tmp_path)


def test_a_summary_that_is_not_json_is_named(tmp_path: Path) -> None:
    assert runs.read_json(tmp_path, runs.SUMMARY) == {}
    (tmp_path / runs.SUMMARY).write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json: not JSON"):
        runs.read_json(tmp_path, runs.SUMMARY)


@pytest.mark.parametrize(
    ("program", "typed", "kept"),
    [
        ("/home/me/.venv/bin/twoviews", ["/home/me/.venv/bin/twoviews", "pretrain", "seed=0,1", "-m"], "twoviews pretrain seed=0,1 -m"),
        ("twoviews pretrain", ["/home/me/.venv/bin/twoviews", "pretrain", "seed=0,1", "-m"], "twoviews pretrain seed=0,1 -m"),  # in a sweep
        ("/lib/twoviews/__main__.py", ["-m", "twoviews", "pretrain", "data_dir=a b"], "twoviews pretrain 'data_dir=a b'"),
        ("/lib/twoviews/__main__.py", ["-W", "ignore", "-Xdev", "-mtwoviews", "pretrain"], "twoviews pretrain"),
        ("simclr.py", ["-O", "simclr.py", "backbone=resnet18"], "python simclr.py backbone=resnet18"),
        ("/home/me/script.py", ["/home/me/script.py"], "python script.py"),
        ("", [], "python"),
    ],
)
def test_the_manifest_keeps_the_command_as_it_was_typed(program: str, typed: list[str], kept: str) -> None:
    assert manifest._command([program], ["python", *typed]) == kept


def test_lists_of_numbers_stand_on_one_line_and_read_back_the_same(tmp_path: Path) -> None:
    content = {"a": [1, 2.5e-7, None, -3], "b": [[1, 0], [0, 2]], "c": ["nul", "1"], "d": {"e": []}, "f": [1, "x"], "g": "[ 1,\n 2 ]"}
    path = new_run(tmp_path)
    with runs.RunFolder(path) as folder:
        folder.write("x.json", content)
    text = (path / "x.json").read_text()
    assert runs.read_json(path, "x.json") == content
    assert "[ 1, 2.5e-07, null, -3 ]" in text
    assert len(text.splitlines()) < 30


def test_the_manifests_commit_is_the_packages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a repository that an environment happens to lie in."""
    package = tmp_path / "lib/twoviews"
    package.mkdir(parents=True)

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-qm", "a")
    monkeypatch.setattr(manifest, "__file__", str(package / "manifest.py"))
    assert manifest._commit() is None
    (tmp_path / "twoviews").mkdir()
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "twoviews/manifest.py"))
    assert manifest._commit() == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("b")
    assert manifest._commit() == git("rev-parse", "HEAD") + "+"


def test_a_sweeps_manifest_has_the_verb_and_no_folder_of_hydras(tmp_path: Path, data: Path) -> None:
    done = command(tmp_path, "pretrain", *words(data, tmp_path / "runs", "seed=0,1", "max_steps=1"), "--multirun")
    assert done.returncode == 0, done.stderr
    manifests = list((tmp_path / "runs").glob("*/manifest.json"))
    assert len(manifests) == 2
    for path in manifests:
        said = json.loads(path.read_text())["command"]
        assert said.startswith("twoviews pretrain recipe=")
        assert said.endswith("--multirun")
