"""BatchNorm fused with a shortcut and ReLU: values, gradients and running statistics against float64, NaN, and refused arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews import device
from twoviews.cpu import batchnorm
from twoviews.cpu.resnet import batchnorm_add_relu
from twoviews.models.batchnorm import SplitBatchNorm

ROUNDING = 2.0**-8  # the largest relative error of one rounding to bfloat16


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if not device.compiler():
        pytest.skip("no C++ compiler on this machine")
    assert batchnorm.library() is not None


def maps(seed: int, shape: tuple[int, ...], *, mean: float = 0.0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


def layer(channels: int, parts: int = 1) -> Any:
    torch.manual_seed(1)
    bn = SplitBatchNorm(channels, parts) if parts > 1 else nn.BatchNorm2d(channels)
    nn.init.uniform_(bn.weight, -1.5, 1.5)
    nn.init.normal_(bn.bias)
    return bn


@pytest.mark.parametrize(
    "shape", [(16, 16, 8, 8), (8, 3, 5, 7), (4, 64, 9, 9), (64, 130, 3, 3), (8, 512, 2, 2), (512, 32, 4, 4), (8, 1, 1, 1)]
)
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shortcut", [True, False])
def test_values_gradients_and_running_statistics_are_those_of_float64(
    shape: tuple[int, ...], parts: int, relu: bool, shortcut: bool
) -> None:
    x, other, grad = maps(0, shape, mean=3.0), maps(1, shape), maps(2, shape)
    ours, exact = layer(shape[1], parts), layer(shape[1], parts).double()
    inputs = [t.requires_grad_() for t in ([x, other] if shortcut else [x])]
    y = batchnorm_add_relu(ours, *inputs, relu=relu)
    assert "FusedBatchNormAddReLU" in str(y.grad_fn)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(grad)

    doubles = [t.detach().double().requires_grad_() for t in inputs]
    before = exact(doubles[0]) + (doubles[1] if shortcut else 0)
    z = before.relu() if relu else before
    torch.testing.assert_close(y.double(), z, rtol=ROUNDING, atol=1e-4)
    # important: a sum next to zero may round to the other side of zero, and either gradient of ReLU is right there
    passed = (y.detach() > 0).double() if relu else torch.ones_like(before)
    assert ((passed > 0) == (before > 0))[before.abs() > 1e-4].all() or not relu
    before.backward(grad.double() * passed)
    for mine, theirs in zip(inputs, doubles, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=ROUNDING, atol=2e-5 * float(theirs.grad.abs().max()) + 1e-6)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(ours, name).grad.double(), getattr(exact, name).grad, rtol=1e-5, atol=1e-3)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer.double(), exact.get_buffer(name).double(), rtol=1e-5, atol=1e-6)


def test_a_channel_far_from_zero_keeps_its_variance() -> None:
    """The mean of squares is 62,500 times the variance: float sums over a whole channel would lose it."""
    x = (500 + 2 * torch.randint(-1, 2, (256, 128, 5, 5)).float()).bfloat16().contiguous(memory_format=torch.channels_last)
    _, mean, variance = batchnorm.forward(x, None, torch.ones(128), torch.zeros(128), parts=1, relu=False, epsilon=1e-5)
    torch.testing.assert_close(mean[0].double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance[0].double(), x.double().var((0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_the_number_of_threads_changes_only_the_order_of_sums() -> None:
    shape = (512, 48, 6, 6)
    x, grad, weight, bias = maps(0, shape), maps(1, shape), torch.rand(48) + 0.5, torch.randn(48)

    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        y, mean, variance = batchnorm.forward(x, None, weight, bias, parts=2, relu=True, epsilon=1e-5)
        grad_x, _, *others = batchnorm.backward(grad, x, y, weight, mean, variance, shortcut=False, epsilon=1e-5)
        return [mean, variance, *others, y, grad_x]

    threads = torch.get_num_threads()
    try:
        first = run(3)
        for other in (1, 2, 5):
            for a, b in zip(first, run(other), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6 if a.dtype == torch.float32 else ROUNDING, atol=1e-6)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_stay_so(value: float) -> None:
    """A diverging run must show: ReLU must not turn NaN into zero."""
    x = maps(0, (4, 32, 4, 4))
    x[1, 5, 2, 2] = value
    y = batchnorm_add_relu(layer(32), x)
    assert torch.isnan(y[:, 5]).all()
    assert torch.isfinite(y[:, [c for c in range(32) if c != 5]]).all()
    other = maps(1, (4, 32, 4, 4))
    other.view(torch.int16)[0, 5, 0, 0] = -64  # NaN with a sign, which inf - inf gives on x86: it is no negative number
    assert torch.isnan(batchnorm_add_relu(layer(32), maps(0, (4, 32, 4, 4)), other)[0, 5, 0, 0])
    grad = maps(1, (4, 32, 4, 4))
    grad[0, 3, 0, 0] = float("nan")
    clean = maps(0, (4, 32, 4, 4), mean=1.0).requires_grad_()
    batchnorm_add_relu(layer(32), clean, relu=False).backward(grad)
    assert clean.grad is not None
    assert torch.isnan(clean.grad[:, 3]).all()


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_a_batchnorm_of_another_kind_is_torchs(options: dict[str, Any]) -> None:
    ours, theirs = nn.BatchNorm2d(16, **options), nn.BatchNorm2d(16, **options)
    x = maps(0, (8, 16, 4, 4))
    assert torch.equal(batchnorm_add_relu(ours, x), theirs(x).relu())


def test_another_dtype_layout_or_mode_is_torchs_bit_for_bit() -> None:
    x, other = maps(0, (8, 16, 4, 4)), maps(1, (8, 16, 4, 4))
    for given in ((x.float(), other.float()), (x.contiguous(), other.contiguous())):
        expected = F.relu(layer(16)(given[0]) + given[1])
        torch.testing.assert_close(batchnorm_add_relu(layer(16), *given), expected, rtol=0, atol=0)
    evaluated = layer(16).eval()
    torch.testing.assert_close(batchnorm_add_relu(evaluated, x, other), F.relu(evaluated(x) + other), rtol=0, atol=0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batchnorm_add_relu(layer(16), x[:1, :, :1, :1].contiguous(memory_format=torch.channels_last))
    with pytest.raises(ValueError, match="does not divide"):
        batchnorm_add_relu(layer(16, 3), x)


def forward_arguments(**changes: Any) -> dict[str, Any]:
    tensors = {"x": maps(0, (8, 16, 4, 4)), "shortcut": maps(1, (8, 16, 4, 4)), "weight": torch.ones(16), "bias": torch.zeros(16)}
    return {**tensors, "parts": 2, "relu": True, "epsilon": 1e-5, **changes}


@pytest.mark.parametrize(
    "change",
    [
        {"x": maps(0, (8, 16, 4, 4)).float()},
        {"x": maps(0, (8, 16, 4, 4)).contiguous()},
        {"x": maps(0, (8, 16, 4, 4))[:, :8]},
        {"shortcut": maps(1, (8, 16, 4, 2))},
        {"shortcut": maps(1, (8, 16, 4, 4)).half()},
        {"weight": torch.ones(15)},
        {"bias": torch.zeros(16).double()},
        {"bias": torch.zeros(32)[::2]},
        {"parts": 3},
        {"parts": 0},
        {"epsilon": 0.0},
        {"x": torch.empty(8, 16, 4, 4, dtype=torch.bfloat16, device="meta").contiguous(memory_format=torch.channels_last)},
    ],
)
def test_forward_refuses_tensors_of_another_form_before_memory_is_touched(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="BatchNorm: expected bfloat16 feature maps"):
        batchnorm.forward(**forward_arguments(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"grad": maps(2, (8, 16, 4, 4)).float()},
        {"y": maps(2, (8, 16, 2, 4))},
        {"weight": torch.ones(8)},
        {"mean": torch.zeros(2, 16)},
        {"variance": torch.zeros(1, 32)[:, ::2]},
    ],
)
def test_backward_refuses_tensors_of_another_form_before_memory_is_touched(change: dict[str, Any]) -> None:
    given = forward_arguments(parts=1)
    y, mean, variance = batchnorm.forward(**given)
    tensors = {"grad": maps(2, (8, 16, 4, 4)), "x": given["x"], "y": y, "weight": given["weight"], "mean": mean, "variance": variance}
    batchnorm.backward(**tensors, shortcut=True, epsilon=1e-5)
    with pytest.raises(ValueError, match="BatchNorm: expected bfloat16 feature maps"):
        batchnorm.backward(**{**tensors, **change}, shortcut=True, epsilon=1e-5)


def test_without_a_compiler_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm, "library", lambda: None)
    with pytest.raises(RuntimeError, match=r"batchnorm\.cpp could not be compiled"):
        batchnorm.forward(**forward_arguments())
