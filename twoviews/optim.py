"""Optimisers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

DROP, DROP_AT = 0.2, (0.05, 0.025)  # of the step schedule: what each drop leaves, and the share of the run that it lasts
TRUST = 1e-3  # LARS' eta in SimCLR's code; a clipped LARS with 0.02 is another optimiser


def learning_rate(
    step: int,
    *,
    steps: int,
    steps_per_epoch: int,
    peak: float,
    floor: float,
    warmup_epochs: float,
    schedule: str,
    unit: str,
) -> float:
    """Linear warm-up, then cosine from `peak` to `floor` (Loshchilov & Hutter 2017, eq. 5), two drops, or constant.

    Args:
        step: 0 <= step < steps: the optimiser step about to be taken.
        steps, steps_per_epoch: length of the run and of an epoch in optimiser steps.
        peak, floor: absolute learning rates, 0 <= floor <= peak. Nothing multiplies them again.
        warmup_epochs: length of the warm-up; its first step takes peak / warm-up steps, never 0.
        schedule: `cosine`; `step`: a fifth of `peak` for the last 5 % of the run and a fifth of that for the last 2.5 % (W-MSE,
            Ermolov et al. 2021: 50 and 25 of 1,000 epochs); `constant`.
        unit: `step`, or `epoch`: the rate changes at epoch borders only.

    Returns:
        The rate of this step.

    Raises:
        ValueError: if a value is out of its range.
    """
    if not 0 <= floor <= peak or schedule not in ("cosine", "step", "constant") or unit not in ("step", "epoch"):
        raise ValueError(
            f"learning rate: expected 0 <= floor <= peak, cosine|step|constant, step|epoch, got {floor}, {peak}, {schedule}, {unit}"
        )
    warmup = round(warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    if unit == "epoch":
        step = step // steps_per_epoch * steps_per_epoch
    if schedule == "step":
        return max(floor, peak * DROP ** sum(step >= steps - share * steps for share in DROP_AT))
    progress = max(0, step - warmup) / max(1, steps - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def resolve_learning_rate(rate: float | None, base: float, batch_size: int) -> float:
    """The peak rate: `rate` as it is, or where it is None `base` x batch / 256 (Goyal et al. 2017), scaled this once."""
    return rate if rate is not None else base * batch_size / 256


def build(
    groups: Iterable[dict[str, Any]],
    *,
    optimizer: str,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_norms: bool,
    compile: bool = False,
) -> torch.optim.Optimizer:
    """An optimiser over a method's parameter groups; the loop sets the rate of each step.

    Args:
        groups: dicts with `params` and, if the rate of the group must not follow the schedule, `constant_lr=True`.
        optimizer: `sgd`, `muon`, `lars` or `adam`.
        momentum: in [0, 1); Adam's first beta (the second is 0.999).
        nesterov: look-ahead momentum; Adam has none.
        weight_decay: >= 0; added to the gradient (L2), but for Muon, which takes it from the weights (decoupled).
        decay_norms: decay 1-D parameters (norms, biases) too, as the CIFAR recipes do; LARS scales their rate too, then.
        compile: what is more than a kernel or two for all parameters: Muon's products.

    Raises:
        ValueError: if a value is out of its range.
    """
    if optimizer not in ("sgd", "muon", "lars", "adam"):
        raise ValueError(f"optimizer: expected sgd, muon, lars or adam, got {optimizer!r}")
    if optimizer == "adam" and nesterov:
        raise ValueError("optimizer=adam: it has no Nesterov momentum: use nesterov=false")
    if not 0 <= momentum < 1 or weight_decay < 0:  # torch checks its defaults, not the values of a group
        raise ValueError(f"{optimizer}: expected momentum in [0, 1) and weight_decay >= 0, got {momentum}, {weight_decay}")
    split: list[dict[str, Any]] = []
    for group in groups:
        params = list(group["params"])
        rest = {key: value for key, value in group.items() if key != "params"}
        if decay_norms:
            split.append({**rest, "params": params, "weight_decay": weight_decay})
        else:
            split.append({**rest, "params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay})
            split.append({**rest, "params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0, "adapt": False})
    how: dict[str, Any] = {"fused": True} if all(p.is_cuda for group in split for p in group["params"]) else {"foreach": True}
    if optimizer == "muon":
        return Muon(split, lr=0.0, momentum=momentum, nesterov=nesterov, compile=compile)
    if optimizer == "lars":
        return LARS(split, lr=0.0, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, trust=TRUST)
    if optimizer == "adam":
        return torch.optim.Adam(split, lr=0.0, betas=(momentum, 0.999), **how)
    return torch.optim.SGD(split, lr=0.0, momentum=momentum, nesterov=nesterov, **how)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum SGD whose step is made orthogonal.

    The momentum of each weight, as a matrix of its outputs by all its inputs (a filter's C k k), is replaced by the nearest
    orthogonal matrix: every direction moves alike, however the gradient is conditioned. Norms and biases get momentum SGD
    at the same rate. `torch.optim.Muon` takes matrices only.

    Args:
        params: parameter groups.
        lr: step of every direction, > 0 when a step is taken; 0.02 to 0.2 here.
        momentum: in [0, 1).
        nesterov: look-ahead momentum.
        weight_decay: decoupled, >= 0; a group may carry its own.
        compile: the products of all weights as one graph: some 25 small ones a weight, each of which a GPU waits for otherwise.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})
        self.directions = torch.compile(directions, fullgraph=True, dynamic=False) if compile else directions

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        for group in self.param_groups:
            params, gradients, moving = _moving(self, group)
            if not params:
                continue
            torch._foreach_mul_(moving, group["momentum"])
            torch._foreach_add_(moving, gradients)
            updates = list(torch._foreach_add(gradients, moving, alpha=group["momentum"])) if group["nesterov"] else moving
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, self.directions(updates), alpha=-group["lr"])


def _moving(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """A group's parameters that have a gradient, those gradients, and the momentum of each: lists, for operations on all at once."""
    params = [p for p in group["params"] if p.grad is not None]
    for p in params:
        if not optimizer.state[p]:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return params, [p.grad for p in params], [optimizer.state[p]["momentum_buffer"] for p in params]


