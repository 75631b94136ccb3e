"""READ ME FIRST. The one loop, over the parts that `build.py` made: batch, views, method, backward, step.

data ──> views ──> backbone ──> projector ──> loss ──> step ──> probes ──> report
uint8    V views       h            z        scalar    params
"""

from __future__ import annotations

import math
import shlex
from typing import Any

import torch
from torch import Tensor

from twoviews import checkpoint, device, optim, runs
from twoviews.build import Parts, backbone_bytes, forward_on, views_on
from twoviews.config import Config
from twoviews.data.dataset import batch_rows, stratified
from twoviews.methods.base import Method
from twoviews.parallel import StopFlag
from twoviews.probes.diagnostics import SPREAD_FLOOR, rankme, spread
from twoviews.probes.knn import knn
from twoviews.profiling import Trace, peak_flops, step_flops
from twoviews.progress import Clock, Progress

FLUSH_EVERY = 50  # steps between two reads of the losses: each read waits for the device
PREDICT_AT = 20  # steps after which the total time is predicted
MONITOR_BANK, MONITOR_K = 10_000, 10  # kNN while training: training images only
KEPT_LOSSES = 100  # in the replay file
MONITOR_Z = 2000  # images whose projections show a collapse


def fit(cfg: Config, parts: Parts, run: runs.RunFolder) -> tuple[int, dict[str, Any]]:
    """The loop, from the folder's checkpoint if it has one, to the last step or a signal.

    Returns:
        (exit code: 0, or 128 + signal, the `train` entry of the summary).

    Raises:
        FloatingPointError: if a loss or a weight is not finite; the last checkpoint stays, and `replay.json` says how to see it again.
    """
    method, machine, optimizer, spe = parts.method, parts.machine, parts.optimizer, parts.steps_per_epoch
    steps = cfg.epochs * spe
    last = min(steps, cfg.max_steps or steps)
    probe_every, save_every, keep_every = (_in_steps(cfg[key], spe) for key in ("probe_every", "checkpoint_every", "log_interval"))
    make_views = views_on(machine, parts.views)
    forward = forward_on(machine, method)
    start, clock = _restore(run, parts, last)
    images = cfg.batch_size if cfg.drop_last else len(parts.images) / spe  # a step; the mean where the last batch is short
    views_per_step = images * len(parts.views.view_sizes)
    shapes = [(cfg.batch_size, parts.images.shape[1], size, size) for size in parts.views.view_sizes]
    flops = step_flops(method, shapes, labels=method.uses_labels)
    peak = peak_flops(machine.device, machine.precision)
    compiled: set[int] = set()  # batch sizes seen: the first step of each may compile
    pending: list[dict[str, Any]] = []
    method.train()
    tracing = Trace(run.path / runs.TRACE if cfg.profile else None)
    with StopFlag() as stop, tracing as trace, Progress("train", last, "views", start=start, scale=views_per_step) as bar:
        clock.start()
        for step in range(start, last):
            progress = device.send(torch.tensor(step / steps), machine.device)
            rows = device.send(batch_rows(cfg.seed, step, len(parts.images), cfg.batch_size, drop_last=cfg.drop_last), machine.device)
            u = device.send(parts.views.draw(cfg.seed, step, len(rows)), machine.device, machine.dtype)
            views = make_views(parts.images[rows], u)
            with machine.autocast():
                loss, extras = forward(views, None if parts.labels is None else parts.labels[rows], progress)
            loss.backward()
            rate = optim.learning_rate(
                step,
                steps=steps,
                steps_per_epoch=spe,
                peak=parts.peak_rate,
                floor=cfg.min_learning_rate,
                warmup_epochs=cfg.warmup_epochs,
                schedule=cfg.schedule,
                unit=cfg.schedule_unit,
            )
            for group in optimizer.param_groups:
                group["lr"] = parts.peak_rate if group.get("constant_lr") else rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(progress)

            done = step + 1
            pending.append(
                {"step": step, "epoch": step / spe, "loss": loss.detach(), "lr": rate} | {k: v.detach() for k, v in extras.items()}
            )
            clock.step(done, spe, compiling=len(rows) not in compiled)
            compiled.add(len(rows))
            bar.add()
            trace.step()
            # important: looked at once a step: a signal that comes below, in a probe or a save, is the next step's, which saves for it
            stopping = stop.signal is not None
            probing, keeping = _due(done, probe_every), _due(done, keep_every)
            saving = _due(done, save_every) or stopping or done == last
            if done - start == PREDICT_AT:
                _predict(bar, clock, cfg, views_per_step, last - done)
            if len(pending) >= FLUSH_EVERY or probing or keeping or saving:
                _read_losses(pending)  # waits for the device
                bad = _first_bad(pending, method if saving or keeping else None)
                if bad is not None:
                    raise _diverged(run, cfg, pending, bad)
                clock.pause()
                pending[-1].update(views_per_s=round(clock.rate(views_per_step), 1), seconds=round(clock.total, 3))
                if flops is not None:
                    achieved = flops / (cfg.batch_size * len(shapes)) * clock.rate(views_per_step)
                    pending[-1].update({"tflops": round(achieved / 1e12, 4)} | ({"mfu": round(achieved / peak, 4)} if peak else {}))
                bar.add(0, f"epoch {step / spe:.1f} loss {pending[-1]['loss']:.3f}")
                if probing:
                    pending[-1].update(monitor(parts, bar, done))
                run.log(pending)
                pending.clear()
                if keeping:  # before the checkpoint: a run that is killed between the two takes this step again
                    run.write(f"epoch-{done // spe}.safetensors", backbone_bytes(cfg, parts, run.identity))
                if saving:
                    state = {
                        "step": done,
                        "run": run.identity,
                        "method": method.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "clock": clock.state(),
                    }
                    checkpoint.save(run.path, state)
                clock.start()
            if stopping:
                bar.line(f"stopped at step {done} of {last}, checkpoint kept: twoviews pretrain resume={run.path}")
                return stop.exit_code, {}
    rows_logged = runs.metrics(run.path)
    summary = {
        "steps": last,
        "planned_steps": steps,
        "sec_per_epoch": clock.epoch_seconds(spe),
        "seconds": round(clock.total, 3),
        "loss": sum(row["loss"] for row in rows_logged[-spe:]) / max(1, len(rows_logged[-spe:])),
        "views_per_s": round(clock.rate(views_per_step), 1),
        "peak_bytes": device.peak_bytes(machine.device),
        "earlier_seconds": round(clock.earlier, 3),
    }
    return 0, summary


