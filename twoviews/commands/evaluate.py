"""`twoviews evaluate`: evaluate a run's backbone again, beside raw pixels and random initialisation."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twoviews import build, device, distributed, inputs, runs
from twoviews.config import Config
from twoviews.config.schema import keys
from twoviews.data.arrays import Arrays
from twoviews.data.dataset import Dataset, with_channels
from twoviews.evaluation import evaluate, merged
from twoviews.probes import protocols
from twoviews.report.text import accuracy_table
from twoviews.runs import checkpoint, formats, tables, weights

LIKE = ("dataset", "backbone", "batch_size")  # keys by which run=latest selects


def run(cfg: Config) -> int:
    """Evaluate a run and print its table."""
    run_evaluate(cfg)
    return 0


def run_evaluate(cfg: Config, data: Arrays | None = None) -> list[dict[str, Any]]:
    """Evaluate a run; the rows join those of its summary as each probe ends, and replace rows of the same protocol.

    Args:
        cfg: of the command.
        data: images and labels that the run was trained on; None: those of its `dataset`.

    Returns:
        The new rows.

    Raises:
        ValueError: if the run is not finished, keys contradict each other, or a file of the run is damaged or of another run.
        MemoryError: if memory is full; rows of the probes that ended are stored.
    """
    probes = protocols.parse(cfg.probes, cfg.solver)
    if protocols.votes(probes, "z") and cfg.load_epoch is not None:
        raise ValueError(f"load_epoch={cfg.load_epoch}: an epoch's file has no projector, and {cfg.probes} uses z: leave one out")
    if cfg.transfer and cfg.table:
        raise ValueError(f"table={cfg.table}: shows the run's own data, transfer={cfg.transfer} evaluates other data: leave one out")
    with distributed.group(cfg.wait_seconds):
        path, stored = distributed.on_first(lambda: _find(cfg))
        of, file = "trained", path / runs.BACKBONE
        if cfg.load_epoch is not None:
            of, file = f"epoch_{cfg.load_epoch}", runs.epoch_file(path, cfg.load_epoch)
        with runs.RunFolder(path, writes=distributed.first()) as folder:
            summary = distributed.on_first(lambda: _summary(folder, file))
            run_cfg = _run_config(cfg, stored, file)
            parts = build.build(run_cfg, data, trains=False)
            distributed.on_first(lambda: runs.check_data(path, parts.dataset.digest))
            if protocols.votes(probes, "z"):
                parts.method.load_state_dict(distributed.on_first(lambda: _method_state(folder, summary)))
            dataset = _other_data(cfg, run_cfg, parts) if cfg.transfer else parts.dataset
            store = _Store(folder, summary, probes, on=dataset.title if cfg.transfer else None)
            seed = stored["seed"] if cfg.seed is None else cfg.seed
            advice = f": nothing of {path} is lost: evaluate fewer probes at once, with probes="
            with device.naming_memory(advice), store.telling_what_is_kept():
                evaluate(run_cfg, parts, probes, data=dataset, of=of, seed=seed, max_steps=cfg.max_steps, store=store)
        rows = store.rows
        if rows:
            print(accuracy_table({**summary, "evaluations": rows if cfg.load_epoch is not None else summary["evaluations"]}))
        if cfg.table and distributed.first():
            new = {**summary, "evaluations": [{**r, "of": "trained"} for r in rows if r["of"] == of]}
            if cfg.load_epoch is not None:
                train = _train_until(path, summary["train"], cfg.load_epoch * parts.steps_per_epoch, parts.steps_per_epoch)
                new |= {"epochs": cfg.load_epoch, "train": train}
            print(f"\n{formats.markdown(tables.TABLES[cfg.table]([(new, stored)]))}")
    return rows


def _summary(folder: runs.RunFolder, file: Path) -> dict[str, Any]:
    """Return the summary of a finished run whose weights in `file` are its own."""
    summary = runs.read_json(folder.path, runs.SUMMARY)
    if not summary:
        raise ValueError(f"run={folder.path}: not finished: to finish it: twoviews pretrain resume={folder.path}")
    weights.check(file, folder.identity)
    return summary


class _Store:
    """Writes the rows of each probe into the run's summary as soon as the probe ends.

    Args:
        folder: of the run.
        summary: of the run, which is changed.
        probes: names of all probes of this command.
        on: title of the data, if they are not the run's own.
    """

    def __init__(self, folder: runs.RunFolder, summary: dict[str, Any], probes: tuple[str, ...], on: str | None) -> None:
        self.folder, self.summary, self.probes, self.on = folder, summary, probes, on
        self.before = summary["evaluations"]
        self.rows: list[dict[str, Any]] = []
        self.left = list(probes)

    def __call__(self, rows: list[dict[str, Any]], left: list[str]) -> None:
        """Store all rows so far; `left` are the probes that follow."""
        self.rows = rows if self.on is None else [{**row, "on": self.on} for row in rows]
        self.left = left
        self.summary["evaluations"] = merged(self.before, self.rows)
        if self.on is None and any(row["of"] == "trained" for row in rows):
            unfinished = self.summary.get("unfinished", [])  # 0.1.0 had none
            self.summary["unfinished"] = [name for name in unfinished if name not in self.probes or name in left]
        self.folder.write(runs.SUMMARY, self.summary)

    @contextlib.contextmanager
    def telling_what_is_kept(self) -> Iterator[None]:
        """Print which probes are stored where an error or Ctrl-C stops the others."""
        try:
            yield
        except BaseException:
            if self.rows:
                done = len(self.probes) - len(self.left)
                print(f"\nstopped: {done} of {len(self.probes)} probes are stored in {self.folder.path}; left: {', '.join(self.left)}")
            raise


def _find(cfg: Config) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the run to evaluate, and its configuration."""
    like = {key: cfg[key] for key in LIKE if cfg[key] is not None}
    path = runs.find(cfg.run, Path(cfg.runs_dir), **like)
    stored = runs.read_config(path)
    if cfg.run == "latest":
        wanted = f" with {', '.join(f'{key}={value}' for key, value in like.items())}" if like else ""
        print(f"the newest finished run{wanted}: {path} ({stored['method']}, {stored['epochs']} epochs)")
    return path, stored


