"""Convolutions of narrow maps that are laid side by side, and their gradients, against torch's own and against float64."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twoviews import batchnorm, layers
from twoviews.layers import convolve, hasten, norm, norm_convolve
from twoviews.momentum import SplitBatchNorm

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


def normed(channels: int, parts: int = 1, **how: Any) -> Any:
    torch.manual_seed(1)
    made = SplitBatchNorm(channels, parts) if parts > 1 else nn.BatchNorm2d(channels, **how)
    nn.init.uniform_(made.weight, -1.5, 1.5)
    nn.init.normal_(made.bias)
    hasten(made)
    return made


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("sizes", "how", "shape"), [*CASES, ((6, 10, 3), {"padding": 1}, (4, 6, 12, 12)), ((6, 10, 3), {"padding": (2, 0)}, (4, 6, 20, 20))]
)
def test_what_lies_between_is_not_kept_and_nothing_else_changes(
    amx: None, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], how: dict[str, Any], shape: tuple[int, ...], parts: int
) -> None:
    """Values, gradients and running statistics are those of the two layers, bit for bit."""
    made: list[Any] = []

    def forward(*given: Any, **more: Any) -> Any:
        found = batchnorm_forward(*given, **more)
        made.append(weakref.ref(found[0]))
        return found

    batchnorm_forward = batchnorm.forward
    monkeypatch.setattr(batchnorm, "forward", forward)
    results = []
    for together in (False, True):
        bn, convolution, x = normed(shape[1], parts), layer(*sizes, **how), maps(*shape)
        with torch.autocast("cpu", torch.bfloat16):
            y = norm_convolve(bn, convolution, x) if together else convolve(convolution, norm(bn, x))
        assert ("_NormConvolution" in str(y.grad_fn)) == together
        assert (made[-1]() is None) == together
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(memory_format=torch.channels_last))
        grads = [t.grad for t in (x, bn.weight, bn.bias, convolution.weight)]
        results.append([y.detach(), *grads, *bn.buffers()])
    assert len(made) == 2
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("frozen", ["bn", "x"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    bn, convolution, x = normed(6), layer(6, 10, 3, padding=1), maps(4, 6, 12, 12)
    (bn if frozen == "bn" else x).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        norm_convolve(bn, convolution, x).sum().backward()  # a gradient of one number, spread
    assert convolution.weight.grad is not None
    assert (x.grad is None) == (frozen == "x")
    assert (bn.weight.grad is None) == (frozen == "bn")


@pytest.mark.parametrize(
    ("of_bn", "of_convolution", "why"),
    [
        ({}, {"bias": True}, ""),
        ({}, {"groups": 2}, ""),
        ({}, {"padding": "same"}, ""),
        ({"momentum": None}, {}, ""),
        ({}, {}, "evaluated"),
        ({}, {}, "float32"),
        ({}, {}, "no gradient"),
        ({}, {}, "frozen"),
        ({}, {}, "not hastened"),
    ],
)
def test_what_is_not_for_it_is_kept(of_bn: dict[str, Any], of_convolution: dict[str, Any], why: str) -> None:
    bn, convolution, x = normed(6, **of_bn), layer(6, 10, 3, **{"padding": 1, **of_convolution}), maps(4, 6, 12, 12)
    bn.train(why != "evaluated")
    convolution.requires_grad_(why != "frozen")
    if why == "not hastened":
        delattr(bn, layers.HASTENED)
        delattr(convolution, layers.HASTENED)
    bf16 = why != "float32"
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.set_grad_enabled(why != "no gradient"):
        x = x if bf16 else x.float()
        y, expected = norm_convolve(bn, convolution, x), convolution(norm(bn, x))
    assert "_NormConvolution" not in str(y.grad_fn)
    assert torch.equal(y, expected)
