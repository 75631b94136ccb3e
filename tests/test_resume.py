"""A run that was stopped and went on is the run that was not stopped: every bit, at every step, however it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tiny as small
import torch
from torch import Tensor

from twoviews import build, checkpoint, config, rules, runs, train
from twoviews.cli import main
from twoviews.commands import report
from twoviews.methods import METHODS

STEPS = 12
RECIPE: dict[str, str] = {}  # a card of each method, the first by name
for _name in rules.RULES["recipe"].choices:
    RECIPE.setdefault(config.load("pretrain", [f"recipe={_name}"]).method, _name)
# Five steps an epoch of half the images:
# a probe every second step, a save at every step, warm-up over three steps, and the stop in the third epoch.
LOOP = ("batch_size=32", "epochs=3", "probe_every=0.4", "checkpoint_every=0.2", "warmup_epochs=0.6")


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested states differ, tensors to the last bit."""
    if isinstance(a, Tensor):
        same = isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [f"{where}: keys"]
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        if type(a) is not type(b) or len(a) != len(b):
            return [f"{where}: length"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a} and {b}"]


def go(path: Path, words: list[str], steps: int) -> dict[str, Any]:
    """One start of a run that stops after `steps`; its parts are built anew, as in a new process. All state at its end."""
    cfg = config.load("pretrain", [*words, f"max_steps={steps}"])
    torch.manual_seed(steps * 1000 + 17)  # what a resumed process finds there must not matter
    parts = build.build(cfg)
    with runs.RunFolder(path) as folder:
        code, _ = train.fit(cfg, parts, folder)
    assert code == 0
    saved = checkpoint.read(path / checkpoint.LAST)
    assert saved.pop("clock")["total"] > 0
    return {
        "method": parts.method.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "saved": saved,
        "metrics": small.without_times(runs.metrics(path)),
    }


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the training images: the runs here are many."""
    parts = small.arrays()
    return small.write_idx(tmp_path_factory.mktemp("half"), [parts[0][: small.TRAIN // 2], parts[1][: small.TRAIN // 2], *parts[2:]])


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("cifar_thin", ["drop_last=false", "batch_size=48"]),  # 160 images: three batches of 48 and one of 16
        ("supervised", ["drop_last=false", "batch_size=48"]),
        ("moco", ["symmetric=true", "batch_size=32"]),
        ("simclr", ["optimizer=lars", "decay_norms=false", "batch_size=32"]),
        ("simclr", ["optimizer=adam", "nesterov=false", "base_learning_rate=0.01", "min_learning_rate=0", "batch_size=32"]),
    ],
)
def test_r1_other_batches_losses_and_optimisers_go_on_bit_for_bit_too(tmp_path: Path, half: Path, recipe: str, changes: list[str]) -> None:
    words = small.words(half, tmp_path, *LOOP[1:], *changes, recipe=recipe)
    steps = 8
    straight = go(runs.create(tmp_path, "straight", "seed: 0\n"), words, steps)
    for k in (3, 4, 5):
        path = runs.create(tmp_path, f"stopped{k}", "seed: 0\n")
        go(path, words, k)
        assert differences(go(path, words, steps), straight) == []
    if "drop_last=false" in changes:
        rates = [row["epoch"] for row in straight["metrics"]]
        assert rates[:5] == [0, 0.25, 0.5, 0.75, 1.0], "four steps an epoch, the short one among them"


@pytest.mark.parametrize("method", METHODS)
def test_r1_a_run_stopped_after_any_step_goes_on_bit_for_bit(tmp_path: Path, half: Path, method: str) -> None:
    words = small.words(half, tmp_path, *LOOP, recipe=RECIPE[method])
    straight = go(runs.create(tmp_path, "straight", "seed: 0\n"), words, STEPS)
    assert straight["saved"]["step"] == STEPS
    assert differences(straight["saved"]["method"], straight["method"]) == []
    assert [row["step"] for row in straight["metrics"]] == list(range(STEPS))
    assert [row["step"] for row in straight["metrics"] if "val_knn10" in row] == [1, 3, 5, 7, 9, 11]
    assert straight["optimizer"]["state"]
    for k in range(1, STEPS):
        path = runs.create(tmp_path, f"stopped-{k}", "seed: 0\n")
        stopped = go(path, words, k)
        assert stopped["saved"]["step"] == k
        assert differences(stopped["metrics"], straight["metrics"][:k]) == []
        assert differences(go(path, words, STEPS), straight) == [], f"stopped after step {k}"


def test_r6_a_chain_of_starts_of_one_step_each_is_the_straight_run(tmp_path: Path, half: Path) -> None:
    words = small.words(half, tmp_path, *LOOP)
    straight = go(runs.create(tmp_path, "straight", "seed: 0\n"), words, STEPS)
    path = runs.create(tmp_path, "chain", "seed: 0\n")
    for k in range(1, STEPS + 1):
        last = go(path, words, k)
    assert differences(last, straight) == []


def test_r1_the_default_path_of_a_cpu_goes_on_bit_for_bit_too(tmp_path: Path, half: Path) -> None:
    """bf16 autocast, two threads, and the views in C++ where there is a compiler: what a real run uses."""
    words = small.words(half, tmp_path, "compile=auto", "precision=bf16", "threads=2", "batch_size=32")
    threads = torch.get_num_threads()
    try:
        straight = go(runs.create(tmp_path, "straight", "seed: 0\n"), words, 5)
        for k in (1, 3):
            path = runs.create(tmp_path, f"stopped{k}", "seed: 0\n")
            go(path, words, k)
            assert differences(go(path, words, 5), straight) == []
    finally:
        torch.set_num_threads(threads)


def test_r3_rows_and_views_of_forty_steps_and_eight_after_a_resume_are_the_straight_runs(
    tmp_path: Path, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = build.views_on

    def watched(machine: Any, views: Any) -> Any:
        make = real(machine, views)

        def made(images: Tensor, u: Tensor) -> list[Tensor]:
            out: list[Tensor] = make(images, u)
            seen.append(hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in (images, u, *out))).hexdigest())
            return out

        return made

    monkeypatch.setattr(train, "views_on", watched)
    words = small.words(half, tmp_path, "batch_size=16", "epochs=5")
    go(runs.create(tmp_path, "straight", "seed: 0\n"), words, 48)
    straight, seen[:] = list(seen), []
    path = runs.create(tmp_path, "stopped", "seed: 0\n")
    go(path, words, 40)
    go(path, words, 48)
    assert len(set(straight)) == 48
    assert seen == straight


def test_r7_what_is_compiled_leaves_no_mark_in_a_file(tmp_path: Path, half: Path) -> None:
    """A checkpoint of a compiled run is one of a run that was not, and the other way round."""
    words = {how: small.words(half, tmp_path, f"compile={how}", "batch_size=32") for how in ("auto", "false")}
    for first, then in (("auto", "false"), ("false", "auto")):
        path = runs.create(tmp_path, first, "seed: 0\n")
        saved = go(path, words[first], 3)["saved"]
        cfg = config.load("pretrain", words[first])
        (path / runs.BACKBONE).write_bytes(build.backbone_bytes(cfg, build.build(cfg), runs.identity(path)))
        names = [*saved["method"], *build.load_backbone(path).state_dict()]
        assert not [name for name in names if "_orig_mod." in name or name.startswith("module.")]
        assert go(path, words[then], 5)["saved"]["step"] == 5


def test_a_step_that_is_taken_cannot_be_asked_away(cut_short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (cut_short / runs.METRICS).read_bytes()
    assert main(["pretrain", f"resume={cut_short}", "max_steps=1"]) == 2
    assert f"max_steps=1: {cut_short} has taken 2 steps already" in capsys.readouterr().err
    assert (cut_short / runs.METRICS).read_bytes() == before


def test_a_resumed_run_says_what_all_its_processes_took_and_keeps_its_other_read_outs(cut_short: Path) -> None:
    first = small.summary(cut_short)
    assert main(["evaluate", f"run={cut_short}", "probes=knn_euclidean"]) == 0
    state = checkpoint.load(cut_short)
    state["clock"]["wall"] = 1000.0
    checkpoint.save(cut_short, state)
    assert main(["pretrain", f"resume={cut_short}", "max_steps=2"]) == 0  # it has taken them: nothing is trained
    again = small.summary(cut_short)
    assert 1000 < again["wall_seconds"] < 1000 + 60
    assert "earlier_seconds" not in again["train"]
    assert {row["metric"] for row in again["readouts"]} == {"cosine", "euclidean"}
    assert len(again["readouts"]) == 2 * len(first["readouts"])
    assert main(["pretrain", f"resume={cut_short}"]) == 0  # to its end: other weights, so the old rows go
    assert {row["metric"] for row in small.summary(cut_short)["readouts"]} == {"cosine"}


def test_a_run_whose_data_moved_goes_on(cut_short: Path, data: Path, tmp_path: Path) -> None:
    moved = small.write_idx(tmp_path / "moved", small.arrays())
    assert main(["pretrain", f"resume={cut_short}", f"data_dir={moved}", "device=cpu"]) == 0
    assert small.summary(cut_short)["train"]["steps"] == 5


def test_differences_sees_what_differs() -> None:
    a = {"w": torch.ones(2), "l": [1, {"x": 0.5}]}
    assert differences(a, {"w": torch.ones(2), "l": [1, {"x": 0.5}]}) == []
    assert differences(a, {"w": torch.tensor([1, 1 + 1e-7]), "l": [1, {"x": 0.5}]}) == ["/w"]
    assert differences(a, {"w": torch.ones(2, dtype=torch.float64), "l": [1, {"x": 0.25}]}) == ["/w", "/l/1/x: 0.5 and 0.25"]


# ---- through the real command ----

# Twenty steps an epoch and a probe every fourth: three epochs last longer than a process needs to start.
LONG = ("batch_size=16", "epochs=3", "probe_every=0.2", "checkpoint_every=0.05")
LONG_STEPS = 3 * (small.TRAIN // 16)


def result(path: Path) -> dict[str, Any]:
    """What two equal runs have in common."""
    return {
        "backbone": (path / runs.BACKBONE).read_bytes(),
        "metrics": small.without_times(runs.metrics(path)),
        "readouts": small.without_times(small.summary(path)["readouts"]),
    }


def wait_for(tmp: Path, process: Any, runs_dir: Path, rows: int) -> Path:
    """Until a run has logged more than `rows` steps; its folder."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for metrics in runs_dir.glob("*/metrics.jsonl"):
            if metrics.read_bytes().count(b"\n") > rows:
                return metrics.parent
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {(tmp / 'stderr').read_text()}")
        time.sleep(0.01)
    raise AssertionError("no step within a minute")


