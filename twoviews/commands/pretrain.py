"""`twoviews pretrain`: train an encoder, evaluate it, write the report."""

import contextlib
import re
import shutil
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from twoviews import build, config, device, distributed, evaluation, runs, trackers, train
from twoviews.config import Config
from twoviews.config.schema import RULES, keys
from twoviews.data.arrays import Arrays
from twoviews.finish import finish
from twoviews.images.names import plural
from twoviews.methods import METHODS
from twoviews.models.resnet import has_imagenet_stem
from twoviews.probes import protocols
from twoviews.runs import formats, manifest, tables


def run(cfg: Config) -> int:
    """Train, evaluate and report one run."""
    return run_pretrain(cfg)[1]


def run_pretrain(cfg: Config, *, data: Arrays | None = None, on_step: train.OnStep | None = None) -> tuple[Path, int]:
    """Train, evaluate and report one run.

    Args:
        cfg: of the run.
        data: images and labels; None: those of `cfg.dataset`.
        on_step: see `train.fit`.

    Returns:
        (the run folder, 0 or 128 + the signal that stopped the run).

    Raises:
        runs.StepFailed: if a step after training failed.
    """
    began = time.perf_counter()
    with distributed.group(cfg.wait_seconds), contextlib.ExitStack() as stack:
        processes = distributed.size()
        cfg = distributed.on_first(lambda: _continuing(cfg))
        trackers.check(cfg.get("track"))
        if cfg.resume:
            path = distributed.on_first(lambda: _resumable(cfg))
            folder = stack.enter_context(runs.RunFolder(path, writes=distributed.first()))  # a second command stops at once
            cfg = distributed.on_first(lambda: _resumed(cfg, path, processes))
            trackers.check(cfg.get("track"))
            probes = protocols.parse(cfg.probes, cfg.solver)
            parts = build.build(cfg, data)
            distributed.on_first(lambda: _check_machine_and_data(path, parts))
            evaluation.check(cfg, probes, parts.dataset)
        else:
            probes = protocols.parse(cfg.probes, cfg.solver)
            parts = build.build(cfg, data)  # before the folder: a refused command leaves nothing behind
            evaluation.check(cfg, probes, parts.dataset)
            path = distributed.on_first(lambda: _created(cfg, parts))
            folder = stack.enter_context(runs.RunFolder(path, writes=distributed.first()))
            folder.write(runs.MANIFEST, _manifest(cfg, parts))
        followers = trackers.Followers(trackers.check(cfg.get("track")), folder, config.stored(cfg))
        stack.callback(followers.close)
        folder.listeners.append(followers.log)
        _print_header(cfg, parts, path)
        with device.naming_memory(_memory_advice(cfg, path, parts.views.sizes)):
            code, trained = train.fit(cfg, parts, folder, on_step)
        if trained:
            try:
                summary = _finish(cfg, parts, probes, folder, trained, began)
            finally:  # also where a later step failed
                followers.finish(_accuracies(folder))
            if cfg.table and distributed.first():
                print(f"\n{formats.markdown(tables.TABLES[cfg.table]([(summary, cfg)]))}")
        return path, code


def _accuracies(folder: runs.RunFolder) -> dict[str, float]:
    """Return what trackers get at the end: {split and protocol: accuracy of the trained encoder}."""
    rows = runs.read_json(folder.path, runs.SUMMARY).get("evaluations", []) if folder.writes else []
    return {f"{row['split']} {protocols.protocol(row)}": row["accuracy"] for row in rows if row["of"] == "trained" and "on" not in row}


