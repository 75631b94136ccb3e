"""The linear probe on precomputed features: multinomial logistic regression, solved to its optimum."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews.probes.embed import finite
from twoviews.progress import Progress

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: of equally good ones it is chosen
ITERATIONS = 100  # of L-BFGS at most; from the chosen solution it ends by itself after 10 to 30
CHOOSING = 20  # for all decays at once: within 1e-3 of each optimum, a tenth of a point on `val`
AXES_UP_TO = 6144  # dimensions: above, the axes of raw pixels would take longer than the steps that they save, and then all memory
ROWS_PER_AXIS = 4  # that the principal axes are taken from: they steer the solver and do not move the optimum


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
    """Fit on the training rows with each weight decay, choose by accuracy on `val`, go on to the optimum on both with the chosen one.

    Features are standardised over both. The test set has no part in it: the caller scores the returned probe once.

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
    shapes = [tuple(x.shape) for x in (features, labels, val_features, val_labels)]
    if shapes[0][1:] != shapes[2][1:] or any(x[:1] != y or not y[0] for x, y in (shapes[:2], shapes[2:])):
        raise ValueError("linear: features {} with labels {} and, to choose by, {} with {} do not fit".format(*shapes))
    problem = Problem(torch.cat([features, val_features]), torch.cat([labels, val_labels]), classes)
    with Progress("linear probe", CHOOSING + ITERATIONS, "steps") as bar:
        tried = problem.solve(decays, rows=len(features), iterations=CHOOSING, bar=bar)
        accuracies = [problem.probe(w).accuracy(val_features, val_labels) for w in tried]
        best = accuracies.index(max(accuracies))
        (solved,) = problem.solve([decays[best]], tried[best : best + 1], bar=bar)
    return problem.probe(solved), decays[best]


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
    along the features' principal axes, each scaled by its curvature: on raw pixels four times fewer evaluations (above
    `AXES_UP_TO` dimensions along the features themselves). Several weight decays
    are solved as one problem, which reads the features once for all of them.

    Args:
        features, labels: (N, D) and (N,) int64 in [0, classes).
        classes: rows of the weight.

    Raises:
        ValueError: if shapes do not fit or a feature is not finite.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        if features.ndim != 2 or len(features) != len(labels) or not len(labels):
            raise ValueError(f"linear: expected features (N, D) and labels (N,), got {tuple(features.shape)} and {tuple(labels.shape)}")
        if not finite(features):
            raise ValueError("linear: features hold NaN or infinite values")
        self.mean, std = features.mean(0), features.std(0, correction=0)
        self.std = torch.where(std > 1e-6 * (1 + self.mean.abs()), std, 1.0)  # a constant feature carries nothing
        self.x = (features - self.mean) / self.std
        width = self.x.shape[1]
        self.axes: Tensor | None = None
        self.variance = self.x.new_ones(width)
        if width <= AXES_UP_TO:
            some = self.x[:: max(1, len(self.x) // (ROWS_PER_AXIS * width))]
            variance, self.axes = torch.linalg.eigh(some.T @ some / len(some))  # (D,), (D, D): columns
            self.variance = variance.clamp(min=0)
        self.labels, self.classes = labels, classes

    def solve(
        self,
        decays: Sequence[float],
        start: Tensor | None = None,
        *,
        rows: int | None = None,
        iterations: int = ITERATIONS,
        bar: Progress | None = None,
    ) -> Tensor:
        """The optimum for each weight decay, or what is near it after so many iterations.

        Args:
            decays: J of them, > 0.
            start: (J, classes, D + 1), as returned; None: zeros.
            rows: fits the first so many alone; None: all.
            iterations: at most.
            bar: counts them.

        Returns:
            (J, classes, D + 1) along the principal axes, the bias last and not decayed.
        """
        x, labels = self.x[:rows], self.labels[:rows]
        decay = torch.tensor(decays, dtype=x.dtype, device=x.device)
        # How far to step along each axis: a softmax has a curvature of about 0.1 times the variance.
        scale = torch.cat([(0.1 * self.variance + decay[:, None]).rsqrt(), x.new_ones(len(decay), 1)], 1)[:, None]
        v = x.new_zeros(len(decay), self.classes, x.shape[1] + 1) if start is None else start / scale
        solver = torch.optim.LBFGS(
            [v],
            max_iter=iterations,
            max_eval=2 * iterations,
            history_size=20,
            tolerance_grad=1e-6,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            loss, gradient = self.objective(v * scale, decay, x, labels)
            v.grad = gradient * scale
            if bar is not None:
                bar.add()
            return loss.sum()

        with torch.no_grad():
            solver.step(objective)  # type: ignore[no-untyped-call]
        return v.detach() * scale

    def objective(self, w: Tensor, decay: Tensor, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross entropy + decay / 2 x ||W||^2 of each solution, and its gradient.

        By hand: with the classes' logits as rows the softmax runs along the images, fifteen times faster than along ten classes.

        Args:
            w: (J, classes, D + 1).
            decay: (J,).
            x, labels: (N, D) and (N,) of the rows that count.

        Returns:
            (losses (J,), gradient like w).
        """
        weight, bias = w[..., :-1], w[..., -1:]
        logits = F.linear(x, self._from_axes(weight).flatten(0, 1)).T.contiguous().view(len(w), self.classes, -1) + bias
        logits -= logits.amax(1, keepdim=True)
        of_label = labels.expand(len(w), 1, -1)  # where in `logits` the labels' own are
        own = logits.gather(1, of_label).mean((1, 2))
        share = logits.exp_()
        whole = share.sum(1, keepdim=True)
        loss = whole.log().mean((1, 2)) - own + decay / 2 * weight.square().sum((1, 2))
        share /= whole
        share.scatter_add_(1, of_label, share.new_full((), -1.0).expand(of_label.shape))  # the gradient of the logits, times N
        share /= len(x)
        by_weight = (share.flatten(0, 1) @ x).view(weight.shape)
        by_weight = (by_weight if self.axes is None else by_weight @ self.axes) + decay[:, None, None] * weight
        return loss, torch.cat([by_weight, share.sum(2, keepdim=True)], 2)

    def _from_axes(self, weight: Tensor) -> Tensor:
        """Weights (..., D) along the principal axes as weights of the standardised features."""
        return weight if self.axes is None else weight @ self.axes.T

    def probe(self, w: Tensor) -> Linear:
        """One solution (classes, D + 1) as a probe on features as they are."""
        weight = self._from_axes(w[:, :-1]) / self.std
        return Linear(weight, w[:, -1] - weight @ self.mean)
