"""The trackers: each takes rows of `metrics.jsonl`, and knows the last step that it has."""

import contextlib
import hashlib
import importlib
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twoviews.config.schema import TRACKERS
from twoviews.runs.folder import MANIFEST, read_json

PROJECT = "twoviews"
MLFLOW = {  # a server that is down must not hold a run, and MLflow must not report its use
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
WANDB_SECONDS = 60.0  # that Weights & Biases may need to begin, and to send the rest
BATCH = 100  # parameters of one call of MLflow
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
            self.writer.add_scalar(name, value, max(0, self.last))

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
        mode = wandb_mode()
        settings = wandb.Settings(init_timeout=WANDB_SECONDS, finish_timeout=WANDB_SECONDS)
        options = {"mode": mode, "dir": str(path), "config": dict(config), "resume": "allow" if mode != "offline" else None}
        # important: a run of its own, although the program that called us may have one
        self.run = wandb.init(project=PROJECT, id=identity(path), name=path.name, reinit="create_new", settings=settings, **options)
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
        name = f"{path.name}-{identity(path)[:6]}"
        before = importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_max_step_for_run(PROJECT, name)
        self.last = -1 if before is None else int(before)
        options = {"resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        with contextlib.redirect_stdout(io.StringIO()), _nobody_is_asked_who_this_is():  # how to open its dashboard
            self.run = trackio.init(project=PROJECT, name=name, config=dict(config), **options)

    def log(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        for row in rows:
            self.run.log(_values(row), step=row["step"])

    def finish(self, results: Mapping[str, float]) -> None:
        """Add the final accuracies."""
        self.run.log(dict(results), step=max(0, self.last))

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
        self.before = {name: os.environ.get(name) for name in MLFLOW}
        for name, value in MLFLOW.items():
            os.environ.setdefault(name, value)
        try:
            self._open(path, config)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, config: Mapping[str, Any]) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        entities: Any = importlib.import_module("mlflow.entities")
        self.metric = entities.Metric
        self.client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{path.parent.resolve() / 'mlflow.db'}"))
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self._experiment()
        found = self.client.search_runs([number], f"tags.run = '{identity(path)}'")
        run = found[0] if found else self.client.create_run(number, run_name=path.name, tags={"run": identity(path)})
        self.id = run.info.run_id
        if not run.data.params:
            params = [entities.Param(key, str(value)[:500]) for key, value in config.items()]
            for start in range(0, len(params), BATCH):
                self.client.log_batch(self.id, params=params[start : start + BATCH])
        self.last = max((one.step for one in self.client.get_metric_history(self.id, "loss")), default=-1)

    def _experiment(self) -> str:
        """Create the experiment, or return that of another run which created it in this moment."""
        try:
            return str(self.client.create_experiment(PROJECT))
        except Exception:
            if (experiment := self.client.get_experiment_by_name(PROJECT)) is None:
                raise
            return str(experiment.experiment_id)

    def log(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        metrics = [self.metric(_plain(name), value, 0, row["step"]) for row in rows for name, value in _values(row).items()]
        for start in range(0, len(metrics), 1000):  # the most that one call takes
            self.client.log_batch(self.id, metrics=metrics[start : start + 1000])

    def finish(self, results: Mapping[str, float]) -> None:
        """Add the final accuracies."""
        self.client.log_batch(self.id, metrics=[self.metric(_plain(name), value, 0, max(0, self.last)) for name, value in results.items()])
        self.client.set_terminated(self.id)

    def close(self) -> None:
        """Give the environment back."""
        for name, value in self.before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _values(row: Row) -> dict[str, float]:
    """Return the numbers of a row but its step."""
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}


def _plain(name: str) -> str:
    """Return a name as MLflow accepts it."""
    return re.sub(r"[^\w./ -]", "_", name)


def identity(path: Path) -> str:
    """Return a name of a run for a tracker: the same when it is resumed or moved, and another for a run of the same name."""
    return hashlib.sha256(f"{path.name} {read_json(path, MANIFEST).get('started')}".encode()).hexdigest()[:16]


def wandb_mode() -> str:
    """Return the mode of Weights & Biases: offline unless the environment says otherwise."""
    return os.environ.get("WANDB_MODE", "offline")


@contextlib.contextmanager
def _nobody_is_asked_who_this_is() -> Iterator[None]:
    """Keep trackio from asking the Hugging Face Hub for the user's name, without a time limit, where it writes to this machine alone."""
    module: Any = importlib.import_module("trackio.run")
    asks = getattr(module, "_get_default_namespace", None)
    if asks is None or os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"):
        yield
        return
    module._get_default_namespace = lambda: None
    try:
        yield
    finally:
        module._get_default_namespace = asks


KINDS: dict[str, Any] = dict(zip(TRACKERS, (TensorBoard, WeightsAndBiases, Trackio, MLflow), strict=True))
