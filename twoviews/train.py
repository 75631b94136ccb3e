"""START HERE. The training loop, over the parts that `build.py` made: batch, views, forward, backward, step.

data ──> views ──> backbone ──> projector ──> loss ──> step ──> probes ──> report
uint8    V views       h            z        scalar    params
"""

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twoviews import device, optim, runs
from twoviews.build import Parts, backbone_bytes, compile_forward, make_views
from twoviews.config import Config
from twoviews.data.dataset import batch_rows, stratified
from twoviews.distributed import StopFlag
from twoviews.methods.base import Method
from twoviews.probes.diagnostics import SPREAD_FLOOR, rankme, spread
from twoviews.probes.knn import knn
from twoviews.profiling import Trace, peak_flops, step_flops
from twoviews.progress import Clock, Progress, duration
from twoviews.runs import checkpoint

READ_EVERY = 50  # steps between two reads of the losses: each read waits for the device
PREDICT_AT = 20  # steps after which the total time is predicted
MONITOR_BANK, MONITOR_K = 10_000, 10  # kNN while training: training images only
REPLAY_LOSSES = 100  # losses kept in replay.json
MONITOR_Z = 2000  # images whose projections show a collapse

OnStep = Callable[[int, dict[str, Any]], bool | None]


def fit(cfg: Config, parts: Parts, run: runs.RunFolder, on_step: OnStep | None = None) -> tuple[int, dict[str, Any]]:
    """Train from the folder's checkpoint, if it has one, to the last step or a signal.

    Args:
        cfg, parts, run: of the run.
        on_step: called after each step with the number of steps done and the row of metrics that was written last ({} before
            the first); True stops the run with a checkpoint.

    Returns:
        (exit code: 0, or 128 + signal, the `train` entry of the summary; {} if the run was stopped).

    Raises:
        FloatingPointError: if a loss or a weight is not finite. The last checkpoint stays, and `replay.json` says how to
            reproduce the step.
    """
    method, machine, optimizer, views = parts.method, parts.machine, parts.optimizer, parts.views
    plan = Plan(cfg, parts)
    to_views, forward = make_views(machine, views), compile_forward(machine, method, cfg.batch_size)
    start, clock = _restore(run, parts, plan.last)
    log = StepLog(run, plan, clock, step_flops(method, plan.view_shapes, labels=method.uses_labels))
    tracing = Trace(run.path / runs.TRACE if cfg.profile else None)
    method.train()
    with StopFlag() as stop, tracing as trace, Progress("train", plan.last, "views", start=start, scale=plan.views_per_step) as bar:
        clock.start()
        for step in range(start, plan.last):
            progress = device.send(torch.tensor(step / plan.steps), machine.device)
            rows = device.send(batch_rows(cfg.seed, step, len(parts.images), cfg.batch_size, drop_last=cfg.drop_last), machine.device)
            u = device.send(views.draw(cfg.seed, step, len(rows)), machine.device, machine.dtype)
            with machine.autocast():
                loss, extras = forward(to_views(parts.images[rows], u), None if parts.labels is None else parts.labels[rows], progress)
            loss.backward()
            rate = plan.set_learning_rate(optimizer, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(progress)

            done = step + 1
            log.add(step, loss, extras, rate, batch_size=len(rows))
            bar.add()
            trace.step()
            # important: read the flag once per step. A signal that arrives below, in a probe or a save, is handled in the next step.
            stopping = stop.signal is not None or (on_step is not None and bool(on_step(done, log.latest)))
            probing, keeping = plan.due(done, "probe_every"), plan.due(done, "log_interval")
            saving = stopping or plan.saves(done, clock)
            if done - start == PREDICT_AT:
                _predict(bar, clock, plan, plan.last - done)
            if len(log.rows) >= READ_EVERY or probing or keeping or saving:
                log.read_losses(method if saving or keeping else None)
                clock.pause()
                bar.add(0, log.status())
                with clock.counting("probes"):
                    log.write(monitor(parts, bar, done) if probing else {})
                with clock.counting("checkpoints"):
                    _save(cfg, run, parts, clock, done, keeping=keeping, saving=saving)
                clock.start()
            if stopping:
                bar.line(f"stopped at step {done} of {plan.last}, checkpoint saved; to continue: twoviews pretrain resume={run.path}")
                return stop.exit_code, {}
    return 0, _summary(run, plan, clock, machine)


class Plan:
    """How long a run is, and when each occasional action is due.

    Args:
        cfg, parts: of the run.
    """

    def __init__(self, cfg: Config, parts: Parts) -> None:
        self.cfg, self.peak_rate, self.steps_per_epoch, self.apart = cfg, parts.peak_rate, parts.steps_per_epoch, cfg.checkpoint_seconds
        self.steps = cfg.epochs * parts.steps_per_epoch
        self.last = min(self.steps, cfg.max_steps or self.steps)
        images = cfg.batch_size if cfg.drop_last else len(parts.images) / parts.steps_per_epoch  # the mean, if the last batch is smaller
        self.views_per_step = images * len(parts.views.sizes)
        self.view_shapes = [(cfg.batch_size, parts.images.shape[1], size, size) for size in parts.views.sizes]
        self.peak_flops = peak_flops(parts.machine.device, parts.machine.precision)

    def due(self, done: int, key: str) -> bool:
        """Return whether the action of this key, whose value is in epochs, follows step number `done`."""
        epochs = self.cfg[key]
        return bool(epochs) and done % max(1, round(epochs * self.steps_per_epoch)) == 0

    def saves(self, done: int, clock: Clock) -> bool:
        """Return whether a checkpoint follows step number `done`."""
        due = self.due(done, "checkpoint_every")
        return done == self.last or bool(due and clock.since_save() >= self.apart)

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set and return the learning rate of a step; groups with `constant_lr` keep the peak rate."""
        rate = optim.learning_rate(
            step,
            steps=self.steps,
            steps_per_epoch=self.steps_per_epoch,
            peak=self.peak_rate,
            floor=self.cfg.min_learning_rate,
            warmup_epochs=self.cfg.warmup_epochs,
            schedule=self.cfg.schedule,
            unit=self.cfg.schedule_unit,
        )
        for group in optimizer.param_groups:
            group["lr"] = self.peak_rate if group.get("constant_lr") else rate
        return rate


@dataclass
class StepLog:
    """The rows of `metrics.jsonl`: collected without waiting for the device, read and written together."""

    run: runs.RunFolder
    plan: Plan
    clock: Clock
    flops: int | None  # of a full step
    rows: list[dict[str, Any]] = field(default_factory=list)
    latest: dict[str, Any] = field(default_factory=dict)  # the row that was written last
    batch_sizes: set[int] = field(default_factory=set)  # the first step of each size may compile

    def add(self, step: int, loss: Tensor, extras: dict[str, Tensor], rate: float, *, batch_size: int) -> None:
        """Collect one step; its time counts in the clock."""
        row = {"step": step, "epoch": step / self.plan.steps_per_epoch, "loss": loss.detach(), "lr": rate}
        self.rows.append(row | {name: value.detach() for name, value in extras.items()})
        self.clock.step(step + 1, self.plan.steps_per_epoch, compiling=batch_size not in self.batch_sizes)
        self.batch_sizes.add(batch_size)

    def read_losses(self, method: Method | None) -> None:
        """Replace tensors by numbers, with one wait for the device.

        Args:
            method: its weights are checked too, since a checkpoint must never hold weights that are not finite.

        Raises:
            FloatingPointError: if a loss or a weight is not finite.
        """
        for name in {key for row in self.rows for key, value in row.items() if isinstance(value, Tensor)}:
            rows = [row for row in self.rows if isinstance(row.get(name), Tensor)]
            for row, value in zip(rows, torch.stack([row[name] for row in rows]).tolist(), strict=True):
                row[name] = value
        bad = next((i for i, row in enumerate(self.rows) if not math.isfinite(row["loss"])), None)
        if bad is None and method is not None:
            floats = [x for x in method.state_dict().values() if x.is_floating_point()]
            if not torch.stack([torch.isfinite(x).all() for x in floats]).all():
                bad = len(self.rows) - 1
        if bad is not None:
            raise _diverged(self.run, self.plan.cfg, self.rows, bad)

    def status(self) -> str:
        """Return what the progress bar shows."""
        return f"epoch {self.rows[-1]['epoch']:.1f} loss {self.rows[-1]['loss']:.3f}"

    def write(self, probes: dict[str, float]) -> None:
        """Append the rows to the file; speed and probe results join the last one."""
        views, clock = self.plan.views_per_step, self.clock
        self.rows[-1].update(views_per_s=round(clock.rate(views), 1), seconds=round(clock.total, 3))
        if self.flops is not None:
            per_view = self.flops / (self.plan.cfg.batch_size * len(self.plan.view_shapes))
            achieved, peak = per_view * clock.rate(views), self.plan.peak_flops
            self.rows[-1].update({"tflops": round(achieved / 1e12, 4)} | ({"mfu": round(achieved / peak, 4)} if peak else {}))
        self.rows[-1].update(probes)
        self.run.log(self.rows)
        self.latest = self.rows[-1]
        self.rows.clear()


def _restore(run: runs.RunFolder, parts: Parts, last: int) -> tuple[int, Clock]:
    """Load the folder's checkpoint into the parts, if there is one, and cut the metrics back to it."""
    clock = Clock()
    if not (run.path / runs.LAST).exists() and not (run.path / runs.PREVIOUS).exists():
        run.truncate_metrics(0)
        return 0, clock
    state = checkpoint.load(run.path, run.identity)
    if state["step"] > last:
        raise ValueError(f"max_steps={last}: {run.path} has run {state['step']} steps already: choose at least that, or leave it out")
    parts.method.load_state_dict(state["method"])
    parts.optimizer.load_state_dict(state["optimizer"])
    clock.load(state["clock"])
    run.truncate_metrics(state["step"])
    print(f"resuming {run.path} at step {state['step']} of {last}")
    return state["step"], clock


def _save(cfg: Config, run: runs.RunFolder, parts: Parts, clock: Clock, done: int, *, keeping: bool, saving: bool) -> None:
    if keeping:  # before the checkpoint: a run that is killed between the two repeats this step
        run.write(f"epoch-{done // parts.steps_per_epoch}.safetensors", backbone_bytes(cfg, parts, run.identity))
    if saving:
        state = {"step": done, "run": run.identity, "clock": clock.state()}
        checkpoint.save(run.path, state | {"method": parts.method.state_dict(), "optimizer": parts.optimizer.state_dict()})
        clock.saved()


def _diverged(run: runs.RunFolder, cfg: Config, rows: list[dict[str, Any]], bad: int) -> FloatingPointError:
    """Log the rows before the bad one, write `replay.json`, and return the error to raise.

    Steps are functions of seed and step number, so the command in that file repeats them from the last checkpoint.
    """
    row = rows[bad]
    run.log(rows[:bad])
    replay = {
        "step": row["step"],
        "seed": cfg.seed,
        "loss": str(row["loss"]),
        "learning_rate": row["lr"],
        "losses_before": [before["loss"] for before in runs.read_metrics(run.path)[-REPLAY_LOSSES:]],
        "command": shlex.join(["twoviews", "pretrain", f"resume={run.path}", f"max_steps={row['step'] + 1}"]),
    }
    run.write(runs.REPLAY, replay)
    problem = f"loss {row['loss']}" if not math.isfinite(row["loss"]) else f"loss {row['loss']:.4g} and weights that are not finite"
    return FloatingPointError(
        f"{problem} at step {row['step']}, learning rate {row['lr']:g}: try a lower learning_rate; the last checkpoint is kept; "
        f"to reproduce this step: {replay['command']} ({run.path / runs.REPLAY})"
    )


def monitor(parts: Parts, bar: Progress, done: int) -> dict[str, float]:
    """Evaluate kNN on training images alone, and check for a collapse; print one line and return the values."""
    train_images, train_labels = parts.dataset.split("train")
    val_images, val_labels = parts.dataset.split("val")
    modules = parts.method.modules_to_probe()
    # important: a stratified bank, not the first rows: an image folder is sorted by class
    rows = torch.from_numpy(stratified(train_labels.numpy(), min(MONITOR_BANK, len(train_labels)), seed=0))
    bank = parts.embed(modules["h"], train_images[rows], "probe")
    queries = parts.embed(modules["h"], val_images, "probe")
    z = parts.embed(modules.get("z", modules["h"]), parts.sample(MONITOR_Z), "probe")
    k = min(MONITOR_K, len(bank))
    z_spread, rank = spread(z), rankme(z)
    values = {"z_spread": z_spread, "z_rankme": rank}
    text = f"epoch {done / parts.steps_per_epoch:.1f}: "
    if len(parts.dataset.classes) > 1:
        accuracy = knn(bank, train_labels[rows], queries, val_labels, ks=[k])[k]
        values = {f"val_knn{k}": accuracy, **values}
        learned = parts.labels is not None and len(parts.images) > len(train_labels)
        text += f"kNN-{k} on val{' (whose labels are trained on)' if learned else ''} {100 * accuracy:.1f} %, "
    bar.line(f"{text}spread of z {z_spread:.2f}, RankMe {rank:.0f}")
    if z_spread < SPREAD_FLOOR or rank < 2:
        bar.line(f"warning: z is collapsing: spread {z_spread:.2f} (healthy: 1), RankMe {rank:.1f} of {z.shape[1]}")
    return values


def _predict(bar: Progress, clock: Clock, plan: Plan, left: int) -> None:
    """Print the predicted time, and a shorter command where it is long."""
    cfg, seconds = plan.cfg, left * clock.per_step()
    bar.line(f"{clock.rate(plan.views_per_step):,.0f} views/s: about {duration(seconds)} left, probes not included")
    if seconds > 3600:
        short = max(1, int(cfg.epochs * 600 / seconds))
        fits = short > cfg.warmup_epochs and short * seconds / cfg.epochs <= 900
        change = f"epochs={short}" if fits else f"max_steps={max(1, int(600 / clock.per_step()))}"
        bar.line(f"over an hour: Ctrl-C saves a checkpoint and stops; for about ten minutes, add {change} to the command")


def _summary(run: runs.RunFolder, plan: Plan, clock: Clock, machine: device.Machine) -> dict[str, Any]:
    losses = [row["loss"] for row in runs.read_metrics(run.path)[-plan.steps_per_epoch :]]
    return {
        "steps": plan.last,
        "planned_steps": plan.steps,
        "sec_per_epoch": clock.epoch_seconds(plan.steps_per_epoch),
        "seconds": round(clock.total, 3),
        "compile_seconds": round(clock.compiling(), 3),
        "checkpoint_seconds": round(clock.beside["checkpoints"], 3),
        "probe_seconds": round(clock.beside["probes"], 3),
        "loss": sum(losses) / max(1, len(losses)),
        "views_per_s": round(clock.rate(plan.views_per_step), 1),
        "peak_bytes": device.peak_bytes(machine.device),
        "earlier_seconds": round(clock.earlier, 3),
    }
