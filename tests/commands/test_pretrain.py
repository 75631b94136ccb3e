"""`twoviews pretrain`: what it refuses, what happens when something fails, and the files that a run leaves."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny as small
import torch
from command_helpers import fail_with, pretrained, refused

from twoviews import evaluation, runs, train
from twoviews.cli import main
from twoviews.commands import evaluate as evaluate_command
from twoviews.methods import METHODS
from twoviews.probes import protocols
from twoviews.runs import checkpoint


def words(few: Path, runs_dir: Path, *more: str, recipe: str = "fashion_thin") -> list[str]:
    return small.words(few, runs_dir, *more, recipe=recipe, batch=small.FEW_BATCH)


# ---- what is refused ----


@pytest.mark.parametrize("dataset", ["cifar10", "fashion_mnist"])
def test_a_missing_data_folder_is_refused_and_leaves_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: str) -> None:
    said = refused(capsys, "pretrain", *words(tmp_path / "nowhere", tmp_path / "runs", f"dataset={dataset}"))
    assert str(tmp_path / "nowhere") in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("batch_size=41", "batch_size=41: Fashion-MNIST has 40 images in train+val"),
        ("min_learning_rate=1", "min_learning_rate=1: above the peak rate"),
        ("warmup_epochs=1", "warmup_epochs=1: as long as the run"),
        ("init=nowhere", "nowhere"),
        ("run=latest", "no key 'run'"),
        ("probes='knn,nosuch'", "probes"),
        ("method=moco", "method=moco: needs the key queue_size, which recipe=fashion_thin does not set"),
    ],
)
def test_values_that_do_not_fit_are_refused_and_leave_no_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, few: Path, word: str, says: str
) -> None:
    assert says in refused(capsys, "pretrain", *words(few, tmp_path / "runs", word))
    assert not (tmp_path / "runs").exists()


def test_a_key_that_a_constructor_names_and_no_recipe_sets_is_reported_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, few: Path, tmp_path: Path
) -> None:
    class New(METHODS["supervised"]):
        def __init__(self, *, brandnew: int, **rest: Any) -> None:
            super().__init__(**rest)

    monkeypatch.setitem(METHODS, "supervised", New)
    said = refused(capsys, "pretrain", *words(few, tmp_path / "runs", recipe="supervised"))
    assert "method=supervised: needs the key brandnew, which recipe=supervised does not set" in said


def test_a_probe_without_a_step_is_refused_before_training(capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path) -> None:
    """With the test images, training fills a batch that the labelled images do not fill."""
    said = refused(
        capsys, "pretrain", *words(few, tmp_path, "train_size=20", "train_on=train+val+test", "batch_size=32", "probes=linear_sgd")
    )
    assert "linear_sgd uses full batches of 32 (the run's)" in said
    assert "has only 20 images" in said
    assert not list(tmp_path.iterdir())


def test_c4_a_runs_dir_that_cannot_be_written_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, few: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be: root may write everywhere else")
    assert f"runs_dir={tmp_path / 'file'}: cannot be written" in refused(capsys, "pretrain", *words(few, tmp_path / "file"))


def test_c4_a_read_only_runs_dir_is_refused_before_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, few: Path, tmp_path: Path
) -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS))  # root may write everywhere, so the system's answer is simulated
    monkeypatch.setattr(Path, "mkdir", lambda *args, **more: fail_with(error))
    monkeypatch.setattr(train, "fit", lambda *args: fail_with(AssertionError("trained")))
    said = refused(capsys, "pretrain", *words(few, tmp_path / "runs"))
    assert f"runs_dir={tmp_path / 'runs'}: cannot be written (Read-only file system): choose another with runs_dir=" in said


def test_c4_a_folder_may_have_any_name(few: Path, tmp_path: Path, fast: None) -> None:
    path = pretrained(few, tmp_path / f"läufe, 'a=b' $HOME 跑 {'x' * 180}")
    assert main(["evaluate", f"run={path}", "probes=knn"]) == 0


# ---- what fails while it runs ----


def test_c4_a_run_folder_that_disappears_ends_the_run_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, few: Path, tmp_path: Path, fast: None
) -> None:
    steps = []

    def after_step(self: Any, progress: torch.Tensor) -> None:
        steps.append(progress)
        if len(steps) == 3:
            shutil.rmtree(small.only_run(tmp_path / "runs"))

    monkeypatch.setattr(METHODS["simclr"], "after_step", after_step)
    assert main(["pretrain", *words(few, tmp_path / "runs")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"twoviews: {tmp_path / 'runs'}")
    assert said.endswith(": the folder no longer exists\n")
    assert said.count("\n") == 1
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes. Error code 12"),
    ],
    ids=["Python", "CUDA", "CPU"],
)
def test_n3_out_of_memory_names_two_remedies_and_keeps_the_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, few: Path, tmp_path: Path, fast: None, error: Exception
) -> None:
    simclr = METHODS["simclr"]
    forward, calls = simclr.forward, []

    def full(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(simclr, "forward", full)
        assert main(["pretrain", *words(few, tmp_path / "runs", "checkpoint_every=0.4")]) == 1
    said = capsys.readouterr().err
    path = small.only_run(tmp_path / "runs")
    assert said.startswith("twoviews: out of memory with batch_size=8, views of 20 and 20 pixels, precision=fp32: start a new run with ")
    assert "batch_size=4 or view_sizes=[15,15]" in said
    assert f"resume={path} continues it" in said
    assert said.count("\n") == 1
    assert checkpoint.load(path)["step"] == 2
    assert main(["pretrain", f"resume={path}"]) == 0
    monkeypatch.setattr(evaluate_command, "evaluate", lambda *args, **more: fail_with(error))
    assert main(["evaluate", f"run={path}"]) == 1
    assert capsys.readouterr().err.startswith(f"twoviews: out of memory: nothing of {path} is lost")


@pytest.mark.parametrize("kind", ["loss", "gradient", "input"])
@pytest.mark.parametrize("save_every", [0.4, 1], ids=["a save right after it", "no save before the next loss"])
def test_n1_a_value_that_is_not_finite_stops_the_run_keeps_the_last_good_weights_and_can_be_replayed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, few: Path, fast: None, kind: str, save_every: float
) -> None:
    simclr = METHODS["simclr"]
    forward, at = simclr.forward, 7  # of ten steps in two epochs

    def wrong(self: Any, views: list[torch.Tensor], labels: Any, progress: torch.Tensor) -> Any:
        now = round(progress.item() * 10) == at
        if now and kind == "input":
            views = [view * float("nan") for view in views]
        loss, extras = forward(self, views, labels, progress)
        if now and kind == "loss":
            loss = loss * float("inf")
        if now and kind == "gradient":
            loss = loss + (0 * self.backbone.conv1.weight.sum()).sqrt()  # 0, with a gradient of 0 / 0
        return loss, extras

    monkeypatch.setattr(simclr, "forward", wrong)
    assert main(["pretrain", *words(few, tmp_path / "runs", "epochs=2", f"checkpoint_every={save_every}", "log_interval=1")]) == 3
    said = capsys.readouterr().err
    path = small.only_run(tmp_path / "runs")
    step = at + (kind == "gradient" and save_every == 1)  # the gradient shows in the next loss, or in the weights before they are saved
    assert f"at step {step}, learning rate" in said
    assert said.count("\n") == 1
    assert not (path / runs.SUMMARY).exists()
    state = checkpoint.load(path)
    assert state["step"] == (6 if save_every == 0.4 else 5)
    assert all(torch.isfinite(x).all() for x in state["method"].values())
    assert [row["step"] for row in runs.read_metrics(path)] == list(range(step))

    replay = runs.read_json(path, runs.REPLAY)
    assert (replay["step"], replay["seed"], len(replay["losses_before"])) == (step, 0, step)
    assert replay["command"].startswith("twoviews pretrain resume=")
    assert replay["command"] in said
    assert main(shlex.split(replay["command"])[1:]) == 3
    assert f"at step {step}, learning rate" in capsys.readouterr().err
    assert runs.read_json(path, runs.REPLAY) == replay


def test_n1_a_rate_far_too_high_diverges_with_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, few: Path, fast: None) -> None:
    for key, rate in (("learning_rate", 1000), ("base_learning_rate", 1000)):
        too_high = ("optimizer=sgd", f"{key}={rate}", "min_learning_rate=0", "weight_decay=10")
        assert main(["pretrain", *words(few, tmp_path / "runs", *too_high)]) == 3
        assert f"try a lower {key}; " in capsys.readouterr().err


def test_a_probe_that_fails_can_be_left_out_when_the_run_is_resumed(
    capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: None
) -> None:
    predict = protocols.predict
    error = FloatingPointError("the loss is nan")
    failing = lambda probe, **more: fail_with(error) if probe == "low_label" else predict(probe, **more)  # noqa: E731
    monkeypatch.setattr(protocols, "predict", failing)
    assert main(["pretrain", *words(few, tmp_path / "runs", "probes='knn,low_label'")]) == 4
    path = small.only_run(tmp_path / "runs")
    assert main(["pretrain", f"resume={path}", "probes=knn"]) == 0
    assert {row["probe"] for row in small.summary(path)["evaluations"]} == {"knn"}


def test_a_summary_is_never_beside_the_weights_of_another_step(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: None
) -> None:
    path = pretrained(few, tmp_path / "runs", "max_steps=2")
    assert small.summary(path)["train"]["steps"] == 2
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", lambda *args, **more: fail_with(KeyboardInterrupt()))
        assert main(["pretrain", f"resume={path}"]) == 130
    assert small.summary(path)["train"]["steps"] == 5
    assert small.summary(path)["evaluations"] == []
    assert main(["pretrain", f"resume={path}"]) == 0
    assert small.summary(path)["train"]["steps"] == 5


# ---- what a run leaves ----


def test_a_finished_run_has_its_files_and_no_others(finished: Path) -> None:
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".")} - {"checkpoint.previous"}
    assert names == {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "checkpoint",
        "backbone.safetensors",
        "summary.json",
        "report.html",
        "neighbours.png",
    }
    assert re.fullmatch(r"fashion_thin-fashion_mnist-thin16-\d{8}-\d{6}-[0-9a-f]{6}", finished.name)


def test_the_summary_has_a_row_for_each_protocol_and_kind_of_features(finished: Path) -> None:
    summary = small.summary(finished)
    rows = summary["evaluations"]
    keys = {"knn": {"k", "metric", "weights"}, "linear_precomp": {"solver", "weight_decay"}}
    for row in rows:
        assert set(row) - {"confusion"} == {"of", "probe", "features", "split", "accuracy", "per_class", "seconds"} | keys[row["probe"]]
        assert 0 <= row["accuracy"] <= 1
        assert row["split"] == "test"
        assert row["features"] == ("pixels" if row["of"] == "raw_pixels" else "h")
        assert row["seconds"] >= 0
    kinds = ("raw_pixels", "random_initialisation", "trained")
    of_each = {of: [(row["probe"], row.get("k")) for row in rows if row["of"] == of] for of in kinds}
    expected = [("knn", k) for k in (1, 5, 10, 20, 200)] + [("linear_precomp", None)]
    assert of_each == dict.fromkeys(kinds, expected)
    assert {"sec_per_epoch", "loss", "views_per_s", "peak_bytes", "steps", "seconds"} <= set(summary["train"])
    assert summary["train"]["steps"] == 5
    beside = {"probe_seconds", "compile_seconds"}  # nothing was probed or compiled, so these are 0 or milliseconds
    assert all(value > 0 for name, value in summary["train"].items() if name not in beside)
    assert all(0 <= summary["train"][name] < 1 for name in beside)
    about = {key: summary[key] for key in ("recipe", "method", "uses_labels", "backbone", "seed", "train_on", "epochs", "batch_size")}
    assert about == {
        "recipe": "fashion_thin",
        "method": "simclr",
        "uses_labels": False,
        "backbone": "thin16",
        "seed": 0,
        "train_on": "train+val",
        "epochs": 1,
        "batch_size": small.BATCH,
    }
    assert summary["wall_seconds"] >= summary["train"]["seconds"]


def test_the_manifest_says_where_and_how_it_ran(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["versions"].keys() == {"twoviews", "torch", "torchvision", "numpy"}
    assert (manifest["device"], manifest["threads"], manifest["precision"], manifest["compile"]) == ("cpu", 1, "fp32", False)
    assert re.fullmatch(r"[0-9a-f]{64}", manifest["data_digest"])
    assert {"command", "commit", "python", "system", "machine", "seed", "started"} <= set(manifest)


def test_the_metrics_have_a_row_per_step(finished: Path) -> None:
    rows = runs.read_metrics(finished)
    assert [row["step"] for row in rows] == list(range(5))
    assert [row["epoch"] for row in rows] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert all({"loss", "lr"} <= set(row) for row in rows)
    assert {"views_per_s", "seconds"} <= set(rows[-1])


def test_x4_a_run_stores_no_secret_of_its_environment(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home/jane-roe"
    home.mkdir(parents=True)
    for name, value in {"HOME": str(home), "USER": "jane-roe", "LOGNAME": "jane-roe", "API_TOKEN": "hunter2-hunter2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home)
    typed = words(few, Path("runs"), "max_steps=1")
    monkeypatch.setattr(sys, "argv", [str(home / "venv/bin/twoviews"), "pretrain", *typed])
    assert main(["pretrain", *typed]) == 0
    for file in small.only_run(home / "runs").iterdir():
        text = file.read_bytes()
        assert b"jane-roe" not in text, file.name
        assert b"hunter2" not in text, file.name


def test_the_backbone_is_saved_every_so_many_epochs(few: Path, tmp_path: Path, fast: None) -> None:
    path = pretrained(few, tmp_path / "runs", "epochs=3", "log_interval=1", "checkpoint_every=3")  # whether or not its step is saved
    saved = sorted(p.name for p in path.glob("epoch-*"))
    assert saved == [f"epoch-{n}.safetensors" for n in (1, 2, 3)]
    assert (path / saved[2]).read_bytes() == (path / runs.BACKBONE).read_bytes() != (path / saved[0]).read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_r4_the_same_seed_gives_the_same_run_and_another_seed_another(few: Path, tmp_path: Path, fast: None, precision: str) -> None:
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = pretrained(few, tmp_path / name, f"precision={precision}", f"seed={seed}")
        losses.append(([row["loss"] for row in runs.read_metrics(path)], (path / runs.BACKBONE).read_bytes()))
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[2][0]
    assert losses[0][1] != losses[2][1]
