"""The linear probe on precomputed features: multinomial logistic regression, solved to its optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: each solution starts the next
ITERATIONS = 300


@dataclass(frozen=True)
class Linear:
    """A fitted probe: `weight` (classes, D) and `bias` (classes,) act on features as they are, unstandardised."""

    weight: Tensor
    bias: Tensor

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of rows in [0, 1] whose largest logit is their label."""
        return (F.linear(features, self.weight, self.bias).argmax(1) == labels).float().mean().item()


def linear(
    features: Tensor,
    labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    classes: int,
    decays: Sequence[float] = DECAYS,
) -> tuple[Linear, float]:
    """Fit on the training rows for each weight decay, choose by accuracy on `val`, fit again on both with the chosen one.

    The test set has no part in it: the caller scores the returned probe once.

    Args:
        features, labels: (N, D) and (N,) of `train`.
        val_features, val_labels: (M, D) and (M,) of `val`.
        classes: of the data set; a class may be missing from the rows.
        decays: candidates, > 0, strongest first.

    Returns:
        (the probe fitted on all N + M rows, the chosen weight decay).

    Raises:
        ValueError: if shapes do not fit or a feature is not finite.
    """
    best, chosen, start = -1.0, decays[0], None
    for decay in decays:
        probe, start = fit(features, labels, classes=classes, decay=decay, start=start)
        accuracy = probe.accuracy(val_features, val_labels)
        if accuracy > best:
            best, chosen, best_start = accuracy, decay, start
    probe, _ = fit(
        torch.cat([features, val_features]),
        torch.cat([labels, val_labels]),
        classes=classes,
        decay=chosen,
        start=best_start,
    )
    return probe, chosen


def fit(features: Tensor, labels: Tensor, *, classes: int, decay: float, start: Tensor | None = None) -> tuple[Linear, Tensor]:
    """Minimise mean cross entropy + decay / 2 x ||W||^2 over standardised features by L-BFGS (Liu & Nocedal 1989).

    The problem is convex: there is one optimum, and no learning rate, batch or number of epochs to choose.

    Args:
        features, labels: (N, D) and (N,) int64 in [0, classes).
        classes: rows of the weight.
        decay: L2 coefficient of the weight, > 0; the bias is free.
        start: (classes, D + 1) from an earlier fit.

    Returns:
        (the probe, its standardised solution to start another fit from).

    Raises:
        ValueError: if shapes do not fit or a feature is not finite.
    """
    if features.ndim != 2 or len(features) != len(labels) or not len(labels):
        raise ValueError(f"linear: expected features (N, D) and labels (N,), got {tuple(features.shape)} and {tuple(labels.shape)}")
    if not torch.isfinite(features).all():
        raise ValueError("linear: features hold NaN or infinite values")
    mean, std = features.mean(0), features.std(0, correction=0)
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0)  # a constant feature carries nothing
    x = (features - mean) / std
    solution = torch.zeros(classes, x.shape[1] + 1, dtype=x.dtype, device=x.device) if start is None else start.clone()
    solution.requires_grad_(True)
    solver = torch.optim.LBFGS(
        [solution],
        max_iter=ITERATIONS,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(x, solution[:, :-1], solution[:, -1]), labels) + decay / 2 * solution[:, :-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    solved = solution.detach()
    weight = solved[:, :-1] / std
    return Linear(weight, solved[:, -1] - weight @ mean), solved
