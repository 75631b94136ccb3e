"""Convolutions of narrow maps that are laid side by side, and their gradients, against torch's own and against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twoviews import layers
from twoviews.layers import convolve, hasten

AMX = torch.cpu._is_amx_tile_supported()


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that has it: the arithmetic is the same anywhere."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


def layer(*sizes: int, **how: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    made = nn.Conv2d(*sizes, **{"bias": False, **how}).to(memory_format=torch.channels_last)
    hasten(made)
    return made


def maps(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


CASES: list[tuple[tuple[int, ...], dict[str, Any], tuple[int, ...]]] = [
    ((6, 10, 3), {"padding": 1}, (32, 6, 4, 4)),
    ((6, 10, 3), {"padding": 1}, (6, 6, 8, 8)),  # two together, on the way back alone
    ((6, 10, 5), {"padding": 2}, (4, 6, 4, 4)),
    ((6, 10, 3), {"padding": 1, "stride": 2}, (16, 6, 8, 8)),
    ((6, 10, 3), {"padding": 1, "stride": 2}, (12, 6, 5, 7)),
    ((6, 10, 3), {"padding": 1, "stride": 2}, (4, 6, 16, 16)),
    ((6, 10, 1), {"stride": 2}, (8, 6, 7, 7)),
    ((6, 10, 1), {}, (4, 6, 2, 2)),
    ((6, 10, 5), {"padding": 2, "stride": 3}, (4, 6, 7, 7)),
    ((3, 4, (2, 3)), {"padding": (0, 1), "stride": (1, 2)}, (4, 3, 9, 6)),  # type: ignore[list-item]
    ((16, 8, 3), {"padding": 1}, (6, 16, 1, 1)),
]


@pytest.mark.parametrize(("sizes", "how", "shape"), CASES)
def test_values_and_gradients_are_torchs(amx: None, sizes: tuple[int, ...], how: dict[str, Any], shape: tuple[int, ...]) -> None:
    ours, theirs = layer(*sizes, **how), layer(*sizes, **how)
    x, other = maps(*shape), maps(*shape)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = convolve(ours, x), theirs(other)
    assert "_Convolution" in str(y.grad_fn)
    torch.testing.assert_close(y, expected, rtol=2**-7, atol=1e-2)
    assert torch.equal(y, expected) or not AMX
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    assert x.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(x.grad, other.grad, rtol=2**-7, atol=1e-2)
    assert torch.equal(x.grad, other.grad) or not AMX
    assert ours.weight.grad is not None
    assert theirs.weight.grad is not None
    assert ours.weight.grad.dtype == torch.float32
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=2**-7, atol=2e-2)
    exact = layer(*sizes, **how).double()
    exact.weight.data = ours.weight.data.bfloat16().double()
    exact(x.detach().double()).backward(grad.double())
    assert exact.weight.grad is not None
    torch.testing.assert_close(ours.weight.grad.double(), exact.weight.grad, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "forward", "backward"),
    [((32, 6, 4, 4), [(16, 5)], [(16, 5), (16, 5)]), ((6, 6, 8, 8), [], [(2, 9), (2, 9)])],
)
def test_as_many_as_divide_the_batch_lie_side_by_side(
    amx: None, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], forward: list[Any], backward: list[Any]
) -> None:
    laid: list[tuple[int, int]] = []
    real = layers._beside
    monkeypatch.setattr(layers, "_beside", lambda x, *how: laid.append(how) or real(x, *how))
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve(layer(6, 10, 3, padding=1), maps(*shape))
    assert laid == forward
    y.float().sum().backward()
    assert laid == forward + backward


def test_what_comes_out_may_be_changed_in_place(amx: None) -> None:
    net, x = layer(6, 10, 3, padding=1), maps(4, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, z = convolve(net, x).relu_(), convolve(net, x).relu()
    assert torch.equal(y, z)
    y.float().sum().backward()


def test_an_input_without_a_gradient_gets_none(amx: None) -> None:
    net, x = layer(6, 10, 3, padding=1), maps(6, 6, 4, 4).detach()
    with torch.autocast("cpu", torch.bfloat16):
        convolve(net, x).sum().backward()
    assert x.grad is None
    assert net.weight.grad is not None


@pytest.mark.parametrize(
    ("how", "shape"),
    [
        ({"padding": 1}, (6, 6, 4, 9)),  # wider than narrow
        ({"padding": 1, "stride": 2}, (6, 6, 4, 17)),
        ({"padding": 1}, (5, 6, 4, 4)),  # none fits beside another
        ({"padding": 2}, (6, 6, 4, 4)),
        ({"padding": 0}, (6, 6, 4, 4)),  # its maps become narrower than its steps
        ({"padding": 1, "groups": 2}, (6, 6, 4, 4)),
        ({"padding": 1, "bias": True}, (6, 6, 4, 4)),
        ({"padding": 2, "dilation": 2}, (6, 6, 4, 4)),
        ({"padding": 1, "padding_mode": "circular"}, (6, 6, 4, 4)),
        ({"padding": "same"}, (6, 6, 4, 4)),
    ],
)
def test_what_it_is_not_for_is_torchs(amx: None, how: dict[str, Any], shape: tuple[int, ...]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert "_Convolution" not in str(convolve(layer(6, 10, 3, **how), maps(*shape)).grad_fn)


def test_float32_frozen_weights_and_processors_without_amx_go_torchs_way_and_so_does_what_nobody_hastened(
    amx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = layer(6, 10, 3, padding=1), maps(6, 6, 4, 4)
    assert torch.equal(convolve(net, x.float()), net(x.float()))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            assert convolve(net, x).grad_fn is None
        frozen = layer(6, 10, 3, padding=1).requires_grad_(False)
        assert "_Convolution" not in str(convolve(frozen, x).grad_fn)
        assert "_Convolution" in str(convolve(net, x).grad_fn)
        assert "_Convolution" not in str(convolve(nn.Conv2d(6, 10, 3, padding=1, bias=False), x).grad_fn)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert "_Convolution" not in str(convolve(net, x).grad_fn)