def _other_data(cfg: Config, run_cfg: Config, parts: build.Parts) -> Dataset:
    """Return the data set of `transfer`, with the run's number of channels; a folder's images are read as those of the run."""
    size = parts.images.shape[2]
    if cfg.transfer == "folder" and cfg.image_size not in (None, size):
        print(f"image_size={cfg.image_size}: the encoder was trained on images of {size} pixels: leave image_size out to use that size")
    wanted = {"dataset": cfg.transfer, "train_size": None}
    if cfg.transfer == "folder":
        wanted |= {"image_size": cfg.image_size or size}
        wanted |= {key: run_cfg.get(key) for key in ("background", "value_range") if cfg[key] is None}
    data = distributed.first_on_each_machine(lambda: inputs.load_data(Config({**cfg, **wanted})))
    for line in data.description:
        print(line)
    return with_channels(data, parts.images.shape[1])


def _run_config(cfg: Config, stored: dict[str, Any], file: Path) -> Config:
    """Return the run's own configuration with the machine and probe keys of this command."""
    here = {key: cfg[key] for key in keys("machine", "probe", verb="evaluate")} | {"debug": cfg.debug}
    if cfg.precision is not None:
        here["precision"] = cfg.precision
    data_dir = stored["data_dir"] if cfg.transfer else cfg.data_dir or stored["data_dir"]
    return Config({**cfg, **stored, **here, "data_dir": data_dir, "init": str(file)})


def _method_state(folder: runs.RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the whole method from the checkpoint, the only file with the projector's weights."""
    state = checkpoint.load(folder.path, folder.identity)
    if state["step"] != summary["train"]["steps"]:
        raise ValueError(
            f"run={folder.path}: its checkpoint is at step {state['step']}, its summary at step {summary['train']['steps']}: "
            f"to finish it: twoviews pretrain resume={folder.path}"
        )
    return state["method"]  # type: ignore[no-any-return]


def _train_until(path: Path, train: dict[str, Any], steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """Return the `train` entry of a summary as it was after so many steps: loss of the last epoch, and seconds."""
    rows = runs.read_metrics(path)[:steps]
    loss = sum(row["loss"] for row in rows[-steps_per_epoch:]) / steps_per_epoch
    seconds = next(row["seconds"] for row in reversed(rows) if "seconds" in row)
    return {**train, "steps": steps, "planned_steps": steps, "loss": loss, "seconds": seconds}
