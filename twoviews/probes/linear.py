"""The linear probe on precomputed features: multinomial logistic regression, solved to its optimum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews.probes.embed import finite
from twoviews.progress import Progress

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: it is chosen among equally good ones
ITERATIONS, TOLERANCE = 300, 2e-8  # at most, of L-BFGS, and the relative gain of an iteration that ends it: within 1e-5 of the optimum
ROUNDS = 4  # at most, each with the curvature where the one before ended: float32 and a wrong curvature can end one too early
CHOOSING, ROUGH = 20, 2e-5  # the same for each decay while one is chosen: within 1e-3 of its optimum on features of a network
OWN_UP_TO = 2048  # dimensions, in which each class has its own curvature; above, all classes share their mean: less time and memory
SHARED_UP_TO = 6144  # dimensions; above, only the diagonal of the curvature is used
# Rows, times the dimensions, from which a curvature is estimated: many rows, then fewer where they take longer than they save.
# They change the speed alone, not the optimum.
ROWS_PER_AXIS, MANY_UP_TO, FEWER = 4, 512, 1
CACHED = 2**20  # values of the features that are read for the logits and, while a processor's cache holds them, for the gradient


@dataclass(frozen=True)
class Linear:
    """A fitted probe: `weight` (classes, D) and `bias` (classes,) apply to unstandardised features."""

    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Return the class of the largest logit: (N, D) to (N,) int64."""
        weight, bias = (x.to(features.device) for x in (self.weight, self.bias))
        return F.linear(features.to(weight.dtype), weight, bias).argmax(1)

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
    with Progress("linear probe", len(decays) + 1, "rows", scale=len(problem.x)) as bar:
        tried = problem.solve(decays, rows=len(features), iterations=CHOOSING, tolerance=ROUGH, rounds=1, bar=bar)
        accuracies = [problem.probe(w).accuracy(val_features, val_labels) for w in tried]
        best = accuracies.index(max(accuracies))
        (solved,) = problem.solve([decays[best]], tried[best], bar=bar)
    return problem.probe(solved), decays[best]


