"""The losses equal those of lightly's package and the definition of solo-learn's, in float64."""

from __future__ import annotations

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.nn import functional as F

from twoviews.losses import info_nce, nt_xent


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
