"""`twoviews evaluate`: read out a run's backbone again, beside raw pixels and the untrained backbone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twoviews import build, runs, tables
from twoviews.config import Config
from twoviews.data.dataset import stratified
from twoviews.probes import minibatch, protocols
from twoviews.probes.embed import pixels

OF = ("raw_pixels", "untrained", "trained")
LIKE = ("dataset", "backbone", "batch_size")  # what run=latest can be asked for
HOW = ("solver", "protocol", "probe_epochs", "probe_learning_rate", "probe_momentum", "probe_weight_decay")


def run(cfg: Config) -> int:
    """The verb: the rows join those of the run's summary, in place of rows of the same protocol."""
    probes = protocols.parse(cfg.probes, cfg.solver)
    like = {key: cfg[key] for key in LIKE if cfg[key] is not None}
    path = runs.find(cfg.run, Path(cfg.runs_dir), **like)
    stored = runs.config(path)
    if cfg.run == "latest":
        print(f"the newest finished run{_said(like)}: {path} ({stored['method']}, {stored['epochs']} epochs)")
    of, weights = "trained", path / runs.BACKBONE
    if cfg.load_epoch is not None:
        of, weights = f"epoch_{cfg.load_epoch}", runs.epoch_file(path, cfg.load_epoch)
    used = {key: cfg[key] for key in ("device", "threads", "precision", "compile", "debug", *HOW)}
    run_cfg = Config({**stored, **used, "data_dir": cfg.data_dir or stored["data_dir"], "init": str(weights)})
    with runs.RunFolder(path) as folder:
        summary = runs.read_json(path, runs.SUMMARY)
        if not summary:
            raise ValueError(f"run={path}: not finished: twoviews pretrain resume={path} goes on")
        parts = build.build(run_cfg)
        runs.check_data(path, parts.dataset.digest)
        seed = cfg.seed if "seed" in cfg.given else stored["seed"]
        rows = read_outs(Config({**run_cfg, "init": stored["init"]}), parts, probes, of=of, seed=seed, max_steps=cfg.max_steps)
        summary["readouts"] = joined(summary["readouts"], rows)
        folder.write(runs.SUMMARY, summary)
    print(table({**summary, "readouts": rows if cfg.load_epoch is not None else summary["readouts"]}))
    if cfg.table:  # the row of what was read out now
        new = {
            **summary,
            "epochs": cfg.load_epoch or summary["epochs"],
            "readouts": [{**r, "of": "trained"} for r in rows if r["of"] == of],
        }
        print(f"\n{tables.markdown(tables.TABLES[cfg.table]([(new, stored)]))}")
    return 0


def _said(like: dict[str, Any]) -> str:
    return f" with {', '.join(f'{key}={value}' for key, value in like.items())}" if like else ""