class Problem:
    """Multinomial logistic regression on standardised features: mean cross entropy + decay / 2 x ||W||^2.

    The problem is convex: it has one optimum and needs no learning rate, batch size or number of epochs. L-BFGS (Liu &
    Nocedal 1989) solves it in coordinates in which the curvature of each class is about 1 (see `_factors`). Weak decays start
    at the solution of stronger ones. A constant feature gets the weight 0.

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
        self.std = torch.where(std > 1e-6 * (1 + self.mean.abs()), std, math.inf)  # a constant feature becomes 0, as does its weight
        self.x = features.new_ones(len(features), features.shape[1] + 1)  # the last column is for the bias
        torch.sub(features, self.mean, out=self.x[:, :-1])
        self.x[:, :-1] /= self.std
        self.labels, self.classes = labels, classes

    def solve(
        self,
        decays: Sequence[float],
        start: Tensor | None = None,
        *,
        rows: int | None = None,
        iterations: int = ITERATIONS,
        tolerance: float = TOLERANCE,
        rounds: int = ROUNDS,
        bar: Progress | None = None,
    ) -> Tensor:
        """Return the optimum for each weight decay, or the solution after `iterations`. Each starts at the one before it.

        Args:
            decays: J weight decays, > 0.
            start: (classes, D + 1), for the first decay; None: zeros, and then roughly the solutions of stronger `DECAYS`.
            rows: number of leading rows to fit; None: all.
            iterations: at most, for each round.
            tolerance: the gain of an iteration, relative to the objective, that ends a round; ten times that ends the rounds.
            rounds: at most, for each decay.
            bar: counts solutions.

        Returns:
            (J, classes, D + 1) for standardised features; the bias is last and not decayed.
        """
        x, labels = self.x[:rows], self.labels[:rows]
        w = x.new_zeros(self.classes, x.shape[1]) if start is None else start
        for decay in [one for one in DECAYS if start is None and one > decays[0]]:
            w = self._descend(w, decay, x, labels, CHOOSING, ROUGH)
        solved = []
        for decay in decays:
            loss = math.inf
            for _ in range(rounds):
                lower = self._descend(w, decay, x, labels, iterations, tolerance)
                before, loss = loss, self.objective(lower, decay, x, labels)[0].item()
                if loss < before:
                    w = lower
                if before - loss < 10 * tolerance * loss:
                    break
            solved.append(w)
            if bar is not None:
                bar.add()
        return torch.stack(solved)

    @torch.no_grad()
    def _descend(self, start: Tensor, decay: float, x: Tensor, labels: Tensor, iterations: int, tolerance: float) -> Tensor:
        """Return what L-BFGS reaches from `start` (classes, D + 1): the solution is `start` + a change in other coordinates."""
        start = start - start.mean(0)
        factors = self._factors(start, decay, x)
        v = torch.zeros_like(start)

        def solution() -> Tensor:
            change = _apply_inverse(factors, v, transposed=True)
            # important: the loss depends on differences between classes alone, so the best weights have a mean of 0 over classes.
            # Without this line weak decays take ten times as many iterations: along that mean only the decay has a slope.
            return start + change - change.mean(0)

        def objective() -> Tensor:
            loss, gradient = self.objective(solution(), decay, x, labels)
            v.grad = _apply_inverse(factors, gradient - gradient.mean(0), transposed=False)
            return loss

        solver = torch.optim.LBFGS(
            [v],
            max_iter=iterations,
            max_eval=2 * iterations,
            history_size=50,
            tolerance_grad=0.0,
            tolerance_change=tolerance * self.objective(start, decay, x, labels)[0].item(),
            line_search_fn="strong_wolfe",
        )
        solver.step(objective)  # type: ignore[no-untyped-call]
        return solution()

    def objective(self, w: Tensor, decay: float, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean cross entropy + decay / 2 x ||W||^2, and its gradient.

        Written by hand, with logits (classes, N): a softmax over ten columns is fifteen times slower. The loss is summed in
        float64, or float32 would round away the last gains.

        Args:
            w: (classes, D + 1).
            decay: > 0.
            x, labels: (N, D + 1) and (N,) of the rows to fit.

        Returns:
            (loss, float64; gradient like w).
        """
        loss = x.new_zeros((), dtype=torch.float64)
        gradient = torch.zeros_like(w)
        size = max(1, CACHED // x.shape[1])
        for some, own in zip(torch.split(x, size), torch.split(labels, size), strict=True):
            logits = (some @ w.T).T.contiguous()
            logits -= logits.amax(0)
            at = own[None]
            own_logit, share = logits.gather(0, at), logits.exp_()
            own_share = share.gather(0, at)
            share.scatter_(0, at, 0.0)
            others = share.sum(0, keepdim=True)  # apart from the label's own: 1 - p of float32 is too coarse where p is almost 1
            loss += ((others.double() + own_share).log() - own_logit).sum()
            total = others + own_share
            share /= total
            share.scatter_(0, at, -others / total)  # now the gradient of the logits, times N
            gradient.addmm_(share, some)
        gradient /= len(x)
        gradient[:, :-1] += decay * w[:, :-1]
        loss = loss / len(x) + decay / 2 * w[:, :-1].double().square().sum()
        return loss, gradient

    def _factors(self, w: Tensor, decay: float, x: Tensor) -> Tensor:
        """Return Cholesky factors of each class's curvature at w, which is the mean of p (1 - p) x x^T over rows, plus the decay.

        Its diagonal is exact. The rest is estimated from some rows (see `_second_moments`).

        Returns:
            (classes, D + 1, D + 1) or, shared by all classes, (1, D + 1, D + 1); roots of the diagonal (classes, D + 1) if D is large.
        """
        share = torch.softmax((x @ w.T).T.contiguous(), 0)
        weights = share * (1 - share)  # (classes, N)
        dims = x.shape[1] - 1
        if OWN_UP_TO < dims <= SHARED_UP_TO:
            weights = weights.mean(0, keepdim=True)
        chunks = list(zip(torch.split(weights, 4096, 1), torch.split(x, 4096), strict=True))
        diagonals = torch.stack([part @ some.square() for part, some in chunks]).sum(0) / len(x)
        if dims > SHARED_UP_TO:
            return (diagonals + decay).sqrt()
        leverages = torch.cat([(diagonals + decay).reciprocal() @ some.square().T for _, some in chunks], 1)  # (classes, N)
        blocks = torch.stack([_second_moments(x, *one) for one in zip(weights, diagonals, leverages, strict=True)])
        added = torch.finfo(x.dtype).eps * diagonals.sum(1)[:, None]  # what float32 rounds may be as large as a weak decay
        factors: Tensor
        while True:
            blocks.diagonal(dim1=1, dim2=2).copy_(diagonals + decay + added)
            factors, failed = torch.linalg.cholesky_ex(blocks)
            if not failed.any():
                return factors
            added *= 10

    def probe(self, w: Tensor) -> Linear:
        """Return a solution (classes, D + 1) as a probe on unstandardised features."""
        weight = w[:, :-1] / self.std
        return Linear(weight, w[:, -1] - weight @ self.mean)


def curvature_flops(rows: int, dims: int, classes: int) -> float:
    """Return the floating-point operations of `Problem._factors`, without its pass over all rows."""
    if dims > SHARED_UP_TO:
        return 0.0
    return (classes if dims <= OWN_UP_TO else 1) * (2.0 * _drawn(rows, dims) * dims**2 + dims**3 / 3)


def _drawn(rows: int, dims: int) -> int:
    """Return from how many rows a curvature is estimated."""
    return min(rows, (ROWS_PER_AXIS if dims <= MANY_UP_TO else FEWER) * dims)


def _second_moments(x: Tensor, weights: Tensor, diagonal: Tensor, leverages: Tensor) -> Tensor:
    """Return an estimate (D, D) of the mean of weight x x^T over rows, with no more on the diagonal than is there in truth.

    Rows are drawn in proportion to weight x leverage, their share of the diagonal, at even steps and without random numbers.
    So rows in which a rare feature is not 0 are preferred: without them its products with others are unknown, and L-BFGS
    ends too early.

    Args:
        x: (N, D).
        weights: (N,), >= 0.
        diagonal: (D,), the exact one.
        leverages: (N,), > 0: x^T (diagonal + decay)^-1 x of each row, which is its leverage for features without correlation.
    """
    drawn = _drawn(*x.shape)
    if drawn == len(x):
        moments = (x * weights[:, None]).T @ x / len(x)
    else:
        sums = (weights * leverages).double().cumsum(0)
        places = (torch.arange(drawn, dtype=sums.dtype, device=x.device) + 0.5) / drawn * sums[-1]
        at = torch.searchsorted(sums, places).clamp(max=len(x) - 1)
        some = x[at]
        moments = (some / leverages[at, None]).T @ some * (sums[-1].item() / drawn / len(x))
    # A feature whose few rows were drawn too often is scaled down. What one lacks is added to its diagonal by the caller.
    too_much = (diagonal / moments.diagonal().clamp(min=1e-30)).clamp(max=1).sqrt()
    return too_much[:, None] * moments * too_much


def _apply_inverse(factors: Tensor, rows: Tensor, *, transposed: bool) -> Tensor:
    """Return L^-1 or L^-T times each class's row (classes, D), for factors L as `Problem._factors` returns them."""
    if factors.ndim == 2:
        return rows / factors
    columns = rows.view(len(factors), -1, rows.shape[1]).mT
    solved: Tensor = torch.linalg.solve_triangular(factors.mT if transposed else factors, columns, upper=transposed)
    return solved.mT.reshape(rows.shape)
