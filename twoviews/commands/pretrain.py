"""`twoviews pretrain`: train an encoder, read it out, write the report."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from twoviews import build, checkpoint, config, device, formats, manifest, readout, runs, tables, train
from twoviews.commands import evaluate, report
from twoviews.config import Config
from twoviews.methods import METHODS
from twoviews.probes import protocols

FREE_ON_RESUME = (  # all else decides the weights; a read-out that failed can be left out
    *("resume", "max_steps", "debug", "profile", "runs_dir", "data_dir", "table", "probes", *readout.HOW),
)
FROM_MANIFEST = (
    "device",
    "threads",
    "precision",
    "compile",
)  # bit for bit holds on the same machine, used the same way


def pretrain(recipe: str, **overrides: Any) -> Path:
    """Train a recipe and read it out, as `twoviews pretrain recipe=... key=value` does.

    Args:
        recipe: a card in `conf/recipe`.
        overrides: keys of the card and of the machine, such as `epochs=5, seed=1`.

    Returns:
        The run folder: `summary.json`, `report.html`, `backbone.safetensors` and the rest.

    Raises:
        ValueError: if a key or value is refused.
        InterruptedError: if a signal stopped the run; `resume=` goes on from its checkpoint.
    """
    cfg = config.load("pretrain", [f"recipe={recipe}", *(config.word(key, value) for key, value in overrides.items())])
    path, code = _pretrain(cfg)
    if code:
        raise InterruptedError(f"stopped by signal {code - 128}: pretrain({recipe!r}, resume={str(path)!r}) goes on")
    return path


def run(cfg: Config) -> int:
    """The verb."""
    return _pretrain(cfg)[1]


def _pretrain(cfg: Config) -> tuple[Path, int]:
    began = time.perf_counter()
    name = f"{cfg.recipe}-{cfg.dataset}-{cfg.backbone}"
    begun = _begun(cfg, name)
    if begun is not None:
        print(f"run_id={cfg.run_id}: going on with {begun}")
        given, cfg = cfg.given, Config({**cfg, "resume": str(begun)})
        cfg.given = given
    with contextlib.ExitStack() as stack:
        if cfg.resume:
            path = runs.find(cfg.resume, Path(cfg.runs_dir))
            folder = stack.enter_context(runs.RunFolder(path))  # before the data are read: a second process ends at once
            cfg = _resumed(cfg, path)
            probes = protocols.parse(cfg.probes, cfg.solver)
            parts = build.build(cfg)
            runs.check_data(path, parts.dataset.digest)
            _check_machine(path, parts)
            readout.check(cfg, probes, parts.dataset)
        else:
            probes = protocols.parse(cfg.probes, cfg.solver)
            parts = build.build(cfg)  # before the folder: what is refused leaves nothing behind
            readout.check(cfg, probes, parts.dataset)
            words = yaml.safe_dump(dict(cfg), sort_keys=False)
            path = runs.create(Path(cfg.runs_dir), name, words, cfg.run_id, parts.dataset.digest)
            folder = stack.enter_context(runs.RunFolder(path))
            folder.write(runs.MANIFEST, _manifest(cfg, parts))
        _say_what_runs(cfg, parts, path)
        with device.naming_memory(_what_needs_less(cfg, path)):
            return path, _train_and_read_out(cfg, parts, probes, folder, began)


def _train_and_read_out(cfg: Config, parts: build.Parts, probes: tuple[str, ...], folder: runs.RunFolder, began: float) -> int:
    code, trained = train.fit(cfg, parts, folder)
    if code:
        return code
    before = runs.read_json(folder.path, runs.SUMMARY)  # of a finished run that was resumed: if nothing was trained, its rows stand
    if before and before["train"]["steps"] != trained["steps"]:
        before = {}
        (folder.path / runs.SUMMARY).unlink()  # important: of other weights than those that follow, should the read-outs not end
    folder.write(runs.BACKBONE, build.backbone_bytes(cfg, parts, folder.identity))
    rows = readout.read_outs(cfg, parts, probes, data=parts.dataset, seed=cfg.seed)
    if before:
        rows = evaluate.joined(before["readouts"], rows)
    earlier = trained.pop("earlier_seconds")
    summary = {
        "recipe": cfg.recipe,
        "method": cfg.method,
        "uses_labels": METHODS[cfg.method].uses_labels,
        "dataset": parts.dataset.title,
        "backbone": cfg.backbone,
        "seed": cfg.seed,
        "train_on": cfg.train_on,
        "epochs": cfg.epochs,
        "batch_size": cfg.batch_size,
        "peak_learning_rate": parts.peak_rate,
        "train": trained,
        "readouts": rows,
        "classes": list(parts.dataset.classes),
        "diagnostics": readout.diagnose(cfg, parts),
        "wall_seconds": round(earlier + time.perf_counter() - began, 1),
    }
    folder.write(runs.SUMMARY, summary)
    print(evaluate.table(summary))
    seconds = trained["seconds"]
    print(f"\ntraining {seconds:.0f} s at {trained['views_per_s']:,.0f} views/s; everything {summary['wall_seconds']:.0f} s; {folder.path}")
    report.write(folder, parts)
    if cfg.table:
        print(f"\n{formats.markdown(tables.TABLES[cfg.table]([(summary, cfg)]))}")
    return 0


def _begun(cfg: Config, name: str) -> Path | None:
    """The run that this `run_id` began, if it came to its first step; one that did not is swept away and begun again."""
    if cfg.resume or cfg.run_id is None:
        return None
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", cfg.run_id):
        raise ValueError(f"run_id={cfg.run_id}: expected at most 64 letters, digits, '.', '_' and '-', such as a job's number")
    path = Path(cfg.runs_dir) / f"{name}-{cfg.run_id}"
    kept = (runs.MANIFEST, checkpoint.LAST, checkpoint.PREVIOUS)  # important: what holds a checkpoint is never swept away
    if any((path / file).exists() for file in kept):
        return path
    if (path / runs.CONFIG).is_file():
        with runs.RunFolder(path):  # not while another process is about to write the manifest
            shutil.rmtree(path)
    return None


def _resumed(cfg: Config, path: Path) -> Config:
    """The run's own configuration; what the command line says must not contradict it."""
    stored = runs.config(path)
    try:
        used = runs.read_json(path, runs.MANIFEST)
    except ValueError as error:
        raise ValueError(f"{error}; a resumed run goes by it: put the file back, or start anew from the weights with init={path}") from None
    if not used:
        raise ValueError(f"resume={path}: no {runs.MANIFEST}: the run stopped before its first step; start it again")
    stored |= {key: used[key] for key in FROM_MANIFEST}
    changed = [
        f"{key}: {stored.get(key)} in the run, {cfg[key]} asked"
        for key in cfg.given
        if key not in FREE_ON_RESUME and cfg[key] not in (stored.get(key), "auto")
    ]
    if changed:
        raise ValueError(
            f"resume={path}: a resumed run keeps its recipe ({'; '.join(changed)}): start a new one from its weights with init={path}"
        )
    free = {key: cfg[key] for key in FREE_ON_RESUME if key in cfg.given or key == "resume"}
    if "max_steps" not in cfg.given:
        free["max_steps"] = None  # a run cut short by max_steps goes on to its end
    return Config({**cfg, **stored, **free})  # a run of before a key was there has its default


