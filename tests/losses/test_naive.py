"""The losses of the other methods equal loops that follow the papers' formulas, in float64: values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from twoviews.losses import barlow_twins, cosine, cross_entropy, decoupled, info_nce_in_batch, sinkhorn, supcon, vicreg, whitened
from twoviews.models.heads import Prototypes
from twoviews.models.momentum import Queue


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(ours: Tensor, naive: Tensor, *inputs: Tensor) -> None:
    """Check values and gradients."""
    torch.testing.assert_close(ours, naive, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(naive, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


def unit(row: Tensor) -> Tensor:
    return row / row.square().sum().sqrt()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize(("n", "views", "d"), [(2, 2, 3), (5, 2, 4), (4, 3, 6)])
def test_dcl_equals_equation_6(n: int, views: int, d: int, temperature: float) -> None:
    z = normal(views * n, d, seed=n).requires_grad_()
    rows, total = [unit(row) for row in z], z.new_zeros(())
    for i in range(views * n):
        below = sum(torch.exp(rows[i] @ rows[j] / temperature) for j in range(views * n) if j % n != i % n)
        positives = [j for j in range(views * n) if j % n == i % n and j != i]
        total = total + sum(torch.log(below) - rows[i] @ rows[j] / temperature for j in positives) / len(positives)
    same(decoupled(z, temperature, views), total / (views * n), z)


@pytest.mark.parametrize(("n", "views", "classes"), [(6, 2, 2), (5, 3, 3), (4, 2, 4), (4, 2, 1)])
def test_supcon_equals_l_out(n: int, views: int, classes: int) -> None:
    z, labels = normal(views * n, 5, seed=n).requires_grad_(), torch.arange(n) % classes
    rows, of, total = [unit(row) for row in z], labels.repeat(views), z.new_zeros(())
    for i in range(views * n):
        below = sum(torch.exp(rows[i] @ rows[a] / 0.2) for a in range(views * n) if a != i)
        positives = [p for p in range(views * n) if p != i and of[p] == of[i]]
        total = total - sum(torch.log(torch.exp(rows[i] @ rows[p] / 0.2) / below) for p in positives) / len(positives)
    same(supcon(z, labels, 0.2, views), total / (views * n), z)


@pytest.mark.parametrize("start", [0, 3])
def test_info_nce_in_a_batch_equals_algorithm_1_of_moco_v3(start: int) -> None:
    query, keys = normal(4, 5, seed=1).requires_grad_(), normal(8, 5, seed=2).requires_grad_()
    total = query.new_zeros(())
    for i in range(4):
        logits = [torch.exp(unit(query[i]) @ unit(k) / 0.2) for k in keys]
        total = total - torch.log(logits[start + i] / sum(logits)) / 4
    same(info_nce_in_batch(query, keys, 0.2, start), total, query, keys)


def test_cosine_is_the_mean_over_rows() -> None:
    a, b = normal(6, 4, seed=1).requires_grad_(), normal(6, 4, seed=2).requires_grad_()
    same(cosine(a, b), sum(unit(x) @ unit(y) for x, y in zip(a, b, strict=True)) / 6, a, b)


def test_cross_entropy_with_probabilities_is_minus_the_mean_of_p_log_q() -> None:
    logits, target = normal(5, 3).requires_grad_(), torch.softmax(normal(5, 3, seed=1), 1)
    naive = -sum(
        target[i, k] * (logits[i, k] - torch.log(sum(torch.exp(logits[i, j]) for j in range(3)))) for i in range(5) for k in range(3)
    )
    same(cross_entropy(logits, target), naive / 5, logits)


def moments(x: Tensor, j: int, *, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Return mean and variance of one column."""
    mean = sum(x[:, j]) / len(x)
    return mean, sum((v - mean) ** 2 for v in x[:, j]) / (len(x) - unbiased)


