"""`twoviews evaluate`: evaluate a run's backbone again, beside raw pixels and random initialisation."""

from pathlib import Path
from typing import Any

from twoviews import build, device, runs
from twoviews.config import Config
from twoviews.config.schema import keys
from twoviews.data.dataset import load, with_channels
from twoviews.evaluation import evaluate, merged
from twoviews.probes import protocols
from twoviews.report.text import accuracy_table
from twoviews.runs import checkpoint, formats, tables, weights

LIKE = ("dataset", "backbone", "batch_size")  # keys by which run=latest selects


def run(cfg: Config) -> int:
    """Evaluate a run; the rows join those of its summary and replace rows of the same protocol."""
    probes = protocols.parse(cfg.probes, cfg.solver)
    if protocols.votes(probes, "z") and cfg.load_epoch is not None:
        raise ValueError(f"load_epoch={cfg.load_epoch}: an epoch's file has no projector, and {cfg.probes} uses z: leave one out")
    if cfg.transfer and cfg.table:
        raise ValueError(f"table={cfg.table}: shows the run's own data, transfer={cfg.transfer} evaluates other data: leave one out")
    like = {key: cfg[key] for key in LIKE if cfg[key] is not None}
    path = runs.find(cfg.run, Path(cfg.runs_dir), **like)
    stored = runs.read_config(path)
    if cfg.run == "latest":
        wanted = f" with {', '.join(f'{key}={value}' for key, value in like.items())}" if like else ""
        print(f"the newest finished run{wanted}: {path} ({stored['method']}, {stored['epochs']} epochs)")
    of, file = "trained", path / runs.BACKBONE
    if cfg.load_epoch is not None:
        of, file = f"epoch_{cfg.load_epoch}", runs.epoch_file(path, cfg.load_epoch)
    with runs.RunFolder(path) as folder:
        summary = runs.read_json(path, runs.SUMMARY)
        if not summary:
            raise ValueError(f"run={path}: not finished: to finish it: twoviews pretrain resume={path}")
        weights.check(file, folder.identity)
        run_cfg = _run_config(cfg, stored, file)
        parts = build.build(run_cfg)
        runs.check_data(path, parts.dataset.digest)
        if protocols.votes(probes, "z"):
            _load_projector(folder, summary, parts)
        data = parts.dataset
        if cfg.transfer:
            other = load(cfg.transfer, cfg.data_dir, image_size=cfg.image_size, on_bad=cfg.on_bad)
            data = with_channels(other, parts.images.shape[1])
        seed = stored["seed"] if cfg.seed is None else cfg.seed
        with device.naming_memory(f": nothing of {path} is lost: evaluate fewer probes at once, with probes="):
            rows = evaluate(run_cfg, parts, probes, data=data, of=of, seed=seed, max_steps=cfg.max_steps)
        if cfg.transfer:
            rows = [{**row, "on": data.title} for row in rows]
        summary["evaluations"] = merged(summary["evaluations"], rows)
        folder.write(runs.SUMMARY, summary)
    print(accuracy_table({**summary, "evaluations": rows if cfg.load_epoch is not None else summary["evaluations"]}))
    if cfg.table:
        new = {**summary, "evaluations": [{**r, "of": "trained"} for r in rows if r["of"] == of]}
        if cfg.load_epoch is not None:
            train = _train_until(path, summary["train"], cfg.load_epoch * parts.steps_per_epoch, parts.steps_per_epoch)
            new |= {"epochs": cfg.load_epoch, "train": train}
        print(f"\n{formats.markdown(tables.TABLES[cfg.table]([(new, stored)]))}")
    return 0


def _run_config(cfg: Config, stored: dict[str, Any], file: Path) -> Config:
    """Return the run's own configuration with the machine and probe keys of this command."""
    here = {key: cfg[key] for key in keys("machine", "probe", verb="evaluate")} | {"debug": cfg.debug}
    if cfg.precision is not None:
        here["precision"] = cfg.precision
    data_dir = stored["data_dir"] if cfg.transfer else cfg.data_dir or stored["data_dir"]
    return Config({**cfg, **stored, **here, "data_dir": data_dir, "init": str(file)})


def _load_projector(folder: runs.RunFolder, summary: dict[str, Any], parts: build.Parts) -> None:
    """Load the whole method from the checkpoint, the only file with the projector's weights."""
    state = checkpoint.load(folder.path, folder.identity)
    if state["step"] != summary["train"]["steps"]:
        raise ValueError(
            f"run={folder.path}: its checkpoint is at step {state['step']}, its summary at step {summary['train']['steps']}: "
            f"to finish it: twoviews pretrain resume={folder.path}"
        )
    parts.method.load_state_dict(state["method"])


def _train_until(path: Path, train: dict[str, Any], steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """Return the `train` entry of a summary as it was after so many steps: loss of the last epoch, and seconds."""
    rows = runs.read_metrics(path)[:steps]
    loss = sum(row["loss"] for row in rows[-steps_per_epoch:]) / steps_per_epoch
    seconds = next(row["seconds"] for row in reversed(rows) if "seconds" in row)
    return {**train, "steps": steps, "planned_steps": steps, "loss": loss, "seconds": seconds}
