"""Damaged files of a run, and a damaged cache of images: each is reported and named, or harmless."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as small
from PIL import Image

from twoviews import pretrained, runs
from twoviews.cli import main
from twoviews.data import folder as trees
from twoviews.runs import checkpoint, weights

HARD = (pytest.mark.slow, pytest.mark.timeout(2400))


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
    "of another run": lambda blob, rng: blob,  # the test takes the other run's file
}


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small.make_fast(patch.setattr)
        yield


@pytest.fixture(scope="module")
def two(_fast: None, tmp_path_factory: pytest.TempPathFactory, few: Path) -> tuple[Path, Path]:
    """Two finished runs that differ in their seed, with a previous checkpoint and the weights of every epoch."""
    place = tmp_path_factory.mktemp("two")
    for seed in (0, 1):
        words = [f"seed={seed}", "epochs=2", "log_interval=1", "checkpoint_every=1"]
        assert main(["pretrain", *small.words(few, place / f"runs{seed}", *words, batch=small.FEW_BATCH)]) == 0
    return small.only_run(place / "runs0"), small.only_run(place / "runs1")


@pytest.fixture(scope="module")
def whole(two: tuple[Path, Path]) -> dict[str, Any]:
    """The content of the first run."""
    return use(two[0])


FILES = [runs.LAST, "epoch-1.safetensors", runs.BACKBONE, runs.CONFIG, runs.METRICS, runs.MANIFEST, runs.SUMMARY]


def use(path: Path) -> dict[str, Any]:
    """Read everything of a run with the functions that the commands use."""
    return {
        "config": runs.read_config(path),
        "manifest": runs.read_json(path, runs.MANIFEST),
        "summary": runs.read_json(path, runs.SUMMARY),
        "metrics": runs.read_metrics(path),
        "backbone": [x.numpy().tobytes() for x in pretrained.load_backbone(path).state_dict().values()],
        "epoch": weights.check(runs.epoch_file(path, 1), runs.identity(path)),
        "step": checkpoint.load(path, runs.identity(path))["step"],
    }


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [2, pytest.param(25, marks=HARD)])
def test_c5_damage_to_a_file_of_a_run_is_reported_and_named_or_harmless(
    tmp_path: Path, two: tuple[Path, Path], whole: dict[str, Any], capsys: pytest.CaptureFixture[str], name: str, kind: str, times: int
) -> None:
    rng = random.Random(f"{name} {kind}")
    original = (two[0] / name).read_bytes()
    seen = 0
    for _ in range(times):
        path = tmp_path / "copy"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(two[0], path)
        broken = (two[1] / name).read_bytes() if kind == "of another run" else KINDS[kind](original, rng)
        if broken == original:  # zeros over zeros change nothing
            continue
        (path / name).write_bytes(broken)
        capsys.readouterr()
        found, problem = {}, ""
        try:
            found = use(path)
        except ValueError as error:
            problem = str(error)
        if problem:
            assert str(path / name) in problem or (name == runs.CONFIG and "from another run" in problem)
            assert "\n" not in problem
            seen += 1
            continue
        if name == runs.LAST:  # the previous one is used, and the bad one is named
            assert found["step"] == 5
            assert str(path / name) in capsys.readouterr().out
            seen += 1
        elif name == runs.METRICS and found["metrics"] != whole["metrics"]:  # cut after a line: the remaining rows are right
            assert found["metrics"] == whole["metrics"][: len(found["metrics"])]
        else:
            assert found == whole, "read, but different from what was written"
    assert seen or name == runs.METRICS or kind in ("bit flip", "zeros")


def test_c5_a_run_with_lost_metrics_reports_it_and_continues(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(two[0], path)
    lines = (path / runs.METRICS).read_bytes().splitlines(keepends=True)
    (path / runs.METRICS).write_bytes(b"".join(lines[:3]) + b"{noise}\n" + b"".join(lines[4:8]))
    capsys.readouterr()
    assert main(["pretrain", f"resume={path}"]) == 0
    problem = f"{path / runs.METRICS}, line 4: not a row of metrics: 7 of 10 steps are logged; continuing without the others"
    assert problem in capsys.readouterr().out
    assert [row["step"] for row in runs.read_metrics(path)] == [0, 1, 2, 4, 5, 6, 7]


def test_c5_a_damaged_cache_of_images_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in "ab":
        (tmp_path / "tree" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(np.full((16, 16, 3), i * 9, np.uint8)).save(tmp_path / "tree" / name / f"{i}.png")

    def read() -> Any:
        return trees.read(str(tmp_path / "tree"), trees.Options(image_size=16)).digest()

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