@pytest.mark.parametrize("weight", [0.0, 0.005, 1.0])
def test_barlow_twins_equals_equation_1(weight: float) -> None:
    a, b = normal(7, 4, seed=1).requires_grad_(), normal(7, 4, seed=2).requires_grad_()
    total = a.new_zeros(())
    for i in range(4):
        for j in range(4):
            (mean_a, var_a), (mean_b, var_b) = moments(a, i, unbiased=False), moments(b, j, unbiased=False)
            c = sum((x - mean_a) * (y - mean_b) for x, y in zip(a[:, i], b[:, j], strict=True)) / 7
            c = c / torch.sqrt((var_a + 1e-5) * (var_b + 1e-5))
            total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    same(barlow_twins(a, b, weight), total, a, b)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_vicreg_equals_equations_1_to_6_with_half_the_variance(weights: tuple[float, float, float]) -> None:
    a, b = (0.7 * normal(6, 3, seed=1)).requires_grad_(), (0.7 * normal(6, 3, seed=2)).requires_grad_()
    invariance = sum((x - y) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True)) / 18
    variance = covariance = a.new_zeros(())
    for z in (a, b):
        for i in range(3):
            mean, var = moments(z, i, unbiased=True)
            variance = variance + torch.clamp(1 - torch.sqrt(var + 1e-4), min=0) / 3 / 2
            for j in range(3):
                other, _ = moments(z, j, unbiased=True)
                if i != j:
                    covariance = covariance + (sum((x - mean) * (y - other) for x, y in zip(z[:, i], z[:, j], strict=True)) / 5) ** 2 / 3
    ours = vicreg(a, b, invariance=weights[0], variance=weights[1], covariance=weights[2])
    same(ours, weights[0] * invariance + weights[1] * variance + weights[2] * covariance, a, b)


def test_the_gradient_of_vicreg_is_finite_where_a_dimension_is_constant() -> None:
    a = normal(6, 3).float()
    a[:, 1] = 2.0
    a.requires_grad_()
    vicreg(a, a.flip(0), invariance=25.0, variance=25.0, covariance=1.0).backward()
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize(("n", "size"), [(8, 8), (12, 6), (15, 5)])
def test_whitened_rows_have_the_identity_as_their_covariance(n: int, size: int) -> None:
    z = normal(n, 4, seed=n) @ normal(4, 4, seed=1) + 3
    for part in whitened(z, size, 0.0).split(size):
        torch.testing.assert_close(part.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(part.T @ part / (size - 1), torch.eye(4, dtype=torch.float64), atol=1e-10, rtol=0)


def test_whitening_solves_for_the_rows_with_the_cholesky_factor() -> None:
    z = normal(6, 3).requires_grad_()
    x = z - z.mean(0)
    factor = torch.linalg.cholesky(0.9 * (x.T @ x / 5) + 0.1 * torch.eye(3, dtype=torch.float64))
    weight = normal(6, 3, seed=5)
    same((weight * whitened(z, 6, 0.1)).sum(), (weight * (torch.linalg.inv(factor) @ x.T).T).sum(), z)


def test_float32_rows_are_whitened_although_their_variances_differ_by_ten_billion() -> None:
    z = (normal(32, 4) * torch.tensor([1.0, 1.0, 1.0, 1e-5]) @ torch.linalg.qr(normal(4, 4, seed=1)).Q).float()
    rows = whitened(z, 32, 0.0)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.T @ rows / 31, torch.eye(4), atol=1e-4, rtol=0)


def test_a_singular_covariance_gives_no_numbers_unless_the_identity_is_added() -> None:
    z = normal(12, 4)
    z[6:, 1] = 2.0  # a dimension of the second sub-batch is constant
    rows = whitened(z, 6, 0.0)
    assert torch.isfinite(rows[:6]).all()
    assert torch.isnan(rows[6:]).any()
    assert torch.isfinite(whitened(z, 6, 0.01)).all()


