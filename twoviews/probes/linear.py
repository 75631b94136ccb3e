"""The linear probe on precomputed features: multinomial logistic regression, solved to its optimum."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews.progress import Progress

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: each solution starts the next
ITERATIONS = 100  # of L-BFGS; preconditioned, it is within 1e-3 of the optimum after 30 and gains 1e-4 from 100 more


@dataclass(frozen=True)
class Linear:
    """A fitted probe: `weight` (classes, D) and `bias` (classes,) act on features as they are, unstandardised."""

    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """The class of the largest logit: (N, D) to (N,) int64."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias).argmax(1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of rows in [0, 1] whose largest logit is their label."""
        return (self.predict(features) == labels).double().mean().item()


def linear(
    features: Tensor, labels: Tensor, val_features: Tensor, val_labels: Tensor, *, classes: int, decays: Sequence[float] = DECAYS
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
        ValueError: if shapes do not fit, a feature is not finite, or there is no candidate.
    """
    if not decays or min(decays) <= 0:
        raise ValueError(f"linear: expected weight decays above 0, got {list(decays)}")
    if val_features.shape[1:] != features.shape[1:] or len(val_features) != len(val_labels) or not len(val_labels):
        raise ValueError(f"linear: val has features {tuple(val_features.shape)} and labels {tuple(val_labels.shape)}: they do not fit")
    problem = Problem(features, labels, classes)
    best, chosen, start = -1.0, decays[0], None
    with Progress("linear probe", len(decays) + 1, "fits") as bar:
        for decay in decays:
            start = problem.solve(decay, start)
            bar.add()
            accuracy = problem.probe(start).accuracy(val_features, val_labels)
            if accuracy > best:
                best, chosen = accuracy, decay
        both = Problem(torch.cat([features, val_features]), torch.cat([labels, val_labels]), classes)
        solved = both.solve(chosen)
        bar.add()
        return both.probe(solved), chosen


def saga(features: Tensor, labels: Tensor) -> tuple[Linear, int]:
    """scikit-learn's logistic regression without penalty, by SAGA with its own defaults, as the second seed calls it.

    Its 100 passes over the data end, as a rule, before it has converged; the caller prints how many it took.

    Args:
        features, labels: (N, D) and (N,) with at least two classes.

    Returns:
        (the probe, passes over the data).

    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=math.inf, solver="saga", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes says it
        model.fit(features.numpy(), labels.numpy())
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(model.classes_) == 2:  # one logit, of the second class against the first
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    rows = int(labels.max()) + 1
    whole = torch.zeros(rows, features.shape[1], dtype=features.dtype), torch.full((rows,), -math.inf, dtype=features.dtype)
    seen = torch.from_numpy(model.classes_)
    whole[0][seen], whole[1][seen] = weight.to(features.dtype), bias.to(features.dtype)  # a class without rows is never predicted
    return Linear(*whole), int(model.n_iter_.max())


class Problem:
    """Multinomial logistic regression on standardised features: mean cross entropy + decay / 2 x ||W||^2.

    Convex: one optimum, and no learning rate, batch or number of epochs to choose. Solved by L-BFGS (Liu & Nocedal 1989)
    along the features' principal axes, each scaled by its curvature: on raw pixels four times fewer evaluations.

    Args:
        features, labels: (N, D) and (N,) int64 in [0, classes).
        classes: rows of the weight.

    Raises:
        ValueError: if shapes do not fit or a feature is not finite.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        if features.ndim != 2 or len(features) != len(labels) or not len(labels):
            raise ValueError(f"linear: expected features (N, D) and labels (N,), got {tuple(features.shape)} and {tuple(labels.shape)}")
        if not torch.isfinite(features).all():
            raise ValueError("linear: features hold NaN or infinite values")
        self.mean, std = features.mean(0), features.std(0, correction=0)
        self.std = torch.where(std > 1e-6 * (1 + self.mean.abs()), std, 1.0)  # a constant feature carries nothing
        x = (features - self.mean) / self.std
        variance, axes = torch.linalg.eigh((x.T @ x).double() / len(x))
        self.variance, self.axes = variance.clamp(min=0).to(x.dtype), axes.to(x.dtype)  # (D,), (D, D): columns
        self.x = x @ self.axes  # (N, D); a rotation leaves ||W|| as it is
        self.labels, self.classes = labels, classes

    def solve(self, decay: float, start: Tensor | None = None) -> Tensor:
        """The optimum for one weight decay: (classes, D + 1) along the principal axes, the bias last and not decayed."""
        scale = torch.cat([(0.1 * self.variance + decay).rsqrt(), self.x.new_ones(1)])
        v = torch.zeros(self.classes, self.x.shape[1] + 1, dtype=self.x.dtype, device=self.x.device) if start is None else start / scale
        v.requires_grad_(True)
        solver = torch.optim.LBFGS(
            [v], max_iter=ITERATIONS, history_size=20, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            solver.zero_grad()
            loss = self.objective(v * scale, decay)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            solver.step(objective)  # type: ignore[no-untyped-call]
        return v.detach() * scale

    def objective(self, w: Tensor, decay: float) -> Tensor:
        """Mean cross entropy + decay / 2 x ||W||^2 of a solution (classes, D + 1)."""
        return F.cross_entropy(F.linear(self.x, w[:, :-1], w[:, -1]), self.labels) + decay / 2 * w[:, :-1].square().sum()

    def probe(self, w: Tensor) -> Linear:
        """A solution as a probe on features as they are."""
        weight = w[:, :-1] @ self.axes.T / self.std
        return Linear(weight, w[:, -1] - weight @ self.mean)
