"""Runs that are killed, signalled, starved and damaged: short forms here, full counts in `make test-hard` (docs/reliability.md)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny as small

from twoviews import build, checkpoint, runs
from twoviews.cli import main
from twoviews.commands import report
from twoviews.data import folder as trees

HARD = (pytest.mark.slow, pytest.mark.timeout(2400))


def harness(what: str, data: Path, tmp_path: Path, count: int, recipe: str = "fashion_thin", seed: int = 0) -> dict[str, Any]:
    """What `killer.py` found."""
    words = [
        sys.executable,
        str(Path(__file__).with_name("killer.py")),
        what,
        str(data),
        str(tmp_path / what),
        str(count),
        recipe,
        str(seed),
    ]
    done = subprocess.run(words, cwd=tmp_path, env=small.environment(tmp_path), capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found)
    return found


@pytest.mark.parametrize("recipe", ["fashion_thin", "moco_thin"])
@pytest.mark.parametrize(("count", "seed"), [(2, 0), *(pytest.param(25, seed, marks=HARD) for seed in (1, 2, 3, 4))])  # in workers' turns
def test_c1_a_run_killed_at_random_instants_is_the_run_that_was_not(data: Path, tmp_path: Path, recipe: str, count: int, seed: int) -> None:
    found = harness("kills", data, tmp_path, count, recipe, seed)
    assert found["wrong"] == []
    assert found["kills"] > count


def test_c2_a_save_killed_at_eight_points_leaves_the_old_or_the_new_checkpoint(data: Path, tmp_path: Path) -> None:
    found = harness("saves", data, tmp_path, 1)
    assert found["wrong"] == []
    assert found["loaded"] == [2] * 5 + [3] * 3


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=HARD)])
def test_c3_a_full_disk_keeps_the_last_checkpoint_and_says_how_much_room_is_needed(data: Path, tmp_path: Path, count: int) -> None:
    found = harness("disk", data, tmp_path, count)
    assert found["wrong"] == []
    assert found["cases"] == count


@pytest.mark.parametrize("count", [3, pytest.param(60, marks=HARD)])
def test_s1_a_signal_in_any_step_leaves_a_checkpoint_of_it(data: Path, tmp_path: Path, count: int) -> None:
    found = harness("signals", data, tmp_path, count)
    assert found["wrong"] == []
    assert found["longest"] < 2, "a step takes milliseconds here"
    assert found["runs"] == count


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=HARD)])  # of the three signals
def test_s1_a_signal_while_it_starts_probes_saves_or_reads_out_leaves_no_traceback(data: Path, tmp_path: Path, count: int) -> None:
    found = harness("moments", data, tmp_path, count)
    assert found["wrong"] == []
    assert found["moments"] == 4 * count


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=HARD)])
def test_s3_a_signal_to_the_group_while_images_are_decoded_ends_it_at_once(tmp_path: Path, times: int) -> None:
    import numpy as np
    from PIL import Image

    (tmp_path / "tree").mkdir()
    for i in range(400):
        Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(tmp_path / f"tree/{i}.png")
    slow = """
import signal, sys, time
from twoviews import cli
from twoviews.data import folder

def slowly(path, size, real=folder._open):
    print("decoding", flush=True)
    time.sleep(0.05)
    return real(path, size)