def joined(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a run with new ones behind them, in place of those of the same protocol."""
    return [row for row in old if _identity(row) not in {_identity(other) for other in new}] + new


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["of"], row["features"], row["split"], protocols.protocol(row)


def read_outs(
    cfg: Config, parts: build.Parts, probes: tuple[str, ...], *, seed: int, of: str = "trained", max_steps: int | None = None
) -> list[dict[str, Any]]:
    """Rows for raw pixels, the untrained and the trained backbone; probes on augmented images read the trained one alone.

    A final run (`train_on=train+val`) is read out on `test`, this once. A run that tunes (`train_on=train`) is read out on
    `val`, with a part of `train` in val's place, and never sees `test`.

    Args:
        cfg: of the run.
        parts: built from it, the method's backbone trained.
        probes: names from `protocols.parse`.
        seed: of probes that are trained by minibatches: their first weights, order and crops.
        of: what the rows call that backbone.
        max_steps: cuts probes short that are trained by minibatches.
    """
    data = parts.dataset
    if cfg.train_on == "train+val":
        splits, where = [data.split("train"), data.split("val"), data.split("test")], "test"
    else:
        images, labels = data.split("train")
        held = torch.zeros(len(labels), dtype=torch.bool)
        held[torch.from_numpy(stratified(labels.numpy(), len(data.val_rows), seed=1))] = True
        splits, where = [(images[~held], labels[~held]), (images[held], labels[held]), data.split("val")], "val"
    protocol = cfg.protocol
    changes = {name.removeprefix("probe_"): cfg[name] for name in HOW if name.startswith("probe_")}
    how = {
        name: protocols.schedule(name, protocol=protocol, backbone=cfg.backbone, batch_size=cfg.batch_size, **changes)
        for name in probes
        if name in (*protocols.ON_IMAGES, "linear_precomp adam")
    }
    on_features = [name for name in probes if name not in protocols.ON_IMAGES]
    rows: list[dict[str, Any]] = []
    for kind, module in _modules(cfg, parts, of) if on_features else ():
        name = kind.replace("_", " ")
        train, val, test = (
            (pixels(images) if module is None else parts.embed(module, images, f"embed, {name}"), labels) for images, labels in splits
        )
        for probe in on_features:
            new = protocols.read_out(
                probe,
                train=train,
                val=val,
                test=test,
                classes=len(data.classes),
                how=how.get(probe),
                seed=seed,
                max_steps=max_steps,
            )
            rows += [{"of": kind, "features": "pixels" if module is None else "h", "split": where, **row} for row in new]
    for probe in probes:
        if probe in protocols.ON_IMAGES:
            new = protocols.timed(lambda name=probe: [_on_images(name, how[name], parts, splits, seed, max_steps)])  # type: ignore[misc]
            rows += [{"of": of, "features": "h", "split": where, **row} for row in new]
    return rows


def _modules(cfg: Config, parts: build.Parts, of: str) -> Iterator[tuple[str, nn.Module | None]]:
    yield "raw_pixels", None
    untrained = build.build_method(cfg, parts.dataset).backbone.to(parts.machine.device, parts.machine.dtype)
    yield "untrained", untrained.to(memory_format=torch.channels_last)
    yield of, parts.method.backbone


def _on_images(
    name: str, how: minibatch.Schedule, parts: build.Parts, splits: list[tuple[Tensor, Tensor]], seed: int, max_steps: int | None
) -> dict[str, Any]:
    """The row of a linear probe on crops and flips of the images."""
    device, module = parts.machine.device, parts.method.backbone
    (images, labels), (test_images, test_labels) = [torch.cat(both).to(device) for both in zip(*splits[:2], strict=True)], splits[2]
    views = minibatch.crop_and_flip_views(
        (images.shape[1], images.shape[2], images.shape[3]), crop_scale=protocols.CROPS[name], mean=parts.mean, std=parts.std
    )
    test = parts.embed(module, test_images, "embed, test")
    probe = minibatch.on_views(
        module,
        images,
        labels,
        views=views,
        make_views=build.views_on(parts.machine, views),
        dtype=parts.machine.dtype,
        autocast=parts.machine.autocast,
        embed_dim=test.shape[1],
        classes=len(parts.dataset.classes),
        schedule=how,
        seed=seed,
        max_steps=max_steps,
        name=name,
    )
    return {"probe": name, **protocols.said(how, len(labels), seed, max_steps), "accuracy": probe.accuracy(test, test_labels)}


def table(summary: dict[str, Any]) -> str:
    """One Markdown table: a row a protocol, a column a kind of features, accuracies in per cent."""
    rows = summary["readouts"]
    names = list(dict.fromkeys(protocols.protocol(row) for row in rows))
    cells = {(protocols.protocol(row), row["of"]): row["accuracy"] for row in rows}
    split = rows[0]["split"] if rows else "test"
    marked = f"{summary['method']}{' (uses labels)' if summary['uses_labels'] else ''}"
    kinds = [of for of in dict.fromkeys([*OF, *(row["of"] for row in rows)]) if any(row["of"] == of for row in rows)]
    heads = [of.replace("_", " ") + (", h" if of != "raw_pixels" else "") for of in kinds]
    lines = [
        f"\n{summary['dataset']}, {split} accuracy in per cent; {marked} {summary['backbone']}, seed {summary['seed']}\n",
        f"| protocol | {' | '.join(heads)} |",
        "|:--" + "|--:" * len(kinds) + "|",
    ]
    for name in names:
        values = [cells.get((name, of)) for of in kinds]
        lines.append(f"| {name} | " + " | ".join("" if value is None else f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines)