def directions(updates: list[Tensor]) -> list[Tensor]:
    """Muon's step of each weight, in its layout: orthogonal, times sqrt(outputs / inputs) where that is above 1; vectors as they are."""
    steps = []
    for update in updates:
        if update.ndim > 1:
            scale = max(1, len(update) / update[0].numel()) ** 0.5
            # important: of another layout than its weight, a GPU would add each step by a kernel of its own
            update = torch.empty_like(update).copy_(orthogonal(update.flatten(1)).view(update.shape) * scale)
        steps.append(update)
    return steps


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest (semi-)orthogonal matrix, by five Newton-Schulz steps with Muon's coefficients.

    Args:
        matrix: (m, n).

    Returns:
        (m, n) with the same singular vectors and singular values near 1 (in about [0.7, 1.2], small ones below).
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.T if tall else x


class LARS(torch.optim.Optimizer):
    """LARS (You et al. 2017, https://arxiv.org/abs/1708.03888): momentum SGD whose rate, layer by layer, is scaled by the length of the
    weights over that of their gradient.

    As SimCLR's code has it (lars_optimizer.py of google-research/simclr): the length is of gradient and decay together, where the
    paper's algorithm 1 adds two lengths; the rate is in the velocity; layers without length keep the plain rate.

    Args:
        params: parameter groups; `adapt=False` in a group leaves its rate unscaled.
        lr: global rate.
        momentum: in [0, 1).
        nesterov: look-ahead momentum.
        weight_decay: L2, >= 0; a group may carry its own.
        trust: the paper's eta, > 0.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, momentum: float, nesterov: bool, weight_decay: float, trust: float
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        for group in self.param_groups:
            params, gradients, velocity = _moving(self, group)
            if not params:
                continue
            updates = torch._foreach_add(gradients, params, alpha=group["weight_decay"])
            if group["adapt"]:
                lengths, slopes = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))
                local = torch.where((lengths > 0) & (slopes > 0), group["trust"] * lengths / slopes, 1.0)
                torch._foreach_mul_(updates, local.unbind())
            torch._foreach_mul_(updates, group["lr"])
            torch._foreach_mul_(velocity, group["momentum"])
            torch._foreach_add_(velocity, updates)
            torch._foreach_sub_(params, torch._foreach_add(updates, velocity, alpha=group["momentum"]) if group["nesterov"] else velocity)
