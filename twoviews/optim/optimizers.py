"""Optimisers: SGD, Adam, AdamW, Muon, LARS and LARC over a method's parameter groups."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

TRUST = {"lars": 1e-3, "larc": 0.02}  # eta of LARS in SimCLR's code, and of LARC in apex

OPTIMIZERS = ("sgd", "muon", "lars", "larc", "adam", "adamw")


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
    """Return an optimiser over a method's parameter groups; the training loop sets the rate of each step.

    Args:
        groups: dicts with `params` and, if the rate of the group must not follow the schedule, `constant_lr=True`.
        optimizer: one of `OPTIMIZERS`.
        momentum: in [0, 1); Adam's first beta (the second is 0.999).
        nesterov: look-ahead momentum; not for Adam.
        weight_decay: >= 0; added to the gradient (L2), except by Muon and AdamW, which shrink the weights (decoupled).
        decay_norms: also decay 1-D parameters (norms, biases), as CIFAR recipes do; LARS and LARC then also scale their rate.
        compile: compile Muon's matrix products; the other optimisers need no compilation.

    Raises:
        ValueError: if a value is out of its range.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    if optimizer in ("adam", "adamw") and nesterov:
        raise ValueError(f"optimizer={optimizer}: it has no Nesterov momentum: use nesterov=false")
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
    kernels: dict[str, Any] = {"fused": True} if all(p.is_cuda for group in split for p in group["params"]) else {"foreach": True}
    if optimizer == "muon":
        return Muon(split, lr=0.0, momentum=momentum, nesterov=nesterov, compile=compile)
    if optimizer in TRUST:
        kind: type[LARS] = LARC if optimizer == "larc" else LARS
        return kind(split, lr=0.0, trust=TRUST[optimizer], momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    if optimizer == "adamw":
        return torch.optim.AdamW(split, lr=0.0, betas=(momentum, 0.999), **kernels)
    if optimizer == "adam":
        return torch.optim.Adam(split, lr=0.0, betas=(momentum, 0.999), **kernels)
    return torch.optim.SGD(split, lr=0.0, momentum=momentum, nesterov=nesterov, **kernels)


def clip(parameters: Iterable[Tensor], limit: float | None) -> None:
    """Scale all gradients together so that their norm is at most the limit; None: no limit. It does not wait for the device."""
    if limit is not None:
        torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum SGD with orthogonalised steps.

    The momentum of each weight, as a matrix (outputs, inputs; a convolution has C k k inputs), is replaced by the nearest
    orthogonal matrix, so all directions move equally far whatever the gradient's conditioning. Norms and biases get
    momentum SGD at the same rate. `torch.optim.Muon` accepts matrices only.

    Args:
        params: parameter groups.
        lr: length of the step in every direction, > 0 when a step is taken; 0.02 to 0.2 here.
        momentum: in [0, 1).
        nesterov: look-ahead momentum.
        weight_decay: decoupled, >= 0; a group may have its own.
        compile: for a GPU: weights of one shape are computed together, in bfloat16, and everything in one compiled graph. It saves the
            launches of about 25 small kernels a weight.
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
        self.directions = torch.compile(batched_directions, fullgraph=True, dynamic=False) if compile else directions

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
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
    """Return the parameters of a group that have a gradient, these gradients, and their momentum, as lists for foreach operations."""
    params = [p for p in group["params"] if p.grad is not None]
    for p in params:
        if not optimizer.state[p]:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return params, [p.grad for p in params], [optimizer.state[p]["momentum_buffer"] for p in params]


def directions(updates: list[Tensor]) -> list[Tensor]:
    """Return Muon's steps in the layout of their weights: orthogonal, times max(1, sqrt(outputs / inputs)); vectors unchanged."""
    return [_step(update, orthogonal(update.flatten(1))) if update.ndim > 1 else update for update in updates]


def batched_directions(updates: list[Tensor]) -> list[Tensor]:
    """Return `directions`, with weights of one shape in one product, in bfloat16 as in Jordan's code: within 6 %, as five steps are."""
    steps, shapes = list(updates), dict.fromkeys(update.shape for update in updates if update.ndim > 1)
    for shape in shapes:
        same = [i for i, update in enumerate(updates) if update.shape == shape]
        found = orthogonal(torch.stack([updates[i].flatten(1) for i in same]).bfloat16())
        for i, matrix in zip(same, found.unbind(), strict=True):
            steps[i] = _step(updates[i], matrix)
    return steps


def _step(update: Tensor, matrix: Tensor) -> Tensor:
    """Return the orthogonal matrix of an update as a step in the weight's shape."""
    scale = max(1, len(update) / update[0].numel()) ** 0.5
    # important: the weight's memory layout; with another one a GPU adds each step by a separate kernel
    return torch.empty_like(update).copy_(matrix.view(update.shape) * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return approximately the nearest (semi-)orthogonal matrix, by five Newton-Schulz steps with Muon's coefficients.

    Args:
        matrix: (..., m, n).

    Returns:
        (..., m, n) with the same singular vectors; singular values are about 0.7 to 1.2, but lower where they were small.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: Tensor = matrix.mT if tall else matrix
    x = x / ((x.norm() if x.ndim == 2 else torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.mT if tall else x


class LARS(torch.optim.Optimizer):
    """LARS (You et al. 2017, https://arxiv.org/abs/1708.03888): momentum SGD that scales each layer's rate by |weights| / |gradient|.

    As in SimCLR's code (lars_optimizer.py of google-research/simclr): the gradient's norm includes the weight decay, where the
    paper's algorithm 1 adds two norms. The velocity includes the rate. Layers whose norm is 0 keep the plain rate.

    Args:
        params: parameter groups; `adapt=False` in a group leaves its rate unscaled.
        lr: global rate.
        momentum: in [0, 1).
        nesterov: look-ahead momentum.
        weight_decay: L2, >= 0; a group may have its own.
        trust: the paper's eta, > 0.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, momentum: float, nesterov: bool, weight_decay: float, trust: float
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
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


class LARC(LARS):
    """LARC, the variant of LARS in NVIDIA's apex with clipping, which solo-learn and lightly call LARS.

    The norms of gradient and weight decay are added (the paper's algorithm 1), a layer's rate is at most the plain rate, and the
    velocity does not include the rate. Arguments: those of LARS.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params, gradients, velocity = _moving(self, group)
            if not params:
                continue
            decay, updates = group["weight_decay"], list(gradients)
            if group["adapt"] and group["lr"] > 0:
                lengths, slopes = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, gradients))
                adapted = (lengths > 0) & (slopes > 0)  # other layers are neither scaled nor decayed
                local = torch.where(adapted, (group["trust"] * lengths / (slopes + decay * lengths) / group["lr"]).clamp(max=1), 1.0)
                updates = list(torch._foreach_add(gradients, torch._foreach_mul(params, (decay * adapted).unbind())))
                torch._foreach_mul_(updates, local.unbind())
            torch._foreach_mul_(velocity, group["momentum"])
            torch._foreach_add_(velocity, updates)
            steps = torch._foreach_add(updates, velocity, alpha=group["momentum"]) if group["nesterov"] else velocity
            torch._foreach_add_(params, steps, alpha=-group["lr"])