def _restore(run: runs.RunFolder, parts: Parts, last: int) -> tuple[int, Clock]:
    """Load the folder's checkpoint into the parts, if there is one, and cut the metrics back to it."""
    clock = Clock()
    if not (run.path / checkpoint.LAST).exists() and not (run.path / checkpoint.PREVIOUS).exists():
        run.truncate_metrics(0)
        return 0, clock
    state = checkpoint.load(run.path, run.identity)
    if state["step"] > last:
        raise ValueError(f"max_steps={last}: {run.path} has taken {state['step']} steps already: choose at least that, or leave it out")
    parts.method.load_state_dict(state["method"])
    parts.optimizer.load_state_dict(state["optimizer"])
    clock.load(state["clock"])
    run.truncate_metrics(state["step"])
    print(f"resuming {run.path} at step {state['step']} of {last}")
    return state["step"], clock


def _in_steps(epochs: float, steps_per_epoch: int) -> int:
    return max(1, round(epochs * steps_per_epoch)) if epochs else 0


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _read_losses(pending: list[dict[str, Any]]) -> None:
    """Replace tensors by numbers, with one wait for the device."""
    for name in {key for row in pending for key, value in row.items() if isinstance(value, Tensor)}:
        rows = [row for row in pending if isinstance(row.get(name), Tensor)]
        for row, value in zip(rows, torch.stack([row[name] for row in rows]).tolist(), strict=True):
            row[name] = value