def loop_of_sinkhorn(scores: Tensor, temperature: float, iterations: int) -> list[list[float]]:
    """Compute appendix A of Caron et al. 2020 with lists; rows are prototypes, columns images."""
    images, prototypes = scores.shape
    q = [[math.exp(scores[b, k].item() / temperature) for b in range(images)] for k in range(prototypes)]
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        q = [[value / sum(row) / prototypes for value in row] for row in q]
        columns = [sum(row[b] for row in q) for b in range(images)]
        q = [[value / columns[b] / images for b, value in enumerate(row)] for row in q]
    return [[q[k][b] * images for k in range(prototypes)] for b in range(images)]


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_equals_the_papers_loop(iterations: int) -> None:
    scores = torch.cos(normal(6, 4))
    expected = torch.tensor(loop_of_sinkhorn(scores, 0.05, iterations), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, temperature=0.05, iterations=iterations), expected, rtol=1e-10, atol=1e-14)


def test_sinkhorn_uses_all_prototypes_equally() -> None:
    scores = torch.cos(normal(40, 4))
    scores[:, 0] += 2  # every image is nearest to the first
    codes = sinkhorn(scores, temperature=0.5, iterations=50)
    torch.testing.assert_close(codes.sum(0), torch.full((4,), 10.0, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(codes.sum(1), torch.ones(40, dtype=torch.float64))


def test_images_that_do_not_count_change_no_code() -> None:
    scores, counted = torch.cos(normal(9, 4)), torch.arange(9) < 5
    codes = sinkhorn(scores, temperature=0.05, iterations=3, counted=counted)
    torch.testing.assert_close(codes[:5], sinkhorn(scores[:5], temperature=0.05, iterations=3), rtol=1e-10, atol=1e-14)
    assert (codes[5:] == 0).all()


def test_sinkhorn_loses_no_prototype_at_a_small_temperature_in_float32() -> None:
    scores = torch.cos(normal(6, 4)).float()
    scores[:, 2] = -1.0  # far from every image: its exponentials underflow
    codes = sinkhorn(scores, temperature=0.005, iterations=3)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes, sinkhorn(scores.double(), temperature=0.005, iterations=3).float(), rtol=1e-3, atol=1e-5)
    assert codes[:, 2].sum() > 0.5


A, B = normal(16, 6, seed=1).float(), normal(16, 6, seed=2).float()
PROTOTYPES, QUEUE = Prototypes(6, 5, weight_norm=True), Queue(300, 6)
IN_FULL: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dcl": lambda a, b: decoupled(torch.cat([a, b]), 0.1),
    "supcon": lambda a, b: supcon(torch.cat([a, b]), torch.arange(16) % 3, 0.1),
    "info_nce_in_batch": lambda a, b: info_nce_in_batch(a, b, 0.1),
    "cosine": cosine,
    "barlow_twins": lambda a, b: barlow_twins(a, b, 0.005),
    "vicreg": lambda a, b: vicreg(a, b, invariance=25.0, variance=25.0, covariance=1.0),
    "whitened": lambda a, b: whitened(a, 16, 0.0).sum() + b.float().sum(),
    "prototypes": lambda a, b: PROTOTYPES(a).sum() + b.float().sum(),
    "nearest": lambda a, b: (QUEUE.nearest(a) * torch.arange(16)[:, None]).sum() + b.float().sum(),
    "sinkhorn": lambda a, b: (sinkhorn(torch.cos(a.float()), temperature=0.05, iterations=3) * b.float()).sum(),
    "cross_entropy": lambda a, b: cross_entropy(a, torch.softmax(b.float(), 1)),
}


@pytest.mark.parametrize("name", IN_FULL)
def test_losses_are_computed_in_float32_under_autocast(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = IN_FULL[name](A.bfloat16(), B.bfloat16())
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, IN_FULL[name](A.bfloat16().float(), B.bfloat16().float()), rtol=0, atol=0)
