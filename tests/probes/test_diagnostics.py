"""Diagnostics: each equals its formula, and tells a collapse from features spread over the sphere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import blobs
from torch.nn import functional as F

from twoviews.probes.diagnostics import alignment, confusion, per_class, rankme, spread, uniformity


@pytest.mark.parametrize("d", [8, 128])
def test_the_spread_of_a_gaussian_is_1_and_of_a_collapse_0(d: int) -> None:
    z = torch.randn(2000, d, generator=torch.Generator().manual_seed(0))
    assert spread(z) == pytest.approx(1, abs=0.03)
    assert spread(z * 1e-3) == pytest.approx(spread(z), rel=1e-4)
    one = torch.randn(1, d, generator=torch.Generator().manual_seed(1))
    assert spread(one.expand(2000, d)) == pytest.approx(0, abs=1e-5)
    assert spread(one * torch.linspace(1, 9, 2000)[:, None]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("r", [1, 3, 10])
def test_rankme_of_data_of_rank_r_is_about_r(r: int) -> None:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((rows, r)))[0] for rows in (500, 32))
    assert rankme(torch.from_numpy(left @ right.T)) == pytest.approx(r, rel=1e-3)


def test_rankme_of_full_rank_is_near_the_dimensions_and_does_not_depend_on_the_scale() -> None:
    z = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert 15.8 < rankme(z) <= 16.01
    assert rankme(z * 1e-4) == pytest.approx(rankme(z), rel=1e-6)


def test_rankme_equals_its_formula() -> None:
    z = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    p = np.array([0.5, 0.25, 0.125, 0.125]) + 1e-7
    assert rankme(z) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-9)


def test_alignment_and_uniformity_equal_their_formulas() -> None:
    a, b = blobs(60, 5, 3, seed=0)[0], blobs(60, 5, 3, seed=1)[0]
    x, y = F.normalize(a), F.normalize(b)
    assert alignment(a, b) == pytest.approx(float(((x - y) ** 2).sum(1).mean()), rel=1e-5)
    assert alignment(a, 3 * a) == pytest.approx(0, abs=1e-6)
    assert alignment(a, -a) == pytest.approx(4)
    pairs = [float(torch.exp(-2 * ((x[i] - x[j]) ** 2).sum())) for i in range(60) for j in range(i)]
    assert uniformity(a) == pytest.approx(float(np.log(np.mean(pairs))), rel=1e-4)
    assert uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-6)
    assert -4 < uniformity(torch.randn(500, 128, generator=torch.Generator().manual_seed(0))) < -3.8


def test_each_class_is_counted_separately() -> None:
    labels, predicted = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([0, 1, 0, 2, 0])
    assert per_class(predicted, labels, 4) == [pytest.approx(2 / 3), None, 0.5, None]
    assert confusion(predicted, labels, 4) == [[2, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