def _first_bad(pending: list[dict[str, Any]], method: Method | None) -> int | None:
    """Which row has a loss that is not finite; the last, if that left weights which are not: a checkpoint must never hold those."""
    bad = next((i for i, row in enumerate(pending) if not math.isfinite(row["loss"])), None)
    if bad is None and method is not None:
        whole = [x for x in method.state_dict().values() if x.is_floating_point()]
        if not torch.stack([torch.isfinite(x).all() for x in whole]).all():
            return len(pending) - 1
    return bad


def _diverged(run: runs.RunFolder, cfg: Config, pending: list[dict[str, Any]], bad: int) -> FloatingPointError:
    """What to raise, after the rows before it are logged and `replay.json` is written: steps are functions of seed and number, so that
    the command there takes the same ones from the last checkpoint to the same end."""
    row = pending[bad]
    run.log(pending[:bad])
    replay = {
        "step": row["step"],
        "seed": cfg.seed,
        "loss": str(row["loss"]),
        "learning_rate": row["lr"],
        "losses_before": [before["loss"] for before in runs.metrics(run.path)[-KEPT_LOSSES:]],
        "command": shlex.join(["twoviews", "pretrain", f"resume={run.path}", f"max_steps={row['step'] + 1}"]),
    }
    run.write(runs.REPLAY, replay)
    what = f"loss {row['loss']}" if not math.isfinite(row["loss"]) else f"loss {row['loss']:.4g}, and weights that are not finite,"
    return FloatingPointError(
        f"{what} at step {row['step']}, rate {row['lr']:g}: the last checkpoint is kept; try a lower learning_rate; "
        f"to see it again: {replay['command']} ({run.path / runs.REPLAY})"
    )


def monitor(parts: Parts, bar: Progress, done: int) -> dict[str, float]:
    """kNN on training images alone, where they have classes, and the signs of a collapse; said in one line."""
    train_images, train_labels = parts.dataset.split("train")
    val_images, val_labels = parts.dataset.split("val")
    modules = parts.method.features()
    # important: a stratified bank, not the first rows: an image tree comes class by class
    rows = torch.from_numpy(stratified(train_labels.numpy(), min(MONITOR_BANK, len(train_labels)), seed=0))
    bank = parts.embed(modules["h"], train_images[rows], "probe")
    queries = parts.embed(modules["h"], val_images, "probe")
    z = parts.embed(modules.get("z", modules["h"]), val_images[:: -(-len(val_images) // MONITOR_Z)], "probe")
    k = min(MONITOR_K, len(bank))
    values = {"z_spread": spread(z), "z_rankme": rankme(z)}
    width, rank = values["z_spread"], values["z_rankme"]
    said = f"epoch {done / parts.steps_per_epoch:.1f}: "
    if len(parts.dataset.classes) > 1:
        accuracy = knn(bank, train_labels[rows], queries, val_labels, ks=[k])[k]
        values = {f"val_knn{k}": accuracy, **values}
        learned = parts.labels is not None and len(parts.images) > len(train_labels)
        said += f"kNN-{k} on val{' (its labels trained on)' if learned else ''} {100 * accuracy:.1f} %, "
    bar.line(f"{said}spread of z {width:.2f}, RankMe {rank:.0f}")
    if width < SPREAD_FLOOR or rank < 2:
        bar.line(f"warning: z is collapsing: its spread is {width:.2f} of 1, its RankMe {rank:.1f} of {z.shape[1]}")
    return values


def _predict(bar: Progress, clock: Clock, cfg: Config, views_per_step: float, left: int) -> None:
    """Say the total time early, and a shorter command where it is long."""
    seconds = left * clock.per_step()
    bar.line(f"{clock.rate(views_per_step):,.0f} views/s: about {_duration(seconds)} to go, probes not counted")
    if seconds > 3600:
        short = max(1, int(cfg.epochs * 600 / seconds))
        whole = short > cfg.warmup_epochs and short * seconds / cfg.epochs <= 900
        fits = f"epochs={short}" if whole else f"max_steps={max(1, int(600 / clock.per_step()))}"
        bar.line(f"over an hour: Ctrl-C keeps a checkpoint; about ten minutes: the same command with {fits}")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return (
        f"{seconds / 60:.0f} min"
        if seconds < 7200
        else (f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days")
    )