@pytest.mark.parametrize(("count", "times"), [(1, 4), pytest.param(20, 3, marks=[pytest.mark.slow, pytest.mark.timeout(2400)])])
def test_c1_a_run_killed_again_and_again_is_the_run_that_was_not(tmp_path: Path, data: Path, count: int, times: int) -> None:
    straight_words = small.words(data, tmp_path / "straight", *LONG)
    assert small.command(tmp_path, "pretrain", *straight_words).returncode == 0
    expected = result(small.only_run(tmp_path / "straight"))
    random_ = random.Random(7)
    for i in range(count):
        killed_and_resumed(tmp_path, data, tmp_path / f"killed{i}", times, random_, expected)


def killed_and_resumed(tmp_path: Path, data: Path, runs_dir: Path, times: int, random_: random.Random, expected: dict[str, Any]) -> None:
    """One run through the real command, killed so many times, and what it comes to."""
    path, kills, rows = None, 0, 0
    while kills < times:
        words = small.words(data, runs_dir, *LONG) if path is None else [f"resume={path}", f"runs_dir={runs_dir}"]
        process = small.start(tmp_path, "pretrain", *words)
        try:
            if path is not None and kills % 4 == 2:  # while it starts, before it has read its checkpoint or just after
                time.sleep(random_.uniform(0.05, 3.0))
            else:  # in the midst of steps, probes and saves, three steps further at the most
                path = wait_for(tmp_path, process, runs_dir, rows)
                time.sleep(random_.uniform(0, 0.12))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL, (tmp_path / "stderr").read_text()
        kills += 1
        rows = len(runs.metrics(path))
        assert rows < LONG_STEPS  # killed while it trained, not when all was done
    done = small.command(tmp_path, "pretrain", f"resume={path}", f"runs_dir={runs_dir}")
    assert done.returncode == 0, done.stderr
    assert small.only_run(runs_dir) == path
    assert [row["step"] for row in runs.metrics(path)] == list(range(LONG_STEPS))  # every step once
    assert differences(result(path), expected) == []
    assert not list(path.glob("*.tmp"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_s1_a_signal_leaves_a_checkpoint_at_its_step_and_says_how_to_go_on(tmp_path: Path, data: Path, number: int, code: int) -> None:
    runs_dir = tmp_path / "runs"
    process = small.start(tmp_path, "pretrain", *small.words(data, runs_dir, "batch_size=16", "epochs=100", "checkpoint_every=0.05"))
    try:
        path = wait_for(tmp_path, process, runs_dir, 2)
        process.send_signal(number)
        began = time.monotonic()
        assert process.wait(timeout=30) == code
        assert time.monotonic() - began < 5
    finally:
        process.kill()
        process.wait()
    out = (tmp_path / "stdout").read_text()
    step = checkpoint.load(path)["step"]
    assert step == len(runs.metrics(path)) < 2000
    assert f"stopped at step {step} of 2000, checkpoint kept: twoviews pretrain resume={path}\n" in out
    assert (tmp_path / "stderr").read_text() == ""
    assert not (path / runs.SUMMARY).exists()
    assert not list(path.glob("*.tmp"))


def test_s1_a_signal_in_a_probe_between_two_saves_ends_the_next_step(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "write", lambda folder, parts: None)
    real = train.monitor

    def signalled(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    words = small.words(data, tmp_path / "runs", "epochs=4", "checkpoint_every=4", "probe_every=1")
    with monkeypatch.context() as patch:
        patch.setattr(train, "monitor", signalled)
        assert main(["pretrain", *words]) == 143
    path = small.only_run(tmp_path / "runs")
    assert "stopped at step 6 of 20, checkpoint kept" in capsys.readouterr().out
    assert checkpoint.load(path)["step"] == len(runs.metrics(path)) == 6


def test_s1_a_run_under_nohup_outlives_its_terminal(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(report, "write", lambda folder, parts: None)
    monkeypatch.setattr(METHODS["simclr"], "after_step", lambda self, progress: calls.append(os.kill(os.getpid(), signal.SIGHUP)))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["pretrain", *small.words(data, tmp_path / "nohup")]) == 0
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert main(["pretrain", *small.words(data, tmp_path / "plain")]) == 129
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(calls) == 6
    assert checkpoint.load(small.only_run(tmp_path / "plain"))["step"] == 1


def test_s1_a_signal_between_two_saves_still_keeps_its_step(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS["simclr"]
    calls = []

    def after_step(self: Any, progress: Tensor) -> None:
        calls.append(float(progress))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(report, "write", lambda folder, parts: None)
    monkeypatch.setattr(method, "after_step", after_step)
    words = small.words(data, tmp_path / "runs", "epochs=2", "checkpoint_every=2")
    before = signal.getsignal(signal.SIGINT)
    assert main(["pretrain", *words]) == 130
    path = small.only_run(tmp_path / "runs")
    assert checkpoint.load(path)["step"] == 3
    assert calls == pytest.approx([0, 0.1, 0.2])
    assert signal.getsignal(signal.SIGINT) is before  # the caller's own handler is back
    assert main(["pretrain", f"resume={path}", f"runs_dir={tmp_path / 'runs'}"]) == 0
    assert main(["pretrain", *small.words(data, tmp_path / "straight", "epochs=2", "checkpoint_every=2")]) == 0
    assert differences(result(path), result(small.only_run(tmp_path / "straight"))) == []


# ---- what a resumed run keeps, and what is refused ----


@pytest.fixture
def cut_short(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that `max_steps` cut after two of its five steps."""
    monkeypatch.setattr(report, "write", lambda folder, parts: None)
    assert main(["pretrain", *small.words(data, tmp_path / "runs", "max_steps=2")]) == 0
    return small.only_run(tmp_path / "runs")


def test_a_changed_recipe_is_refused_with_what_differs(cut_short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in cut_short.iterdir()}
    where = [f"resume={cut_short}", f"runs_dir={cut_short.parent}"]
    capsys.readouterr()
    assert main(["pretrain", *where, "temperature=0.3", "seed=4", "batch_size=64"]) == 2
    err = capsys.readouterr().err
    assert re.search(r"temperature: 0\.\d+ in the run, 0\.3 asked", err)
    assert "seed: 0 in the run, 4 asked" in err
    assert "batch_size" not in err  # the same as in the run
    assert f"init={cut_short}" in err
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in cut_short.iterdir()} == before


def test_the_same_command_with_the_same_run_id_goes_on(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "write", lambda folder, parts: None)
    words = small.words(data, tmp_path / "runs", "run_id=170017")
    half = tmp_path / "runs/fashion_thin-fashion_mnist-thin16-170017"
    half.mkdir(parents=True)
    (half / runs.CONFIG).write_text("seed: 0\n")  # killed before it came to its first step
    assert main(["pretrain", *words, "max_steps=2"]) == 0
    path = small.only_run(tmp_path / "runs")
    assert path == half
    capsys.readouterr()
    assert main(["pretrain", *words]) == 0
    said = capsys.readouterr().out
    assert f"run_id=170017: going on with {path}\n" in said
    assert f"resuming {path} at step 2 of 5" in said
    assert main(["pretrain", *small.words(data, tmp_path / "straight")]) == 0
    assert differences(result(path), result(small.only_run(tmp_path / "straight"))) == []
    assert main(["pretrain", *words, "temperature=0.3"]) == 2
    assert "a resumed run keeps its recipe (temperature" in capsys.readouterr().err
    with runs.RunFolder(path):
        assert main(["pretrain", *words]) == 2
    assert "in use by process" in capsys.readouterr().err
    (path / runs.MANIFEST).unlink()
    assert main(["pretrain", *words]) == 2
    assert (path / checkpoint.LAST).exists(), "a folder with a checkpoint is not swept away, whatever it lacks"


@pytest.mark.parametrize("run_id", ["../x", "a/b", ".hidden", "a" * 65, "ä", "a b"])
def test_a_run_id_is_a_plain_word(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], run_id: str) -> None:
    assert main(["pretrain", *small.words(data, tmp_path / "runs", f"run_id={run_id}")]) == 2
    assert "run_id=" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_changed_data_are_refused(cut_short: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = small.arrays()
    parts[0][0, 0, 0] ^= 1
    other = small.write_idx(tmp_path / "other", parts)
    capsys.readouterr()
    assert main(["pretrain", f"resume={cut_short}", f"data_dir={other}"]) == 2
    assert "the data differ from the run's" in capsys.readouterr().err


def test_a_resumed_run_goes_on_to_its_end_on_the_machine_of_the_manifest(
    cut_short: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []
    real = build.build
    monkeypatch.setattr(build, "build", lambda cfg: seen.append(cfg) or real(cfg))
    manifest = json.loads((cut_short / runs.MANIFEST).read_text())
    assert main(["pretrain", f"resume={cut_short}"]) == 0
    assert all(seen[0][key] == manifest[key] for key in ("device", "threads", "precision", "compile"))
    assert small.summary(cut_short)["train"]["steps"] == 5
    assert main(["pretrain", *small.words(data, tmp_path / "straight")]) == 0
    assert differences(result(cut_short), result(small.only_run(tmp_path / "straight"))) == []


def test_resume_falls_back_to_the_previous_checkpoint(
    cut_short: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["pretrain", f"resume={cut_short}"]
    assert main([*where, "max_steps=3"]) == 0
    (cut_short / checkpoint.LAST).write_bytes(b"noise")
    capsys.readouterr()
    assert main(where) == 0
    out = capsys.readouterr().out
    assert "going on from checkpoint.previous" in out
    assert f"resuming {cut_short} at step 2 of 5" in out
    assert main(["pretrain", *small.words(data, tmp_path / "straight")]) == 0
    assert differences(result(cut_short), result(small.only_run(tmp_path / "straight"))) == []


def test_a_run_without_a_usable_checkpoint_is_refused(cut_short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cut_short / checkpoint.LAST).write_bytes(b"noise")
    (cut_short / checkpoint.PREVIOUS).unlink(missing_ok=True)
    capsys.readouterr()
    assert main(["pretrain", f"resume={cut_short}"]) == 2
    assert "not a TwoViews checkpoint" in capsys.readouterr().err


def test_init_starts_anew_from_the_weights_of_a_run(cut_short: Path, data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    cfg = config.load("pretrain", small.words(data, tmp_path / "new", f"init={cut_short}", "seed=5"))
    stored = load_file(cut_short / runs.BACKBONE)
    assert differences(dict(build.build(cfg).method.backbone.state_dict()), stored) == []
    plain = build.build(config.load("pretrain", small.words(data, tmp_path / "new", "seed=5")))
    assert differences(dict(plain.method.backbone.state_dict()), stored) != []
    assert main(["pretrain", *small.words(data, tmp_path / "new", f"init={cut_short}", "max_steps=1")]) == 0
    new = small.only_run(tmp_path / "new")
    assert runs.metrics(new)[0]["loss"] != runs.metrics(cut_short)[0]["loss"]
    untrained = [[row for row in small.summary(path)["readouts"] if row["of"] == "untrained"] for path in (new, cut_short)]
    assert small.without_times(untrained[0]) == small.without_times(untrained[1])  # the untrained backbone stays the untrained one
