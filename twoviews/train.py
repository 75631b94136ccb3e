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

from twoviews import config, device, distributed, optim, runs
from twoviews.build import Parts, backbone_bytes, make_forward, make_views
from twoviews.config import Config
from twoviews.contention import contention
from twoviews.data.dataset import batch_rows
from twoviews.distributed import Agreement, StopFlag
from twoviews.methods.base import Method
from twoviews.monitor import monitor
from twoviews.profiling import Trace, peak_flops, step_flops
from twoviews.progress import Clock, Progress, duration
from twoviews.runs import checkpoint

READ_EVERY = 50  # steps between two reads of the losses: each read waits for the device
PREDICT_AT = 20  # steps after which the total time is predicted
REPLAY_LOSSES = 100  # losses kept in replay.json

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
        FloatingPointError: if a loss or a weight is not finite; the checkpoint stays, and `replay.json` says how to repeat the step.
    """
    method, machine, optimizer = parts.method, parts.machine, parts.optimizer
    plan = Plan(cfg, parts)
    start, clock = _restore(run, parts, plan.last)
    to_views, forward = make_views(machine, parts.views), make_forward(machine, method, cfg.batch_size // distributed.size())
    log, tracing = StepLog(run, plan, clock), Trace(run.path / runs.TRACE if cfg.profile and run.writes else None)
    method.train()
    showing = Progress("train", plan.last, "views", start=start, scale=plan.views_per_step, contention=contention(machine))
    with StopFlag() as stop, Agreement() as agree, tracing as trace, showing as bar:
        clock.start()
        for step in range(start, plan.last):
            progress = device.send(torch.tensor(step / plan.steps), machine.device)
            rows, u, batch_size = _batch(cfg, parts, step)
            with machine.autocast():
                loss, extras = forward(to_views(parts.images[rows], u), None if parts.labels is None else parts.labels[rows], progress)
            loss.backward()
            method.before_step(progress)
            optim.clip(method.parameters(), cfg.get("clip_gradients"))  # runs of version 0.1.0 lack this key
            rate = plan.set_rates(optimizer, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(progress)
            distributed.average_running_statistics(method)
            done = step + 1
            log.add(step, loss, extras, rate, batch_size=batch_size)
            bar.add()
            trace.step()
            # important: read the flag once per step. A signal that arrives below, in a probe or a save, is handled in the next step.
            asked = on_step is not None and bool(on_step(done, log.latest))
            signal, asks, late = agree(stop.signal or 0, asked, clock.since_save() >= plan.apart, now=done == plan.last)
            stopping = bool(signal or asks)
            probing, keeping, due = (plan.due(done, key) for key in ("probe_every", "log_interval", "checkpoint_every"))
            saving = stopping or done == plan.last or (due and bool(late))
            if done - start == PREDICT_AT:
                _predict(bar, clock, plan, plan.last - done)
            if len(log.rows) >= READ_EVERY or probing or keeping or saving:
                log.read_losses(method if saving or keeping else None)
                clock.pause()
                bar.add(0, log.status())
                with clock.counting("probes"):
                    log.write(monitor(parts, bar, done, advice=config.against_collapse(cfg.method)) if probing else {})
                _save(cfg, run, parts, clock, done, keeping=keeping, saving=saving)
                clock.start()
            if stopping:
                bar.line(_stopped(run, done, plan.last))
                return 128 + signal if signal else 0, {}
    return 0, distributed.on_first(lambda: _summary(run, plan, clock, machine))


def _batch(cfg: Config, parts: Parts, step: int) -> tuple[Tensor, Tensor, int]:
    """Return this process's part of a step's batch: rows of the images, and random numbers for their views; and the whole batch's size."""
    batch = batch_rows(cfg.seed, step, len(parts.images), cfg.batch_size, drop_last=cfg.drop_last)
    own = distributed.rows(len(batch))
    u = parts.views.draw(cfg.seed, step, own.stop - own.start, own.start)
    return device.send(batch[own], parts.machine.device), device.send(u, parts.machine.device, parts.machine.dtype), len(batch)


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
        with distributed.alone():
            self.flops = step_flops(parts.method, self.view_shapes, labels=parts.method.uses_labels)  # of the whole batch
        peak = peak_flops(parts.machine.device, parts.machine.precision)
        self.peak_flops = peak and peak * distributed.size()

    def due(self, done: int, key: str) -> bool:
        """Return whether the action of this key, whose value is in epochs, follows step number `done`."""
        epochs = self.cfg[key]
        return bool(epochs) and done % max(1, round(epochs * self.steps_per_epoch)) == 0

    def set_rates(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set learning rate and weight decay of a step, and return the rate; groups with `constant_lr` keep the peak rate."""
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
            if self.cfg.get("weight_decay_end") is not None and group.get("adapt", True):  # not where nothing decays
                group["weight_decay"] = optim.cosine(self.cfg.weight_decay, self.cfg.weight_decay_end, step / self.steps)
        return rate


@dataclass
class StepLog:
    """The rows of `metrics.jsonl`: collected without waiting for the device, read and written together."""

    run: runs.RunFolder
    plan: Plan
    clock: Clock
    rows: list[dict[str, Any]] = field(default_factory=list)
    latest: dict[str, Any] = field(default_factory=dict)  # the row that was written last
    batch_sizes: set[int] = field(default_factory=set)  # the first step of each size may compile
    knn: str = ""  # the last accuracy on val, as the progress bar shows it

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
        for name in sorted({key for row in self.rows for key, value in row.items() if isinstance(value, Tensor)}):
            rows = [row for row in self.rows if isinstance(row.get(name), Tensor)]
            for row, value in zip(rows, distributed.mean(torch.stack([row[name] for row in rows])).tolist(), strict=True):
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
        return f"epoch {self.rows[-1]['epoch']:.1f} loss {self.rows[-1]['loss']:.3f}{self.knn}"

    def write(self, probes: dict[str, float]) -> None:
        """Append the rows to the file; speed and probe results join the last one."""
        views, clock = self.plan.views_per_step, self.clock
        self.rows[-1].update(views_per_s=round(clock.rate(views), 1), seconds=round(clock.total, 3))
        if self.plan.flops is not None:
            per_view = self.plan.flops / (self.plan.cfg.batch_size * len(self.plan.view_shapes))
            achieved, peak = per_view * clock.rate(views), self.plan.peak_flops
            self.rows[-1].update({"tflops": round(achieved / 1e12, 4)} | ({"mfu": round(achieved / peak, 4)} if peak else {}))
        self.rows[-1].update(probes)
        self.knn = next((f" kNN {100 * value:.1f} %" for name, value in probes.items() if name.startswith("val_knn")), self.knn)
        self.run.log(self.rows)
        self.latest = self.rows[-1]
        self.rows.clear()


def _restore(run: runs.RunFolder, parts: Parts, last: int) -> tuple[int, Clock]:
    """Load the folder's checkpoint into the parts, if there is one, and cut the metrics back to it."""
    clock = Clock()
    state = distributed.on_first(lambda: _load(run))
    if not state:
        run.truncate_metrics(0)
        return 0, clock
    if state["step"] > last:
        raise ValueError(f"max_steps={last}: {run.path} has run {state['step']} steps already: choose at least that, or leave it out")
    parts.method.load_state_dict(state["method"])
    parts.optimizer.load_state_dict(state["optimizer"])
    clock.load(state["clock"])
    run.truncate_metrics(state["step"])
    print(f"resuming {run.path} at step {state['step']} of {last}")
    return state["step"], clock


def _load(run: runs.RunFolder) -> dict[str, Any]:
    """Return the state in the folder's checkpoint; {} if it has none."""
    found = any((run.path / name).exists() for name in (runs.LAST, runs.PREVIOUS))
    return checkpoint.load(run.path, run.identity) if found else {}


def _save(cfg: Config, run: runs.RunFolder, parts: Parts, clock: Clock, done: int, *, keeping: bool, saving: bool) -> None:
    """Write a copy of the backbone, a checkpoint, both or nothing: the first process does."""
    with clock.counting("checkpoints"):
        if keeping and run.writes:  # before the checkpoint: a run that is killed between the two repeats this step
            run.write(f"epoch-{done // parts.steps_per_epoch}.safetensors", backbone_bytes(cfg, parts, run.identity))
        if saving and run.writes:
            run.flush_metrics()
            state = {"step": done, "run": run.identity, "clock": clock.state()}
            checkpoint.save(run.path, state | {"method": parts.method.state_dict(), "optimizer": parts.optimizer.state_dict()})
        if saving:
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
        "command": f"{distributed.program()} " + shlex.join(["pretrain", f"resume={run.path}", f"max_steps={row['step'] + 1}"]),
    }
    run.write(runs.REPLAY, replay)
    lower = "base_learning_rate" if cfg.learning_rate is None else "learning_rate"
    lower += " or a smaller out_dim" if "whitening_eps" in cfg else ""
    problem = f"loss {row['loss']}" if not math.isfinite(row["loss"]) else f"loss {row['loss']:.4g} and weights that are not finite"
    return FloatingPointError(
        f"{problem} at step {row['step']}, learning rate {row['lr']:g}: try a lower {lower}; the last checkpoint is kept; "
        f"to reproduce this step: {replay['command']} ({run.path / runs.REPLAY})"
    )


def _stopped(run: runs.RunFolder, done: int, last: int) -> str:
    """Return what a stopped run prints, when its checkpoint is written: torchrun ends all processes with the first that has ended."""
    distributed.on_first(lambda: None)
    return f"stopped at step {done} of {last}, checkpoint saved; to continue: {distributed.program()} pretrain resume={run.path}"


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
