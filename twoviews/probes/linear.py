"""The linear probe on precomputed features: multinomial logistic regression, solved to its optimum."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews.probes.embed import finite
from twoviews.progress import Progress

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: it is chosen among equally good ones
ITERATIONS = 100  # at most, of L-BFGS; started at the chosen solution it converges after 10 to 30
CHOOSING = 20  # iterations for all decays together: within 1e-3 of each optimum, 0.1 points of accuracy on `val`
AXES_UP_TO = 6144  # dimensions; above, computing principal axes takes longer than the iterations saved, and too much memory
ROWS_PER_AXIS = 4  # rows from which principal axes are computed; they speed up the solver and do not move the optimum


@dataclass(frozen=True)
class Linear:
    """A fitted probe: `weight` (classes, D) and `bias` (classes,) apply to unstandardised features."""

    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Return the class of the largest logit: (N, D) to (N,) int64."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias).argmax(1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of rows, in [0, 1], whose largest logit is their label."""
        return (self.predict(features) == labels).double().mean().item()


def linear(
    features: Tensor, labels: Tensor, val_features: Tensor, val_labels: Tensor, *, classes: int, decays: Sequence[float] = DECAYS
) -> tuple[Linear, float]:
    """Fit the training rows with each weight decay, choose one by accuracy on `val`, then fit both splits with it.

    Features are standardised over both splits. The test set is not used: the caller scores the returned probe once.

    Args:
        features, labels: (N, D) and (N,) of `train`.
        val_features, val_labels: (M, D) and (M,) of `val`.
        classes: of the data set; the rows may lack some.
        decays: candidates, > 0, strongest first.

    Returns:
        (the probe fitted on all N + M rows, the chosen weight decay).

    Raises:
        ValueError: if shapes do not match, a feature is not finite, or there is no candidate.
    """
    if not decays or min(decays) <= 0:
        raise ValueError(f"linear: expected weight decays above 0, got {list(decays)}")
    shapes = [tuple(x.shape) for x in (features, labels, val_features, val_labels)]
    if shapes[0][1:] != shapes[2][1:] or any(x[:1] != y or not y[0] for x, y in (shapes[:2], shapes[2:])):
        raise ValueError("linear: shapes do not match: features {} with labels {}, val features {} with val labels {}".format(*shapes))
    problem = Problem(torch.cat([features, val_features]), torch.cat([labels, val_labels]), classes)
    with Progress("linear probe", CHOOSING + ITERATIONS, "steps") as bar:
        tried = problem.solve(decays, rows=len(features), iterations=CHOOSING, bar=bar)
        accuracies = [problem.probe(w).accuracy(val_features, val_labels) for w in tried]
        best = accuracies.index(max(accuracies))
        (solved,) = problem.solve([decays[best]], tried[best : best + 1], bar=bar)
    return problem.probe(solved), decays[best]