def _finish(
    cfg: Config, parts: build.Parts, probes: tuple[str, ...], folder: runs.RunFolder, trained: dict[str, Any], began: float
) -> dict[str, Any]:
    """Write the weights, then evaluate and report; return the summary. A run whose training was finished before keeps its rows."""
    before = distributed.on_first(lambda: _earlier_summary(folder, trained["steps"]))
    folder.write(runs.BACKBONE, build.backbone_bytes(cfg, parts, folder.identity))
    if (left := before.get("unfinished")) and "probes" not in cfg.given:
        probes = tuple(name for name in probes if name in left)
    began -= trained.pop("earlier_seconds")
    summary = {
        "recipe": cfg.recipe,
        "method": cfg.method,
        "uses_labels": METHODS[cfg.method].uses_labels,
        "dataset": parts.dataset.title,
        "data_read": list(parts.dataset.description),
        "backbone": cfg.backbone,
        "seed": cfg.seed,
        "train_on": cfg.train_on,
        "epochs": cfg.epochs,
        "batch_size": cfg.batch_size,
        "peak_learning_rate": parts.peak_rate,
        "train": trained,
        "evaluations": before.get("evaluations", []),
        "evaluation_seconds": before.get("evaluation_seconds", 0.0),
        "classes": list(parts.dataset.classes),
        "diagnostics": before.get("diagnostics", {}),
    }
    finish(cfg, parts, probes, folder, summary, began)
    return summary


def _earlier_summary(folder: runs.RunFolder, steps: int) -> dict[str, Any]:
    """Return the summary of the same weights, whose rows stay, or {}; one of other weights is removed."""
    before = runs.read_json(folder.path, runs.SUMMARY)
    if before and before["train"]["steps"] != steps:
        (folder.path / runs.SUMMARY).unlink()  # important: it describes other weights than those that follow
        return {}
    return before


def _name(cfg: Config) -> str:
    """Return the first part of the run folder's name."""
    return f"{cfg.recipe}-{cfg.dataset}-{cfg.backbone}"


def _created(cfg: Config, parts: build.Parts) -> Path:
    """Create the run's folder with its configuration."""
    text = yaml.safe_dump(config.stored(cfg), sort_keys=False)
    return runs.create(Path(cfg.runs_dir), _name(cfg), text, cfg.run_id, parts.dataset.digest)


def _resumable(cfg: Config) -> Path:
    """Return the folder of the run to resume."""
    runs_dir = Path(cfg.runs_dir)
    return runs.newest_unfinished(runs_dir) if cfg.resume == "latest" else runs.find(cfg.resume, runs_dir)


def _continuing(cfg: Config) -> Config:
    """Return the configuration; if a run with this `run_id` exists, the one that resumes it."""
    existing = _existing(cfg)
    if existing is None:
        return cfg
    print(f"run_id={cfg.run_id}: continuing {existing}")
    resuming = Config({**cfg, "resume": str(existing)})
    resuming.given = cfg.given
    return resuming


def _existing(cfg: Config) -> Path | None:
    """Return the run with this `run_id` if it reached its first step; one that did not is removed and started again."""
    if cfg.resume or cfg.run_id is None:
        return None
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", cfg.run_id):
        raise ValueError(f"run_id={cfg.run_id}: expected at most 64 letters, digits, '.', '_' and '-', such as a job's number")
    path = Path(cfg.runs_dir) / f"{_name(cfg)}-{cfg.run_id}"
    if any((path / file).exists() for file in (runs.MANIFEST, runs.LAST, runs.PREVIOUS)):  # important: never remove a checkpoint
        return path
    if (path / runs.CONFIG).is_file():
        with runs.RunFolder(path):  # not while another process is about to write the manifest
            shutil.rmtree(path)
    return None


def _resumed(cfg: Config, path: Path, processes: int) -> Config:
    """Return the run's own configuration with the keys that may change; the command line must not contradict the others."""
    stored = runs.read_config(path)
    try:
        used = runs.read_json(path, runs.MANIFEST)
    except ValueError as error:
        raise ValueError(f"{error}; a resumed run needs it: restore it, or start a new run with init={path}") from None
    if not used:
        raise ValueError(f"resume={path}: no {runs.MANIFEST}: the run stopped before its first step; start it again")
    stored |= {key: used[key] for key in RULES if key in used}  # what `auto` became: bit for bit needs the same
    changed = [
        f"{key}: {stored.get(key)} in the run, {cfg[key]} now"
        for key in keys("science", "machine")
        if key in cfg.given and cfg[key] not in (stored.get(key), "auto")
    ]
    if changed:
        raise ValueError(
            f"resume={path}: a resumed run keeps its recipe ({'; '.join(changed)}): leave this out, "
            f"or start a new run from its weights with init={path}"
        )
    if processes != (before := used.get("processes", 1)):
        raise ValueError(
            f"resume={path}: the run has {plural(before, 'process')}, this command {processes}, and BatchNorm computes other values then: "
            f"start as many, or start a new run from its weights with init={path}"
        )
    free = {key: cfg[key] for key in keys("output", "probe", verb="pretrain") if key in cfg.given or key == "resume"}
    if any((path / file).exists() for file in (runs.LAST, runs.PREVIOUS)):
        free["init"] = None  # the checkpoint has later weights, and the file may be gone
    if "max_steps" not in cfg.given:
        free["max_steps"] = None  # a run that max_steps cut short continues to its end
    return Config({**cfg, **stored, **free})


