"""Trackers: the curve is complete after a kill and a resume, nothing leaves the machine, and a tracker that fails stops no run."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny as small
from command_helpers import refused

from twoviews import runs, trackers
from twoviews.cli import main
from twoviews.config.schema import TRACKERS
from twoviews.trackers import kinds

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # of the trackers about themselves
CONFIG = {"recipe": "simclr", "seed": 0}


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trackers write below a folder of the test alone."""
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    if "trackio" in sys.modules:
        for module in [m for name, m in sys.modules.items() if name.startswith("trackio") and hasattr(m, "TRACKIO_DIR")]:
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio_dir")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return runs.create(tmp_path / "runs", "run", "seed: 0\n", "a")


def row(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "loss": 5.0 - step / 100, "lr": 0.1}


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [row(step) for step in range(first, last)]


def curve(name: str, path: Path) -> dict[int, list[float]]:
    """Return what a tracker has of the loss: {step: values}."""
    found: dict[int, list[float]] = {}
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        pairs = [(event.step, event.value) for event in events.Scalars("loss")]
    elif name == "mlflow":
        mlflow = importlib.import_module("mlflow")
        client = mlflow.MlflowClient(f"sqlite:///{path.parent.resolve() / 'mlflow.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name(kinds.PROJECT).experiment_id])
        pairs = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss")]
    else:
        storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        pairs = [
            (one["step"], one["loss"])
            for one in storage.get_logs(kinds.PROJECT, f"{path.name}-{kinds.identity(path)[:6]}")
            if "loss" in one
        ]
    for step, value in pairs:
        found.setdefault(int(step), []).append(float(value))
    return found


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "mlflow"])
def test_the_curve_is_complete_after_a_kill_and_a_resume(name: str, folder: Path) -> None:
    with runs.RunFolder(folder) as run:
        first = trackers.Followers([name], run, CONFIG)
        run.listeners.append(first.log)
        run.log(rows(0, 60))
        run.log(rows(60, 110))
        first.close()  # what was sent has arrived; a kill can lose what follows
        run.listeners.clear()
        run.log(rows(110, 120))  # written, and killed before it was sent
    with runs.RunFolder(folder) as run:
        run.truncate_metrics(115)  # back to the checkpoint
        second = trackers.Followers([name], run, CONFIG)
        run.listeners.append(second.log)
        run.log(rows(115, 150))
        run.log(rows(150, 160))
        second.finish({"test kNN k=10 (h, cosine)": 0.5})
        second.close()
    found = curve(name, folder)
    assert sorted(found) == list(range(160))
    assert {step: values for step, values in found.items() if len(values) > 1} == {}
    assert all(values == [pytest.approx(row(step)["loss"])] for step, values in found.items())


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_what_was_sent_beyond_the_checkpoint_is_not_sent_again(name: str, folder: Path) -> None:
    with runs.RunFolder(folder) as run:
        first = trackers.Followers([name], run, CONFIG)
        run.listeners.append(first.log)
        run.log(rows(0, 100))
        first.close()
    with runs.RunFolder(folder) as run:
        run.truncate_metrics(60)
        second = trackers.Followers([name], run, CONFIG)
        run.listeners.append(second.log)
        for start in range(60, 140, 20):
            run.log(rows(start, start + 20))
        second.close()
    assert {step: len(values) for step, values in curve(name, folder).items()} == dict.fromkeys(range(140), 1)


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "mlflow"])
def test_a_run_goes_on_after_its_final_accuracies(name: str, folder: Path) -> None:
    for first, last in ((0, 30), (30, 60)):
        with runs.RunFolder(folder) as run:
            followers = trackers.Followers([name], run, CONFIG)
            run.listeners.append(followers.log)
            run.log(rows(first, last))
            followers.finish({"test kNN": 0.5})
            followers.close()
    assert {step: len(values) for step, values in curve(name, folder).items()} == dict.fromkeys(range(60), 1)


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_a_run_whose_training_had_ended_still_sends_its_accuracies(name: str, folder: Path) -> None:
    with runs.RunFolder(folder) as run:
        run.log(rows(0, 20))
        followers = trackers.Followers([name], run, CONFIG)
        followers.finish({"test kNN": 0.5})
        followers.close()
    assert sorted(curve(name, folder)) == list(range(20))


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_a_new_run_of_the_same_name_has_a_curve_of_its_own(name: str, folder: Path) -> None:
    identities = []
    for started, count in (("2026-01-01", 30), ("2026-01-02", 10)):
        shutil.rmtree(folder)
        runs.create(folder.parent, "run", "seed: 0\n", "a")
        with runs.RunFolder(folder) as run:
            run.write(runs.MANIFEST, {"started": started})
            followers = trackers.Followers([name], run, CONFIG)
            run.listeners.append(followers.log)
            run.log(rows(0, count))
            followers.close()
            assert followers.names == [name]
            assert followers.open[name].last == count - 1
        identities.append(kinds.identity(folder))
        if name == "trackio":
            assert sorted(curve(name, folder)) == list(range(count))
    assert identities[0] != identities[1]


def test_a_server_that_is_down_leaves_the_environment_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    before = dict(os.environ)
    with runs.RunFolder(folder) as run:
        followers = trackers.Followers(["mlflow"], run, CONFIG)
        run.listeners.append(followers.log)
        run.log(rows(0, 3))
        run.log(rows(3, 6))
        followers.close()
    assert capsys.readouterr().out.count("track=mlflow: left out from now on") == 1
    assert {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"} == {
        name: value for name, value in before.items() if name != "PYTEST_CURRENT_TEST"
    }