folder._open = slowly
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background has it ignored
sys.exit(cli.main(sys.argv[1:]))
"""
    words = [
        "pretrain",
        "recipe=fashion_thin",
        "dataset=folder",
        f"data_dir={tmp_path / 'tree'}",
        "image_size=8",
        "device=cpu",
        "threads=1",
    ]
    for _ in range(times):
        with open(tmp_path / "said", "w") as said:
            process = subprocess.Popen(
                [sys.executable, "-c", slow, *words],
                cwd=tmp_path,
                env=small.environment(tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")),
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until = time.monotonic() + 60
        while "decoding" not in (tmp_path / "said").read_text() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        assert process.wait(timeout=60) == 130, (tmp_path / "said").read_text()
        assert time.monotonic() - began < 2
        assert "Traceback" not in (tmp_path / "said").read_text()
        assert not (tmp_path / "runs").exists()
        assert not list((tmp_path / "cache").rglob("*.npy*"))


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=HARD)])
def test_s2_a_second_interrupt_leaves_at_once(data: Path, tmp_path: Path, count: int) -> None:
    found = harness("twice", data, tmp_path, count)
    assert found["wrong"] == []
    assert found["longest"] < 2


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_n4_two_hundred_epochs_leak_nothing(data: Path, tmp_path: Path) -> None:
    found = harness("leaks", data, tmp_path, 200)
    assert found["exit"] == 0
    rows = found["rows"]
    assert len(rows) == 200
    settled = rows[20:]  # what is made once is made by then
    pages = [row[0] for row in settled]
    assert max(pages) < 1.02 * pages[0]
    assert len({tuple(row[1:]) for row in settled}) == 1, "open files and threads"


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_s5_a_second_process_on_a_run_folder_ends_within_three_seconds_and_a_killed_one_frees_it(
    tmp_path: Path, two: tuple[Path, Path]
) -> None:
    path = tmp_path / "held"
    shutil.copytree(two[0], path)
    hold = "import sys, time; from pathlib import Path; from twoviews import runs\n"
    hold += "with runs.RunFolder(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(path)], env=small.environment(tmp_path), stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for i in range(50):
            verb = ["pretrain", f"resume={path}"] if i % 2 else ["evaluate", f"run={path}"]
            began = time.monotonic()
            done = small.command(tmp_path, *verb)
            assert done.returncode == 2, done.stderr
            assert f"in use by process {holder.pid} on " in done.stderr
            assert time.monotonic() - began < 3
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with runs.RunFolder(path):
        pass


# ---- damage ----


def swapped(blob: bytes, rng: random.Random) -> bytes:
    middle = len(blob) // 2
    return blob[:middle] + blob[middle:][::-1]


def flipped(blob: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(blob))
    return blob[:at] + bytes([blob[at] ^ (1 << rng.randrange(8))]) + blob[at + 1 :]


def zeroed(blob: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(blob))
    size = min(64, len(blob) - at)
    return blob[:at] + bytes(size) + blob[at + size :]


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit flip": flipped,
    "truncated": lambda blob, rng: blob[: rng.randrange(len(blob))],
    "zeros": zeroed,
    "tail swapped": swapped,
    "empty": lambda blob, rng: b"",
    "random": lambda blob, rng: rng.randbytes(len(blob)),
    "HTML page": lambda blob, rng: b"<!doctype html><title>502 Bad Gateway</title>\n",
    "of another run": lambda blob, rng: blob,  # see below
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, Path]:
    """Two finished runs that differ in their seed, with a checkpoint before the last and the weights of every epoch."""
    place = tmp_path_factory.mktemp("two")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder, parts: None)
        for seed in (0, 1):
            words = small.words(data, place / f"runs{seed}", f"seed={seed}", "epochs=2", "log_interval=1", "checkpoint_every=1")
            assert main(["pretrain", *words]) == 0
            found.append(small.only_run(place / f"runs{seed}"))
    return found[0], found[1]


FILES = [checkpoint.LAST, "epoch-1.safetensors", runs.BACKBONE, runs.CONFIG, runs.METRICS, runs.MANIFEST, runs.SUMMARY]


def use(path: Path) -> dict[str, Any]:
    """Everything that is read of a run, by the functions that the verbs read it with."""
    return {
        "config": runs.config(path),
        "manifest": runs.read_json(path, runs.MANIFEST),
        "summary": runs.read_json(path, runs.SUMMARY),
        "metrics": runs.metrics(path),
        "backbone": [x.numpy().tobytes() for x in build.load_backbone(path).state_dict().values()],
        "epoch": build.check_weights(runs.epoch_file(path, 1), runs.identity(path)),
        "step": checkpoint.load(path, runs.identity(path))["step"],
    }


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [2, pytest.param(25, marks=HARD)])
def test_c5_damage_to_a_file_of_a_run_is_seen_and_named_or_harmless(
    tmp_path: Path, two: tuple[Path, Path], capsys: pytest.CaptureFixture[str], name: str, kind: str, times: int
) -> None:
    rng = random.Random(f"{name} {kind}")
    whole = use(two[0])
    original = (two[0] / name).read_bytes()
    seen = 0
    for _ in range(times):
        path = tmp_path / "copy"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(two[0], path)
        broken = (two[1] / name).read_bytes() if kind == "of another run" else KINDS[kind](original, rng)
        if broken == original:  # zeros over zeros are no damage
            continue
        (path / name).write_bytes(broken)
        capsys.readouterr()
        found, problem = {}, ""
        try:
            found = use(path)
        except ValueError as error:
            problem = str(error)
        if problem:
            assert str(path / name) in problem or (name == runs.CONFIG and "of another run" in problem)
            assert "\n" not in problem
            seen += 1
            continue
        if name == checkpoint.LAST:  # the one before it is taken, and the bad one named
            assert found["step"] == 5
            assert str(path / name) in capsys.readouterr().out
            seen += 1
        elif name == runs.METRICS and found["metrics"] != whole["metrics"]:  # cut after a line: the rows that are left are right
            assert found["metrics"] == whole["metrics"][: len(found["metrics"])]
        else:
            assert found == whole, "read, and not as it was written"
    assert seen or name == runs.METRICS or kind in ("bit flip", "zeros"), "whatever is left of it"


def test_c5_a_run_with_lost_metrics_says_so_and_goes_on(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    shutil.copytree(two[0], path)
    lines = (path / runs.METRICS).read_bytes().splitlines(keepends=True)
    (path / runs.METRICS).write_bytes(b"".join(lines[:3]) + b"{noise}\n" + b"".join(lines[4:8]))
    capsys.readouterr()
    assert main(["pretrain", f"resume={path}"]) == 0
    said = capsys.readouterr().out
    assert f"{path / runs.METRICS}, line 4: not a row of metrics: of 10 steps 7 are logged; going on without the others" in said
    assert [row["step"] for row in runs.metrics(path)] == [0, 1, 2, 4, 5, 6, 7]


def test_c5_a_damaged_cache_of_images_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in "ab":
        (tmp_path / "tree" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(np.full((16, 16, 3), i * 9, np.uint8)).save(tmp_path / "tree" / name / f"{i}.png")

    def read() -> Any:
        return trees.read(str(tmp_path / "tree"), image_size=16, on_bad="stop").digest()

    digest = read()
    (cache,) = (tmp_path / "cache/twoviews").iterdir()
    whole = cache.read_bytes()
    for kind, spoil in KINDS.items():
        broken = spoil(whole, random.Random(kind))
        if kind == "of another run":
            continue
        cache.write_bytes(broken)
        capsys.readouterr()
        assert read() == digest
        assert (f"cache {cache} is damaged" in capsys.readouterr().out) == (broken != whole)
        assert cache.read_bytes() == whole
