"""`twoviews evaluate`: read out a run's backbone again, beside raw pixels and the untrained backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from twoviews import build, runs
from twoviews.config import Config
from twoviews.data.dataset import stratified
from twoviews.probes import protocols
from twoviews.probes.embed import pixels

OF = ("raw_pixels", "untrained", "trained")


def run(cfg: Config) -> int:
    """The verb: the rows join those of the run's summary, in place of rows of the same protocol."""
    probes = protocols.parse(cfg.probes)
    path = runs.find(cfg.run, Path(cfg.runs_dir))
    stored = yaml.safe_load((path / runs.CONFIG).read_text(encoding="utf-8"))
    machine = {key: cfg[key] for key in ("device", "threads", "precision", "compile", "debug")}
    run_cfg = Config({**stored, **machine, "data_dir": cfg.data_dir or stored["data_dir"], "init": str(path)})
    with runs.RunFolder(path) as folder:
        parts = build.build(run_cfg)
        rows = read_outs(Config({**run_cfg, "init": stored["init"]}), parts, probes)
        summary = runs.read_json(path, runs.SUMMARY)
        kept = [row for row in summary.get("readouts", []) if _identity(row) not in {_identity(new) for new in rows}]
        summary["readouts"] = kept + rows
        folder.write(runs.SUMMARY, summary)
    print(table(summary))
    return 0


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("of", "probe", "features", "split", "k", "metric", "weights", "solver"))


def read_outs(cfg: Config, parts: build.Parts, probes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows for raw pixels, the untrained and the trained backbone.

    A final run (`train_on=train+val`) is read out on `test`, this once. A run that tunes (`train_on=train`) is read out on
    `val`, with a part of `train` in val's place, and never sees `test`.

    Args:
        cfg: of the run.
        parts: built from it, the method's backbone trained.
        probes: names from `protocols.parse`.
    """
    data = parts.dataset
    if cfg.train_on == "train+val":
        splits, where = [data.split("train"), data.split("val"), data.split("test")], "test"
    else:
        images, labels = data.split("train")
        held = torch.zeros(len(labels), dtype=torch.bool)
        held[torch.from_numpy(stratified(labels.numpy(), len(data.val_rows), seed=1))] = True
        splits, where = [(images[~held], labels[~held]), (images[held], labels[held]), data.split("val")], "val"
    untrained = build.build_method(cfg, data).backbone.to(parts.machine.device, parts.machine.dtype)
    untrained = untrained.to(memory_format=torch.channels_last)
    rows = []
    for of, module in zip(OF, (None, untrained, parts.method.backbone), strict=True):
        name = of.replace("_", " ")
        features = [
            (pixels(images) if module is None else parts.embed(module, images, f"embed, {name}"), labels) for images, labels in splits
        ]
        kind = "pixels" if module is None else "h"
        new = protocols.read_out(
            probes,
            of=of,
            features=kind,
            train=features[0],
            val=features[1],
            test=features[2],
            classes=len(data.classes),
        )
        rows += [{**row, "split": where} for row in new]
    return rows


def table(summary: dict[str, Any]) -> str:
    """One Markdown table: a row a protocol, a column a kind of features, accuracies in per cent."""
    rows = summary["readouts"]
    names = list(dict.fromkeys(protocols.protocol(row) for row in rows))
    cells = {(protocols.protocol(row), row["of"]): row["accuracy"] for row in rows}
    split = rows[0]["split"] if rows else "test"
    marked = f"{summary['method']}{' (uses labels)' if summary['uses_labels'] else ''}"
    lines = [
        f"\n{summary['dataset']}, {split} accuracy in per cent; {marked} {summary['backbone']}, seed {summary['seed']}\n",
        "| protocol | raw pixels | untrained, h | trained, h |",
        "|:--|--:|--:|--:|",
    ]
    for name in names:
        values = [cells.get((name, of)) for of in OF]
        lines.append(f"| {name} | " + " | ".join("" if value is None else f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines)
