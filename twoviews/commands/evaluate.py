"""`twoviews evaluate`: read out a run's backbone again, beside raw pixels and the untrained backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twoviews import build, checkpoint, device, formats, readout, runs, tables
from twoviews.config import Config
from twoviews.data.dataset import load, with_channels
from twoviews.probes import protocols

OF = ("raw_pixels", "untrained", "trained")
LIKE = ("dataset", "backbone", "batch_size")  # what run=latest can be asked for


def run(cfg: Config) -> int:
    """The verb: the rows join those of the run's summary, in place of rows of the same protocol."""
    probes = protocols.parse(cfg.probes, cfg.solver)
    if protocols.votes(probes, "z") and cfg.load_epoch is not None:
        raise ValueError(f"load_epoch={cfg.load_epoch}: an epoch's file has no projector, and {cfg.probes} reads z: leave one out")
    if cfg.transfer and cfg.table:
        raise ValueError(f"table={cfg.table}: is of the run's own data, transfer={cfg.transfer} of others: leave one out")
    like = {key: cfg[key] for key in LIKE if cfg[key] is not None}
    path = runs.find(cfg.run, Path(cfg.runs_dir), **like)
    stored = runs.config(path)
    if cfg.run == "latest":
        print(f"the newest finished run{_said(like)}: {path} ({stored['method']}, {stored['epochs']} epochs)")
    of, weights = "trained", path / runs.BACKBONE
    if cfg.load_epoch is not None:
        of, weights = f"epoch_{cfg.load_epoch}", runs.epoch_file(path, cfg.load_epoch)
    used = {key: cfg[key] for key in ("device", "threads", "compile", "debug", *readout.HOW)}
    if "precision" in cfg.given:  # else as the run was trained and read out
        used["precision"] = cfg.precision
    place = stored["data_dir"] if cfg.transfer else cfg.data_dir or stored["data_dir"]
    run_cfg = Config({**cfg, **stored, **used, "data_dir": place, "init": str(weights)})
    with runs.RunFolder(path) as folder:
        summary = runs.read_json(path, runs.SUMMARY)
        if not summary:
            raise ValueError(f"run={path}: not finished: twoviews pretrain resume={path} goes on")
        build.check_weights(weights, folder.identity)
        parts = build.build(run_cfg)
        runs.check_data(path, parts.dataset.digest)
        if protocols.votes(probes, "z"):  # the projector's weights lie in the checkpoint alone
            state = checkpoint.load(path, folder.identity)
            if state["step"] != summary["train"]["steps"]:
                raise ValueError(
                    f"run={path}: its checkpoint is of step {state['step']}, its summary of step {summary['train']['steps']}: "
                    f"twoviews pretrain resume={path} ends it"
                )
            parts.method.load_state_dict(state["method"])
        data = parts.dataset
        if cfg.transfer:
            other = load(cfg.transfer, cfg.data_dir, image_size=cfg.image_size, on_bad=cfg.on_bad)
            data = with_channels(other, parts.images.shape[1])
        seed = cfg.seed if "seed" in cfg.given else stored["seed"]
        at = Config({**run_cfg, "init": stored["init"]})
        with device.naming_memory(f": nothing of {path} is lost: read out less at once, by probes="):
            rows = readout.read_outs(at, parts, probes, data=data, of=of, seed=seed, max_steps=cfg.max_steps)
        if cfg.transfer:
            rows = [{**row, "on": data.title} for row in rows]
        summary["readouts"] = joined(summary["readouts"], rows)
        folder.write(runs.SUMMARY, summary)
    print(table({**summary, "readouts": rows if cfg.load_epoch is not None else summary["readouts"]}))
    if cfg.table:  # the row of what was read out now
        new = {**summary, "readouts": [{**r, "of": "trained"} for r in rows if r["of"] == of]}
        if cfg.load_epoch is not None:
            new |= {"epochs": cfg.load_epoch, "train": _train_until(path, summary["train"], cfg.load_epoch * parts.steps_per_epoch, parts)}
        print(f"\n{formats.markdown(tables.TABLES[cfg.table]([(new, stored)]))}")
    return 0


def _said(like: dict[str, Any]) -> str:
    return f" with {', '.join(f'{key}={value}' for key, value in like.items())}" if like else ""


def _train_until(path: Path, train: dict[str, Any], steps: int, parts: build.Parts) -> dict[str, Any]:
    """The `train` entry of a summary as it stood after so many steps: its loss over the last epoch, and its seconds."""
    rows = runs.metrics(path)[:steps]
    loss = sum(row["loss"] for row in rows[-parts.steps_per_epoch :]) / parts.steps_per_epoch
    seconds = next(row["seconds"] for row in reversed(rows) if "seconds" in row)
    return {**train, "steps": steps, "planned_steps": steps, "loss": loss, "seconds": seconds}


def joined(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a run with new ones behind them, in place of those of the same protocol."""
    return [row for row in old if _identity(row) not in {_identity(other) for other in new}] + new


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["of"], row["features"], row["split"], protocols.protocol(row)


def table(summary: dict[str, Any]) -> str:
    """One Markdown table: a row a protocol, a column a kind of features, accuracies in per cent."""
    rows = summary["readouts"]
    names = list(dict.fromkeys(protocols.protocol(row) for row in rows))
    cells = {(protocols.protocol(row), row["of"]): row["accuracy"] for row in rows}
    marked = f"{summary['method']}{' (uses labels)' if summary['uses_labels'] else ''}"
    kinds = [of for of in dict.fromkeys([*OF, *(row["of"] for row in rows)]) if any(row["of"] == of for row in rows)]
    heads = [of.replace("_", " ") for of in kinds]
    where = tables.split(summary) or "test"
    lines = [
        f"\n{summary['dataset']}, {where} accuracy in per cent; {marked} {summary['backbone']}, seed {summary['seed']}\n",
        f"| protocol | {' | '.join(heads)} |",
        "|:--" + "|--:" * len(kinds) + "|",
    ]
    for name in names:
        values = [cells.get((name, of)) for of in kinds]
        lines.append(f"| {name} | " + " | ".join("" if value is None else f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines)