def test_mlflow_does_not_report_its_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    seen = []
    original = kinds.MLflow._open
    monkeypatch.setattr(kinds.MLflow, "_open", lambda *args: (seen.append(os.environ["MLFLOW_DISABLE_TELEMETRY"]), original(*args))[1])
    with runs.RunFolder(folder) as run:
        followers = trackers.Followers(["mlflow"], run, CONFIG)
        followers.log([])
        followers.close()
    assert seen == ["true"]
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ


def test_only_the_first_process_sends(folder: Path) -> None:
    with runs.RunFolder(folder, writes=False) as run:
        followers = trackers.Followers(["tensorboard"], run, CONFIG)
        followers.log(rows(0, 3))
        followers.finish({})
        followers.close()
    assert not (folder / "tensorboard").exists()


def test_a_tracker_named_twice_is_one_and_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trackers.check("tensorboard, tensorboard") == ["tensorboard"]
    (tmp_path / "here/wandb").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "here")])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match="wandb is not installed"):
        trackers.check("wandb")


class Wandb:
    """A stand-in for the module: a server that ignores steps that it has, as Weights & Biases does."""

    def __init__(self, *, online: bool) -> None:
        self.online, self.received, self.options = online, Counter(), []  # type: ignore[var-annotated]
        self.ended, self.logged_in = 0, True

    Settings = SimpleNamespace

    def login(self, *, prompt: bool) -> bool:
        assert not prompt
        return self.logged_in

    def init(self, **options: Any) -> Any:
        assert options["reinit"] == "create_new"
        assert 0 < options["settings"].finish_timeout < 600
        self.options.append(options)
        step = max(self.received, default=-1) + 1 if self.online and options["resume"] else 0
        return SimpleNamespace(step=step, log=self._log, summary={}, finish=self._finish)

    def _log(self, values: dict[str, float], step: int) -> None:
        assert set(values) == {"epoch", "loss", "lr"}
        self.received[step] += 1

    def _finish(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("online", [False, True])
def test_weights_and_biases_gets_every_step_under_one_identity(online: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Wandb(online=online)
    monkeypatch.setitem(sys.modules, "wandb", there)
    if online:
        monkeypatch.setenv("WANDB_MODE", "online")
    for first, last in ((0, 80), (60, 120)):
        with runs.RunFolder(folder) as run:
            run.truncate_metrics(first)
            followers = trackers.Followers(["wandb"], run, CONFIG)
            run.listeners.append(followers.log)
            run.log(rows(first, last))
            followers.close()
    assert sorted(there.received) == list(range(120))
    assert len({options["id"] for options in there.options}) == 1
    assert [options["mode"] for options in there.options] == ["online" if online else "offline"] * 2
    assert there.ended == 2
    if online:
        assert set(there.received.values()) == {1}


def test_nobody_is_logged_in_at_weights_and_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Wandb(online=True)
    there.logged_in = False
    monkeypatch.setitem(sys.modules, "wandb", there)
    monkeypatch.setattr(trackers.followers, "find_spec", lambda name: SimpleNamespace(origin=name))
    assert trackers.check("wandb") == ["wandb"], "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ValueError, match="WANDB_MODE=online, but nobody is logged in: type wandb login"):
        trackers.check("wandb")


def test_weights_and_biases_itself_writes_offline(folder: Path) -> None:
    with runs.RunFolder(folder) as run:
        followers = trackers.Followers(["wandb"], run, CONFIG)
        run.listeners.append(followers.log)
        run.log(rows(0, 50))
        followers.finish({"test kNN": 0.5})
        followers.close()
        assert followers.open
    (written,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + 60
    while written.read_bytes().count(b"loss") < 50 and time.monotonic() < end:  # another process writes it, also after finish()
        time.sleep(0.1)
    assert written.read_bytes().count(b"loss") >= 50


class Broken:
    """A tracker that fails in one of its calls."""

    def __init__(self, where: str) -> None:
        self.where, self.last = where, -1
        self.fail("open")

    def fail(self, where: str) -> None:
        if where == self.where:
            raise ConnectionError("the server\nis down")

    def log(self, rows: Any) -> None:
        self.fail("log")

    def finish(self, results: Any) -> None:
        self.fail("finish")

    def close(self) -> None:
        self.fail("close")


@pytest.mark.parametrize("where", ["open", "log", "finish", "close"])
def test_a_tracker_that_fails_stops_no_run_and_is_named_once(
    where: str, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fast: None
) -> None:
    monkeypatch.setitem(kinds.KINDS, "wandb", lambda path, config: Broken(where))
    words = small.words(few, tmp_path / "all", "track=wandb", "max_steps=4", "probe_every=0.5", batch=small.FEW_BATCH)
    assert main(["pretrain", *words]) == 0
    out = capsys.readouterr().out
    assert out.count("track=wandb: left out from now on (the server is down); metrics.jsonl has everything") == 1
    assert len(runs.read_metrics(small.only_run(tmp_path / "all"))) == 4


def test_a_run_is_followed_from_the_command_line(few: Path, tmp_path: Path, fast: None) -> None:
    words = small.words(few, tmp_path / "all", "track='tensorboard,mlflow'", "max_steps=3", batch=small.FEW_BATCH)
    assert main(["pretrain", *words]) == 0
    path = small.only_run(tmp_path / "all")
    for name in ("tensorboard", "mlflow"):
        assert sorted(curve(name, path)) == [0, 1, 2], name
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers.followers, "find_spec", lambda name: None)
    for name in TRACKERS:
        said = refused(capsys, "pretrain", *small.words(few, tmp_path / "all", f"track={name}"))
        assert f"track={name}: {name} is not installed: pip install 'twoviews[{name}]'" in said
    assert "track expects" in refused(capsys, "pretrain", *small.words(few, tmp_path / "all", "track=comet"))
    assert not (tmp_path / "all").exists()