def _check_machine(path: Path, parts: build.Parts) -> None:
    """Refuse to go on with views or layers of another maker; another torch is only said: its kernels may round otherwise."""
    then = runs.read_json(path, runs.MANIFEST)
    for what, by in (("views", build.views_by(parts.machine)), ("layers", build.layers_by(parts.machine))):
        did = then.get(f"{what}_by", "torch")
        if by != did:
            raise ValueError(
                f"resume={path}: {by} makes the {what} here, {did} did then: a run goes on bit for bit on the machine it began on"
            )
    before = then.get("versions", {}).get("torch", torch.__version__)
    if before != torch.__version__:
        print(f"torch {torch.__version__} goes on with a run of torch {before}: not bit for bit what that would have given")


def _what_needs_less(cfg: Config, path: Path) -> str:
    """Said where memory ends: with what, and what to try."""
    sizes = cfg.view_sizes
    views = f"views of {' and '.join(map(str, sizes))} pixels" if sizes else "views as large as the images"
    smaller = ",".join(str(max(8, size * 3 // 4)) for size in sizes or (32, 32))
    return (
        f" with batch_size={cfg.batch_size}, {views}, precision={cfg.precision}: a new run with batch_size={max(2, cfg.batch_size // 2)} "
        f"or view_sizes=[{smaller}] needs less; what was saved is kept, and where there is more memory resume={path} goes on"
    )


def _manifest(cfg: Config, parts: build.Parts) -> dict[str, Any]:
    machine = parts.machine
    return manifest.manifest(
        machine=str(machine),
        device=machine.device.type,
        threads=machine.threads,
        precision=machine.precision,
        compile=machine.compile,
        views_by=build.views_by(machine),
        layers_by=build.layers_by(machine),
        data=parts.dataset.title,
        skipped_files=list(parts.dataset.skipped),
        data_digest=parts.dataset.digest,
        peak_learning_rate=parts.peak_rate,
        seed=cfg.seed,
    )


def _say_what_runs(cfg: Config, parts: build.Parts, path: Path) -> None:
    from twoviews.backbones import has_imagenet_stem

    scaled = "" if cfg.learning_rate is not None else f" = {cfg.base_learning_rate:g} x {cfg.batch_size} / 256"
    print(f"{cfg.method} on {parts.dataset.title}, {cfg.train_on} ({len(parts.images):,} images), {cfg.backbone}, seed {cfg.seed}")
    print(f"{cfg.epochs} epochs of {parts.steps_per_epoch} steps, batch {cfg.batch_size}, learning rate {parts.peak_rate:g}{scaled}")
    print(f"{parts.machine}; {path}")
    if has_imagenet_stem(cfg.backbone, parts.images.shape[2]):
        print(f"images of {parts.images.shape[2]} pixels: ImageNet stem (7x7 stride 2, max-pooling)")