def _check_machine_and_data(path: Path, parts: build.Parts) -> None:
    """Refuse to resume on other data or with another implementation of views or layers; print a line if torch's version differs."""
    runs.check_data(path, parts.dataset.digest)
    stored = runs.read_json(path, runs.MANIFEST)
    for what, now in (("views", build.views_backend(parts.machine)), ("layers", build.layers_backend(parts.machine))):
        before = stored.get(f"{what}_backend", "torch")
        if now != before:
            raise ValueError(
                f"resume={path}: the {what} are computed by {now} here, by {before} in the run: "
                "resume on a machine like the one on which it started"
            )
    now = metadata.version("torch")  # as in the manifest: without the build's ending, such as +cu130
    before = stored.get("versions", {}).get("torch", now)
    if before != now:
        print(f"torch {now} continues a run of torch {before}: the result may differ in the last bits")


def _memory_advice(cfg: Config, path: Path, sizes: Sequence[int]) -> str:
    """Return what the error says where memory runs out: with which settings, and what to try."""
    views = f"views of {' and '.join(map(str, sizes))} pixels" if cfg.view_sizes else "views as large as the images"
    smaller = ",".join(str(max(8, size * 3 // 4)) for size in sizes)
    return (
        f" with batch_size={cfg.batch_size}, {views}, precision={cfg.precision}: start a new run with "
        f"batch_size={max(2, cfg.batch_size // 2)} or view_sizes=[{smaller}]; the checkpoint is kept, "
        f"and with more memory resume={path} continues it"
    )


def _manifest(cfg: Config, parts: build.Parts) -> dict[str, Any]:
    machine = parts.machine
    return manifest.manifest(
        machine=str(machine),
        device=machine.device.type,
        threads=machine.threads,
        processes=distributed.size(),
        precision=machine.precision,
        compile=machine.compile,
        views_backend=build.views_backend(machine),
        layers_backend=build.layers_backend(machine),
        data=parts.dataset.title,
        skipped_files=list(parts.dataset.skipped),
        data_digest=parts.dataset.digest,
        peak_learning_rate=parts.peak_rate,
        seed=cfg.seed,
    )


def _print_header(cfg: Config, parts: build.Parts, path: Path) -> None:
    for line in parts.dataset.description:
        print(line)
    scaled = "" if cfg.learning_rate is not None else f" = {cfg.base_learning_rate:g} x {cfg.batch_size} / 256"
    size = parts.images.shape[2]
    print(f"{cfg.method} on {parts.dataset.title}, {cfg.train_on} ({len(parts.images):,} images), {cfg.backbone}, seed {cfg.seed}")
    print(f"{cfg.epochs} epochs of {parts.steps_per_epoch} steps, batch {cfg.batch_size}, learning rate {parts.peak_rate:g}{scaled}")
    processes = f"{distributed.size()} processes, each with " if distributed.size() > 1 else ""
    print(f"{processes}{parts.machine}; {path}")
    if has_imagenet_stem(cfg.backbone, size):
        print(f"images of {size} pixels: ImageNet stem (7x7 stride 2, max-pooling)")
    for warning in config.warnings(cfg):
        print(f"warning: {warning}")
    if cfg.view_sizes and max(cfg.view_sizes) <= size / 2:
        wider = ",".join(str(round(view * size / 32)) for view in cfg.view_sizes)
        print(f"views of {max(cfg.view_sizes)} pixels from images of {size}: chosen for images of 32; view_sizes=[{wider}] keeps the ratio")
