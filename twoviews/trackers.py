"""Trackers follow a run's metrics where `track=` names them: TensorBoard, Weights & Biases, trackio and MLflow. None can stop a run.

What they receive are the rows of `metrics.jsonl`. A resumed run goes on in the same curve: it first sends what the tracker lacks.
"""

import contextlib
import hashlib
import importlib
import io
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twoviews.config.schema import TRACKERS
from twoviews.runs.folder import RunFolder, read_metrics

PROJECT = "twoviews"
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # a server that is down must not hold a run
EXTRA = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
Row = Mapping[str, Any]


class TensorBoard:
    """Event files in the run folder. They are written again from the metrics when a run is resumed.

    Args:
        path: the run folder.
        config: not used.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(path / "tensorboard", ignore_errors=True)
        self.writer: Any = SummaryWriter(str(path / "tensorboard"))
        self.last = -1

    def log(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        for row in rows:
            for name, value in _values(row).items():
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def finish(self, results: Mapping[str, float]) -> None:
        """Add the final accuracies."""
        for name, value in results.items():
            self.writer.add_scalar(name, value, 0)

    def close(self) -> None:
        """Close the files."""
        self.writer.close()


class WeightsAndBiases:
    """Weights & Biases, offline unless `WANDB_MODE` says otherwise: `wandb sync` sends the run later.

    Args:
        path: the run folder.
        config: of the run.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        options = {"mode": mode, "dir": str(path), "config": dict(config), "resume": "allow" if mode != "offline" else None}
        self.run = wandb.init(project=PROJECT, id=_identity(path), name=path.name, **options)
        self.last = int(self.run.step) - 1

    def log(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        for row in rows:
            self.run.log(_values(row), step=row["step"])

    def finish(self, results: Mapping[str, float]) -> None:
        """Add the final accuracies."""
        self.run.summary.update(dict(results))

    def close(self) -> None:
        """End the run, so that the next one of this process gets its own."""
        self.run.finish()


class Trackio:
    """trackio, in its local database.

    Args:
        path: the run folder.
        config: of the run.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        trackio: Any = importlib.import_module("trackio")
        before = importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_max_step_for_run(PROJECT, path.name)
        self.last = -1 if before is None else int(before)
        options = {"resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        with contextlib.redirect_stdout(io.StringIO()):  # how to open its dashboard
            self.run = trackio.init(project=PROJECT, name=path.name, config=dict(config), **options)

    def log(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        for row in rows:
            self.run.log(_values(row), step=row["step"])

    def finish(self, results: Mapping[str, float]) -> None:
        """Add the final accuracies."""
        self.run.log(dict(results))

    def close(self) -> None:
        """End the run."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.finish()


class MLflow:
    """MLflow, in the database `mlflow.db` beside the runs unless `MLFLOW_TRACKING_URI` names a server.

    Args:
        path: the run folder.
        config: of the run.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.before = {name: os.environ.get(name) for name in PATIENCE}
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        mlflow: Any = importlib.import_module("mlflow")
        self.metric: Any = importlib.import_module("mlflow.entities").Metric
        self.client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{path.parent.resolve() / 'mlflow.db'}"))
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        found = self.client.search_runs([number], f"tags.run = '{_identity(path)}'")
        run = found[0] if found else self.client.create_run(number, run_name=path.name, tags={"run": _identity(path)})
        self.id = run.info.run_id
        if not found:
            for key, value in config.items():
                self.client.log_param(self.id, key, str(value)[:500])
        self.last = max((one.step for one in self.client.get_metric_history(self.id, "loss")), default=-1)

    def log(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        metrics = [self.metric(_plain(name), value, 0, row["step"]) for row in rows for name, value in _values(row).items()]
        for start in range(0, len(metrics), 1000):  # the most that one call takes
            self.client.log_batch(self.id, metrics=metrics[start : start + 1000])

    def finish(self, results: Mapping[str, float]) -> None:
        """Add the final accuracies."""
        self.client.log_batch(self.id, metrics=[self.metric(_plain(name), value, 0, 0) for name, value in results.items()])
        self.client.set_terminated(self.id)

    def close(self) -> None:
        """Give the environment back."""
        for name, value in self.before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


KINDS: dict[str, Any] = dict(zip(TRACKERS, (TensorBoard, WeightsAndBiases, Trackio, MLflow), strict=True))


def check(track: str | None) -> list[str]:
    """Return the trackers of the key `track`.

    Args:
        track: names with commas, or None.

    Raises:
        ValueError: if the package of one is not installed.
    """
    names = [name.strip() for name in track.split(",")] if track else []
    for name in names:
        if find_spec(EXTRA[name]) is None:
            raise ValueError(f"track={track}: {name} is not installed: pip install 'twoviews[{EXTRA[name]}]'")
    return names


class Followers:
    """The trackers of one run. One that fails is named once and left out.

    Args:
        names: from `check`.
        folder: of the run.
        config: of the run.
    """

    def __init__(self, names: Iterable[str], folder: RunFolder, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.names = list(names) if folder.writes else []
        self.open: dict[str, Any] = {}

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Send rows that were just written; to a tracker that is not open yet, also those before them that it lacks."""
        for name in list(self.names):
            with _Leaving(self, name):
                found = rows if name in self.open else read_metrics(self.folder.path)
                if name not in self.open:
                    self.open[name] = KINDS[name](self.folder.path, self.config)
                self.open[name].log([row for row in found if row["step"] > self.open[name].last])

    def finish(self, results: Mapping[str, float]) -> None:
        """Send the final accuracies."""
        for name, tracker in list(self.open.items()):
            with _Leaving(self, name):
                tracker.finish(results)

    def close(self) -> None:
        """Close all trackers, also after a run that was stopped."""
        for name, tracker in list(self.open.items()):
            with _Leaving(self, name):
                tracker.close()


class _Leaving:
    """What a tracker does: an error leaves it out and says so."""

    def __init__(self, followers: Followers, name: str) -> None:
        self.followers, self.name = followers, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        self.followers.names = [name for name in self.followers.names if name != self.name]
        self.followers.open.pop(self.name, None)
        problem = " ".join(str(error).split())[:160] or type(error).__name__
        print(f"warning: track={self.name}: left out from now on ({problem}); metrics.jsonl has everything")
        return True


def _values(row: Row) -> dict[str, float]:
    """Return the numbers of a row but its step."""
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}


def _plain(name: str) -> str:
    """Return a name as MLflow accepts it."""
    return re.sub(r"[^\w./ -]", "_", name)


def _identity(path: Path) -> str:
    """Return a name of a run for a tracker: the same when it is resumed, and another for a folder of the same name elsewhere."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
