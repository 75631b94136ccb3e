"""BatchNorm, shortcut and ReLU in one piece of C++, against torch's: values, gradients, running statistics, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet

from twoviews import backbones, batchnorm, build, config, device, layers, native
from twoviews.layers import HASTENED, hasten, norm
from twoviews.momentum import SplitBatchNorm, split_batchnorm

ULP = 2.0**-8  # the largest rounding of a bfloat16, relative


@pytest.fixture(autouse=True)
def _compiler() -> None:
    assert device.compiler(), "these tests need g++ or clang++"
    assert native.library(native.NORM) is not None


def maps(seed: int, shape: tuple[int, ...], *, mean: float = 0.0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


def layer(channels: int, parts: int = 1) -> Any:
    torch.manual_seed(1)
    bn = SplitBatchNorm(channels, parts) if parts > 1 else nn.BatchNorm2d(channels)
    nn.init.uniform_(bn.weight, -1.5, 1.5)
    nn.init.normal_(bn.bias)
    hasten(bn)
    return bn


SHAPES = [(16, 16, 8, 8), (8, 3, 5, 7), (4, 64, 9, 9), (64, 130, 3, 3), (8, 512, 2, 2), (512, 32, 4, 4), (8, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shortcut", [True, False])
def test_values_gradients_and_running_statistics_are_those_of_float64(
    shape: tuple[int, ...], parts: int, relu: bool, shortcut: bool
) -> None:
    x, other, grad = maps(0, shape, mean=3.0), maps(1, shape), maps(2, shape)
    ours, exact = layer(shape[1], parts), layer(shape[1], parts).double()
    inputs = [t.requires_grad_() for t in ([x, other] if shortcut else [x])]
    y = norm(ours, *inputs, relu=relu)
    assert "Piece" in str(y.grad_fn)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(grad)

    doubles = [t.detach().double().requires_grad_() for t in inputs]
    before = exact(doubles[0]) + (doubles[1] if shortcut else 0)
    z = before.relu() if relu else before
    torch.testing.assert_close(y.double(), z, rtol=ULP, atol=1e-4)
    # important: where the sum is next to zero the rounded one may be on its other side: there either gradient is right
    kept = (y.detach() > 0).double() if relu else torch.ones_like(before)
    assert ((kept > 0) == (before > 0))[before.abs() > 1e-4].all() or not relu
    before.backward(grad.double() * kept)
    for mine, theirs in zip(inputs, doubles, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=ULP, atol=2e-5 * float(theirs.grad.abs().max()) + 1e-6)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(ours, name).grad.double(), getattr(exact, name).grad, rtol=1e-5, atol=1e-3)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer.double(), exact.get_buffer(name).double(), rtol=1e-5, atol=1e-6)


def test_a_channel_far_from_zero_keeps_its_spread() -> None:
    """The mean of squares is 62,500 times its variance; in floats, summed over a whole channel, it is lost."""
    x = (500 + 2 * torch.randint(-1, 2, (256, 128, 5, 5)).float()).bfloat16().contiguous(memory_format=torch.channels_last)
    _, mean, variance = batchnorm.forward(x, None, torch.ones(128), torch.zeros(128), parts=1, relu=False, epsilon=1e-5)
    torch.testing.assert_close(mean[0].double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance[0].double(), x.double().var((0, 2, 3), correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_no_more_than_the_order_of_a_sum(threads: int) -> None:
    shape = (512, 48, 6, 6)
    x, grad, numbers = maps(0, shape), maps(1, shape), (torch.rand(48) + 0.5, torch.randn(48))

    def run() -> list[Tensor]:
        y, mean, variance = batchnorm.forward(x, None, *numbers, parts=2, relu=True, epsilon=1e-5)
        by_x, _, *of_weights = batchnorm.gradient(grad, x, y, numbers[0], mean, variance, shortcut=False, epsilon=1e-5)
        return [mean, variance, *of_weights, y, by_x]

    was = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        first = run()
        torch.set_num_threads(threads)
        for a, b in zip(first, run(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6 if a.dtype == torch.float32 else ULP, atol=1e-6)
    finally:
        torch.set_num_threads(was)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    """A diverging run must be seen, not turned into zeros by ReLU."""
    x = maps(0, (4, 32, 4, 4))
    x[1, 5, 2, 2] = value
    y = norm(layer(32), x)
    assert torch.isnan(y[:, 5]).all()
    assert torch.isfinite(y[:, [c for c in range(32) if c != 5]]).all()
    other = maps(1, (4, 32, 4, 4))
    other.view(torch.int16)[0, 5, 0, 0] = -64  # NaN with a sign, which is what inf - inf is on x86: ReLU must not take it for a number
    assert torch.isnan(norm(layer(32), maps(0, (4, 32, 4, 4)), other)[0, 5, 0, 0])
    grad = maps(1, (4, 32, 4, 4))
    grad[0, 3, 0, 0] = float("nan")
    clean = maps(0, (4, 32, 4, 4), mean=1.0).requires_grad_()
    norm(layer(32), clean, relu=False).backward(grad)
    assert clean.grad is not None
    assert torch.isnan(clean.grad[:, 3]).all()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_a_resnet_is_torchvisions(name: str) -> None:
    """The same start from the same seed, the same outputs and gradients: bit for bit in float64."""
    torch.manual_seed(0)
    ours, _ = backbones.build(name, in_channels=3, image_size=96)
    torch.manual_seed(0)
    theirs = getattr(resnet, name)(weights=None)
    theirs.fc = nn.Identity()
    x = torch.randn(4, 3, 70, 70).double()
    nn.init.kaiming_normal_(theirs.conv1.weight, mode="fan_out", nonlinearity="relu")
    theirs.conv1.load_state_dict(ours.conv1.state_dict())  # ours draws its stem once more
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    results = []
    for net in (ours.double(), theirs.double()):
        out = net(x)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in net.parameters()), *net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("name", "parts", "beside", "wide"), [("thin32", 1, 6, 1), ("thin32", 4, 6, 1), ("thin16", 1, 15, 2), ("resnet50", 1, 28, 14)]
)
def test_a_step_in_bfloat16_is_as_near_to_float32_as_torchs_own(
    name: str, parts: int, beside: int, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net, _ = backbones.build(name, in_channels=3, image_size=32)
    split_batchnorm(net, parts)
    net = net.to(memory_format=torch.channels_last)
    x = F.avg_pool2d(torch.randn(16, 3, 34, 34), 3, 1).contiguous(memory_format=torch.channels_last) * 3

    def gradient(bf16: bool, hastened: bool = False) -> Tensor:
        twin = copy.deepcopy(net)
        if hastened:
            hasten(twin)
        twin = copy.deepcopy(twin)  # as momentum encoders and fine-tuning are made
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            twin(x).float().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    taken: list[Any] = []
    real = layers._gradients
    monkeypatch.setattr(layers, "_gradients", lambda *given, **how: taken.append(given[3].together) or real(*given, **how))
    exact, torchs, fused = gradient(False), gradient(True), gradient(True, hastened=True)
    assert taken.count(16) == beside  # every convolution to maps of 8 x 8 and below
    assert taken.count(1) == wide  # those to wider ones, if BatchNorm and ReLU are before them
    assert not torch.equal(fused, torchs)  # it was another way
    assert (fused - exact).norm() < 1.1 * (torchs - exact).norm()


@pytest.mark.parametrize("how", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_a_batchnorm_of_another_kind_is_torchs(how: dict[str, Any]) -> None:
    ours, theirs = nn.BatchNorm2d(16, **how), nn.BatchNorm2d(16, **how)
    hasten(ours)
    x = maps(0, (8, 16, 4, 4))
    assert torch.equal(norm(ours, x), theirs(x).relu())


def test_what_is_not_for_it_goes_torchs_way() -> None:
    """Another dtype, layout or mode: the same numbers as torch's operations, bit for bit."""
    x, other = maps(0, (8, 16, 4, 4)), maps(1, (8, 16, 4, 4))
    wide = layer(16)
    for maps_given in ((x.float(), other.float()), (x.contiguous(), other.contiguous())):
        torch.testing.assert_close(norm(layer(16), *maps_given), F.relu(layer(16)(maps_given[0]) + maps_given[1]), rtol=0, atol=0)
    torch.testing.assert_close(norm(wide.eval(), x, other), F.relu(layer(16).eval()(x) + other), rtol=0, atol=0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(layer(16), x[:1, :, :1, :1].contiguous(memory_format=torch.channels_last))
    with pytest.raises(ValueError, match="does not divide"):
        norm(layer(16, 3), x)


@pytest.mark.parametrize("words", ["", "precision=fp32", "compile=false"])
def test_a_run_is_hastened_where_it_may_compile_and_has_bfloat16(words: str) -> None:
    """The momentum encoder too."""
    chosen = {"recipe": "moco_thin", "dataset": "fashion_mini", "device": "cpu", "threads": "1", "compile": "auto", "precision": "bf16"}
    chosen |= dict(word.split("=") for word in words.split())
    method = build.build(config.load("pretrain", [f"{key}={value}" for key, value in chosen.items()])).method
    norms = [layer for layer in method.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 15
    assert {getattr(layer, HASTENED, False) for layer in norms} == {not words}


def _good() -> dict[str, Any]:
    return {"x": maps(0, (8, 16, 4, 4)), "shortcut": maps(1, (8, 16, 4, 4)), "weight": torch.ones(16), "bias": torch.zeros(16), "parts": 2}


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
def test_memory_that_is_not_as_it_should_be_is_not_touched(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="BatchNorm: expected bfloat16 maps"):
        batchnorm.forward(**{"relu": True, "epsilon": 1e-5, **_good(), **change})


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
def test_nor_is_it_on_the_way_back(change: dict[str, Any]) -> None:
    good = _good()
    y, mean, variance = batchnorm.forward(**{**good, "parts": 1}, relu=True, epsilon=1e-5)
    of = {"grad": maps(2, (8, 16, 4, 4)), "x": good["x"], "y": y, "weight": good["weight"], "mean": mean, "variance": variance}
    with pytest.raises(ValueError, match="BatchNorm: "):
        batchnorm.gradient(**{**of, **change}, shortcut=True, epsilon=1e-5)


@pytest.mark.parametrize("change", [{"x": maps(0, (8, 16, 4, 4)).float()}, {"bias": torch.zeros(15)}, {"mean": torch.zeros(2, 16)}])
def test_nor_is_it_when_made_again(change: dict[str, Any]) -> None:
    good = {"x": maps(0, (8, 16, 4, 4)), **{name: torch.ones(16) for name in ("weight", "bias")}}
    good |= {name: torch.ones(1, 16) for name in ("mean", "variance")}
    with pytest.raises(ValueError, match="BatchNorm: expected bfloat16 maps"):
        batchnorm.again(**{**good, **change}, epsilon=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_made_again_it_is_the_same_and_its_gradient_may_be_written_over(shape: tuple[int, ...], parts: int) -> None:
    x, grad, numbers = maps(0, shape, mean=3.0), maps(1, shape), (torch.randn(shape[1]), torch.randn(shape[1]))
    y, mean, variance = batchnorm.forward(x, None, *numbers, parts=parts, relu=True, epsilon=1e-5)
    kept = mean.clone(), variance.clone()
    assert torch.equal(batchnorm.again(x, *numbers, mean, variance, epsilon=1e-5), y)
    assert torch.equal(mean, kept[0])
    assert torch.equal(variance, kept[1])
    of = (x, y, numbers[0], mean, variance)
    expected = batchnorm.gradient(grad, *of, shortcut=False, epsilon=1e-5)
    found = batchnorm.gradient(grad, *of, shortcut=False, epsilon=1e-5, in_place=True)
    assert found[0] is grad
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None)


def test_made_again_it_is_by_the_statistics_that_are_given() -> None:
    x, mean, variance = maps(0, (8, 16, 4, 4)), torch.full((1, 16), 0.5), torch.full((1, 16), 4.0)
    y = batchnorm.again(x, torch.ones(16), torch.ones(16), mean, variance, epsilon=1e-5)
    torch.testing.assert_close(y.float(), ((x.float() - 0.5) / 2 + 1).relu(), rtol=ULP, atol=1e-4)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda source=native.VIEWS: None)
    with pytest.raises(RuntimeError, match=r"batchnorm\.cpp could not be compiled"):
        batchnorm.forward(**_good(), relu=True, epsilon=1e-5)
