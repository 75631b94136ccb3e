"""The lock of a run folder: one process at a time writes it (S5)."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny as small

from twoviews import runs
from twoviews.runs import lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run folder that was locked before."""
    path = runs.create(tmp_path, "a", "seed: 0\n")
    with runs.RunFolder(path):
        pass
    return path


def test_s5_eight_processes_at_one_instant_get_eight_folders(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from twoviews import runs
instant = time.time() + 0.3
pids = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        time.sleep(max(0, instant - time.time()))
        path = runs.create(Path(sys.argv[1]), "same", "seed: 0\\n")
        with runs.RunFolder(path):
            os.write(1, f"{path}\\n".encode())  # one write: lines of several processes must not mix
        os._exit(0)
    pids.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
"""
    runs_dir = tmp_path / "runs"
    command = [sys.executable, "-c", script, str(runs_dir)]
    done = subprocess.run(command, env=small.environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == len(list(runs_dir.iterdir())) == 8
    assert all(runs.read_config(path) == {"seed": 0} for path in runs_dir.iterdir())


def test_s5_of_eight_processes_on_one_folder_at_one_instant_one_gets_it(path: Path, tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from twoviews import runs
instant = time.time() + 0.3
pids = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        time.sleep(max(0, instant - time.time()))
        try:
            with runs.RunFolder(Path(sys.argv[1])):
                os.write(1, b"locked\\n")
                sys.stdin.read()
        except ValueError as error:
            os.write(1, f"{'in use by process' in str(error)}\\n".encode())
        os._exit(0)
    pids.append(pid)
sys.stdin.close()
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
"""
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, env=small.environment(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = sorted(process.stdout.readline() for _ in range(8))
        process.stdin.close()
    assert process.returncode == 0
    assert answers == ["True\n"] * 7 + ["locked\n"]


def test_s5_a_folder_in_use_is_refused_with_its_holder_and_free_after_sigkill(path: Path, tmp_path: Path) -> None:
    script = "import sys, time\nfrom pathlib import Path\nfrom twoviews.runs import RunFolder\n"
    script += "with RunFolder(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(300)\n"
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, env=small.environment(tmp_path), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            for check in (lambda: runs.RunFolder(path).__enter__(), lambda: runs.check_unlocked(path)):
                with pytest.raises(ValueError, match=f"in use by process {holder.pid} on ") as refused:
                    check()
                assert str(path) in str(refused.value)
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    runs.check_unlocked(path)
    with runs.RunFolder(path):
        assert (path / lock.HOLDER).read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("words", [["pretrain", "resume={}"], ["evaluate", "run={}"], ["report", "run={}"]])
def test_s5_a_command_on_a_folder_in_use_is_refused_before_torch_is_imported(path: Path, tmp_path: Path, words: list[str]) -> None:
    script = "import sys\nfrom twoviews.cli import main\ncode = main(sys.argv[1:])\nassert 'torch' not in sys.modules\nsys.exit(code)"
    command = [sys.executable, "-c", script, *(word.format(path) for word in words)]
    with runs.RunFolder(path):
        done = subprocess.run(command, env=small.environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert f"{path}: in use by process {os.getpid()} on " in done.stderr


def test_s5_one_process_locks_a_folder_once(path: Path) -> None:
    first = runs.RunFolder(path)  # a lock without references would be released anyway
    with first:
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "), runs.RunFolder(path):
            pass
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "):  # the second attempt did not release the lock
            runs.check_unlocked(path)
    with runs.RunFolder(path):
        pass


def test_s5_a_check_of_the_lock_does_not_keep_a_run_from_locking(path: Path) -> None:
    held = open(path / lock.LOCK)  # noqa: SIM115 - the timer closes it
    fcntl.flock(held, fcntl.LOCK_EX)  # as a check does
    release = threading.Timer(lock.PATIENCE / 4, held.close)
    release.start()
    with runs.RunFolder(path), pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "):
        runs.check_unlocked(path)
    release.join()
    for _ in range(2):
        runs.check_unlocked(path)


def test_s5_a_forked_child_does_not_release_the_lock(path: Path) -> None:
    with runs.RunFolder(path) as folder:
        pid = os.fork()
        if pid == 0:
            try:
                folder.__exit__(None, None, None)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(ValueError, match="in use by process"):
            runs.check_unlocked(path)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_s5_a_file_system_without_locks_is_reported_and_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def none(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    runs.check_unlocked(path)
    assert capsys.readouterr().out == ""
    with runs.RunFolder(path) as folder:
        folder.write("x.json", {"a": 1})
    assert f"{path}: this file system has no locks ({os.strerror(code)})" in capsys.readouterr().out
    assert {name.name for name in path.iterdir()} == {runs.CONFIG, lock.LOCK, lock.HOLDER, "x.json"}


def test_c3_a_full_disk_is_reported_and_leaves_the_folder_unlocked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match=r"No space left on device: .* MB needed, \d+ MB free"), runs.RunFolder(path):
            pass
    with runs.RunFolder(path):
        pass


def test_c3_a_disk_without_room_for_the_lock_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runs.create(tmp_path, "a", "seed: 0\n")
    real = os.open

    def full(name: Any, *args: Any, **more: Any) -> int:
        if str(name).endswith(lock.LOCK):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(name))
        return real(name, *args, **more)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match=r"No space left on device: .* MB needed, \d+ MB free"), runs.RunFolder(path):
        pass


def test_a_folder_that_cannot_be_written_is_not_checked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can lock it, and the check must not fail where a command only reads."""
    before = {name: name.stat().st_mtime_ns for name in path.iterdir()}
    monkeypatch.setattr(os, "access", lambda name, mode: mode != os.W_OK)
    monkeypatch.setattr(lock, "FileLock", None)
    runs.check_unlocked(path)
    assert {name: name.stat().st_mtime_ns for name in path.iterdir()} == before


def test_c1_files_that_a_kill_left_are_removed_by_the_next_holder(path: Path) -> None:
    (path / "checkpoint.12345.tmp").write_bytes(b"half")
    for _ in range(2):
        with runs.RunFolder(path):
            assert not list(path.glob("*.tmp"))