def saga(features: Tensor, labels: Tensor) -> tuple[Linear, int]:
    """Fit scikit-learn's logistic regression without penalty, by SAGA with its own defaults, as dkobak's project does.

    It usually reaches its limit of 100 passes before it converges; the caller prints the number of passes.

    Args:
        features, labels: (N, D) and (N,) with at least two classes.

    Returns:
        (the probe, passes over the data).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=math.inf, solver="saga", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes shows it
        model.fit(features.numpy(), labels.numpy())
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(model.classes_) == 2:  # sklearn has one logit then: of the second class against the first
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    rows = int(labels.max()) + 1
    probe = Linear(torch.zeros(rows, features.shape[1], dtype=features.dtype), torch.full((rows,), -math.inf, dtype=features.dtype))
    present = torch.from_numpy(model.classes_)  # a class without rows keeps a bias of -inf and is never predicted
    probe.weight[present], probe.bias[present] = weight.to(features.dtype), bias.to(features.dtype)
    return probe, int(model.n_iter_.max())


class Problem:
    """Multinomial logistic regression on standardised features: mean cross entropy + decay / 2 x ||W||^2.

    The problem is convex: it has one optimum and needs no learning rate, batch size or number of epochs. L-BFGS (Liu &
    Nocedal 1989) solves it in the coordinates of the features' principal axes, each scaled by its curvature. On raw pixels
    this takes a quarter of the evaluations. Above `AXES_UP_TO` dimensions the features' own axes are used. Several weight
    decays are solved together, so that the features are read once for all of them.

    Args:
        features, labels: (N, D) and (N,) int64 in [0, classes).
        classes: rows of the weight.

    Raises:
        ValueError: if shapes do not match or a feature is not finite.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        if features.ndim != 2 or len(features) != len(labels) or not len(labels):
            raise ValueError(f"linear: expected features (N, D) and labels (N,), got {tuple(features.shape)} and {tuple(labels.shape)}")
        if not finite(features):
            raise ValueError("linear: features hold NaN or infinite values")
        self.mean, std = features.mean(0), features.std(0, correction=0)
        self.std = torch.where(std > 1e-6 * (1 + self.mean.abs()), std, 1.0)  # a constant feature has no scale
        self.x = (features - self.mean) / self.std
        dims = self.x.shape[1]
        self.axes: Tensor | None = None
        self.variance = self.x.new_ones(dims)
        if dims <= AXES_UP_TO:
            some = self.x[:: max(1, len(self.x) // (ROWS_PER_AXIS * dims))]
            variance, self.axes = torch.linalg.eigh(some.T @ some / len(some))  # (D,), (D, D): axes are columns
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
        """Return the optimum for each weight decay, or the solution after `iterations`.

        Args:
            decays: J weight decays, > 0.
            start: (J, classes, D + 1), as returned; None: zeros.
            rows: number of leading rows to fit; None: all.
            iterations: at most.
            bar: counts evaluations of the objective.

        Returns:
            (J, classes, D + 1) in the coordinates of the principal axes; the bias is last and not decayed.
        """
        x, labels = self.x[:rows], self.labels[:rows]
        decay = torch.tensor(decays, dtype=x.dtype, device=x.device)
        # Scale of each axis: the curvature of the softmax is about 0.1 times the variance.
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
        """Return mean cross entropy + decay / 2 x ||W||^2 of each solution, and its gradient.

        Written by hand, with logits (classes, N): a softmax over ten columns is fifteen times slower.

        Args:
            w: (J, classes, D + 1).
            decay: (J,).
            x, labels: (N, D) and (N,) of the rows to fit.

        Returns:
            (losses (J,), gradient like w).
        """
        weight, bias = w[..., :-1], w[..., -1:]
        logits = F.linear(x, self._from_axes(weight).flatten(0, 1)).T.contiguous().view(len(w), self.classes, -1) + bias
        logits -= logits.amax(1, keepdim=True)
        index = labels.expand(len(w), 1, -1)  # of each label's logit
        own = logits.gather(1, index).mean((1, 2))
        share = logits.exp_()
        total = share.sum(1, keepdim=True)
        loss = total.log().mean((1, 2)) - own + decay / 2 * weight.square().sum((1, 2))
        share /= total
        share.scatter_add_(1, index, share.new_full((), -1.0).expand(index.shape))  # now the gradient of the logits, times N
        share /= len(x)
        grad_weight = (share.flatten(0, 1) @ x).view(weight.shape)
        grad_weight = (grad_weight if self.axes is None else grad_weight @ self.axes) + decay[:, None, None] * weight
        return loss, torch.cat([grad_weight, share.sum(2, keepdim=True)], 2)

    def _from_axes(self, weight: Tensor) -> Tensor:
        """Return weights (..., D) of the principal axes as weights of the standardised features."""
        return weight if self.axes is None else weight @ self.axes.T

    def probe(self, w: Tensor) -> Linear:
        """Return a solution (classes, D + 1) as a probe on unstandardised features."""
        weight = self._from_axes(w[:, :-1]) / self.std
        return Linear(weight, w[:, -1] - weight @ self.mean)
