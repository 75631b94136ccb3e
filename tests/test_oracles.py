"""The losses equal those of lightly's package and the definition of solo-learn's, in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, DCLLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss
from torch import Tensor
from torch.nn import functional as F

from twoviews.losses import (
    barlow_twins,
    cosine,
    cross_entropy,
    decoupled,
    info_nce,
    info_nce_in_batch,
    nt_xent,
    sinkhorn,
    supcon,
    vicreg,
    whitened,
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_value_and_gradient(ours: Tensor, theirs: Tensor, z: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, z)[0], torch.autograd.grad(theirs, z)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (8, 16), (64, 128)])
def test_o2_nt_xent_and_its_gradient_equal_lightlys(n: int, d: int, temperature: float) -> None:
    loss = NTXentLoss(temperature=temperature)
    z = normal(2 * n, d, seed=n).requires_grad_()
    same_value_and_gradient(nt_xent(z, temperature), loss(*z.chunk(2)), z)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_o2_info_nce_and_its_gradient_equal_lightlys_with_a_memory_bank(temperature: float) -> None:
    loss = NTXentLoss(temperature=temperature, memory_bank_size=(32, 16))
    queue, key = F.normalize(normal(32, 16, seed=1), dim=1), F.normalize(normal(8, 16, seed=2), dim=1)
    loss.memory_bank.bank = queue.clone()
    query = normal(8, 16, seed=3).requires_grad_()
    same_value_and_gradient(info_nce(query, key, queue, temperature)[0], loss(query, key), query)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_o2_nt_xent_and_its_gradient_equal_solo_learns_definition(temperature: float) -> None:
    """There, rows name their image, and the loss is -log of what a row's positives have of the sum over all other rows."""
    z = normal(24, 16, seed=4).requires_grad_()
    image = torch.arange(12).repeat(2)
    unit = z / z.norm(dim=1, keepdim=True)
    similar = ((unit @ unit.T) / temperature).exp() * (1 - torch.eye(24, dtype=torch.float64))
    share = (similar * (image[:, None] == image)).sum(1) / similar.sum(1)
    same_value_and_gradient(nt_xent(z, temperature), -share.log().mean(), z)


def test_o2_barlow_twins_equals_lightlys() -> None:
    a, b = normal(16, 8, seed=1).requires_grad_(), normal(16, 8, seed=2)
    same_value_and_gradient(barlow_twins(a, b, 0.005), BarlowTwinsLoss(lambda_param=0.005)(a, b), a)


def test_o2_vicreg_equals_lightlys() -> None:
    a, b = (0.6 * normal(16, 8, seed=1)).requires_grad_(), normal(16, 8, seed=2)
    same_value_and_gradient(vicreg(a, b, invariance=25.0, variance=25.0, covariance=1.0), VICRegLoss()(a, b), a)


def test_o2_the_loss_of_byol_and_simsiam_equals_lightlys() -> None:
    p, z = normal(16, 8, seed=1).requires_grad_(), normal(16, 8, seed=2)
    same_value_and_gradient(-cosine(p, z), NegativeCosineSimilarity()(p, z), p)


def test_o2_dcl_equals_lightlys() -> None:
    z = normal(24, 8, seed=1).requires_grad_()
    a, b = F.normalize(z, dim=1).chunk(2)
    same_value_and_gradient(decoupled(z, 0.1), DCLLoss(temperature=0.1)(a, b), z)


@pytest.mark.parametrize("queued", [0, 12])
def test_o2_swavs_loss_equals_lightlys(queued: int) -> None:
    """Two full views and one small view; the scores of a queue join the assignments."""
    scores = [torch.cos(normal(6, 5, seed=seed)).requires_grad_() for seed in range(3)]
    queue = [torch.cos(normal(queued, 5, seed=seed)) for seed in (7, 8)] if queued else None
    settings = {"temperature": 0.05, "iterations": 3}
    losses = []
    for i in (0, 1):
        codes = sinkhorn(torch.cat([scores[i], queue[i]]) if queue else scores[i], **settings)[:6]
        losses += [cross_entropy(scores[j] / 0.1, codes) for j in range(3) if j != i]
    ours, theirs = torch.stack(losses).mean(), SwaVLoss()(scores[:2], scores[2:], queue).squeeze()
    torch.testing.assert_close(ours, theirs)
    for x in scores:
        torch.testing.assert_close(*(torch.autograd.grad(value, x, retain_graph=True)[0] for value in (ours, theirs)))


def test_o2_dinos_loss_and_centre_equal_lightlys() -> None:
    """Two teacher views, three student views, and the centre of two steps."""
    theirs = DINOLoss(output_dim=5, warmup_teacher_temp=0.07, teacher_temp=0.07, warmup_teacher_temp_epochs=0, student_temp=0.1).double()
    centre = torch.zeros(5, dtype=torch.float64)
    for step in range(2):
        teacher = [normal(6, 5, seed=10 * step + i) for i in range(2)]
        student = [normal(6, 5, seed=10 * step + 5 + i).requires_grad_() for i in range(3)]
        targets = [F.softmax((t - centre) / 0.07, dim=1) for t in teacher]
        ours = torch.stack([cross_entropy(s / 0.1, targets[n]) for n in range(2) for j, s in enumerate(student) if n != j]).mean()
        centre = centre.lerp(torch.stack(teacher).mean((0, 1)), 0.1)
        loss = theirs(teacher, student)
        for x in student:
            torch.testing.assert_close(ours, loss)
            torch.testing.assert_close(*(torch.autograd.grad(value, x, retain_graph=True)[0] for value in (ours, loss)))


def made(*shape: int, seed: int) -> Tensor:
    """Return numbers that are the same in every version of torch."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * (1.7 + seed) + seed).view(*shape).requires_grad_()


def whitened_distance(a: Tensor) -> Tensor:
    return 2 - 2 * cosine(whitened(a, 8, 0.01), whitened(made(16, 4, seed=3), 8, 0.01))


# What the authors' code gives, which has no package: computed once with it, at the commit that the file names.
STORED = json.loads((Path(__file__).parent / "stored/oracles.json").read_text())
AUTHORS: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
    "supcon": (made(24, 6, seed=1), lambda z: 0.1 / 0.07 * supcon(z, torch.arange(12) % 4, 0.1)),  # the factor of its code
    "wmse": (made(16, 4, seed=2), whitened_distance),
    "moco_v3": (made(8, 6, seed=4), lambda q: 2 * 0.2 * info_nce_in_batch(q, made(8, 6, seed=5).detach(), 0.2)),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_o2_losses_and_gradients_equal_those_of_the_authors_code(name: str) -> None:
    x, loss = AUTHORS[name]
    value = loss(x)
    assert value.item() == pytest.approx(STORED[name]["loss"], rel=1e-10)
    assert torch.autograd.grad(value, x)[0].flatten().tolist() == pytest.approx(STORED[name]["gradient"], rel=1e-7, abs=1e-12)
