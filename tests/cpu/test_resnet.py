"""The optimised ResNet blocks: packed convolutions against float64, and whole networks against torchvision's and float32."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import contract
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from twoviews import device
from twoviews.cpu import batchnorm, resnet
from twoviews.cpu.resnet import FAST, convolve, use_fast_path
from twoviews.models.batchnorm import split_batchnorm
from twoviews.models.resnet import build_backbone

AMX = torch.cpu._is_amx_tile_supported()  # of this processor, whatever the fixture `amx` says
# Whether oneDNN computes bfloat16 convolutions, whose sums are float32.
ONEDNN = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
ROUNDING = 2.0**-8  # the largest relative error of one rounding to bfloat16
Net = TypeVar("Net", bound=nn.Module)


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack convolutions on any processor, as on one with AMX: the arithmetic is the same."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


def layer(*sizes: Any, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(*sizes, **{"bias": False, **options}).to(memory_format=torch.channels_last)


def maps(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


# --- packed convolutions --------------------------------------------------------------------------------------------


CASES: list[tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ((6, 10, 3), {"padding": 1}, (32, 6, 4, 4)),
    ((6, 10, 3), {"padding": 1}, (6, 6, 8, 8)),  # two maps packed, in the backward pass only
    ((6, 10, 5), {"padding": 2}, (4, 6, 4, 4)),
    ((6, 10, 3), {"padding": 1, "stride": 2}, (16, 6, 8, 8)),
    ((6, 10, 3), {"padding": 1, "stride": 2}, (12, 6, 5, 7)),
    ((6, 10, 3), {"padding": 1, "stride": 2}, (4, 6, 16, 16)),
    ((6, 10, 1), {"stride": 2}, (8, 6, 7, 7)),
    ((6, 10, 1), {}, (4, 6, 2, 2)),
    ((6, 10, 5), {"padding": 2, "stride": 3}, (4, 6, 7, 7)),
    ((3, 4, (2, 3)), {"padding": (0, 1), "stride": (1, 2)}, (4, 3, 9, 6)),
    ((16, 8, 3), {"padding": 1}, (6, 16, 1, 1)),
]


def float64(convolution: nn.Conv2d, x: Tensor, grad: Tensor, *, absolute: bool = False) -> list[Tensor]:
    """Return y and the gradients of x and of the weights in float64, from the numbers that bfloat16 holds.

    With `absolute`, all numbers are made positive: each sum then bounds the rounding errors of the sum with signs.
    """
    exact = copy.deepcopy(convolution).double()
    exact.weight.data = convolution.weight.data.bfloat16().double()
    x, grad = x.detach().double(), grad.double()
    if absolute:
        exact.weight.data, x, grad = exact.weight.data.abs(), x.abs(), grad.abs()
    y = exact(x.requires_grad_())
    return [y.detach(), *torch.autograd.grad(y, (x, exact.weight), grad)]


@pytest.mark.parametrize(("sizes", "options", "shape"), CASES)
def test_values_and_gradients_of_packed_maps_are_those_of_float64(
    amx: None, sizes: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    ours, theirs = layer(*sizes, **options), layer(*sizes, **options)
    x, other = maps(*shape), maps(*shape)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = convolve(ours, x), theirs(other)
    assert "PackedConvolution" in str(y.grad_fn)
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    assert x.grad is not None
    assert ours.weight.grad is not None
    assert (y.dtype, x.grad.dtype, ours.weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    results = [y.detach(), x.grad, ours.weight.grad]
    exact, sizes_of_terms = float64(ours, x, grad), float64(ours, x, grad, absolute=True)
    for result, value, size in zip(results, exact, sizes_of_terms, strict=True):
        # Without oneDNN's bfloat16 (processors with AVX2 only) torch rounds every image's share of a sum.
        assert ((result - value).abs() <= 2 * ROUNDING * size + 1e-30).all()
        if ONEDNN:
            torch.testing.assert_close(result.double(), value, rtol=ROUNDING, atol=1e-5)
    if AMX:  # only there are sums made in the same order in a wide map and in narrow ones
        assert torch.equal(y, expected)
        assert other.grad is not None
        assert torch.equal(x.grad, other.grad)


@pytest.mark.parametrize(
    ("shape", "forward", "backward"), [((32, 6, 4, 4), [(16, 5)], [(16, 5), (16, 5)]), ((6, 6, 8, 8), [], [(2, 9), (2, 9)])]
)
def test_as_many_maps_as_divide_the_batch_and_16_are_packed(
    amx: None, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], forward: list[Any], backward: list[Any]
) -> None:
    calls: list[tuple[int, int]] = []
    pack = resnet._pack
    monkeypatch.setattr(resnet, "_pack", lambda x, *given: calls.append(given) or pack(x, *given))
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve(layer(6, 10, 3, padding=1), maps(*shape))
    assert calls == forward
    y.float().sum().backward()
    assert calls == forward + backward


def test_the_output_may_be_changed_in_place(amx: None) -> None:
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
    ("options", "shape"),
    [
        ({"padding": 1}, (6, 6, 4, 9)),  # a map too wide
        ({"padding": 1, "stride": 2}, (6, 6, 4, 17)),
        ({"padding": 1}, (5, 6, 4, 4)),  # no number of maps divides both 5 and 16
        ({"padding": 2}, (6, 6, 4, 4)),  # maps become wider
        ({"padding": 0}, (6, 6, 4, 4)),  # maps become narrower
        ({"padding": 1, "groups": 2}, (6, 6, 4, 4)),
        ({"padding": 1, "bias": True}, (6, 6, 4, 4)),
        ({"padding": 2, "dilation": 2}, (6, 6, 4, 4)),
        ({"padding": 1, "padding_mode": "circular"}, (6, 6, 4, 4)),
        ({"padding": "same"}, (6, 6, 4, 4)),
    ],
)
def test_a_convolution_that_cannot_be_packed_is_torchs(amx: None, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    net, x = layer(6, 10, 3, **options), maps(*shape)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = convolve(net, x), net(x)
    assert "PackedConvolution" not in str(y.grad_fn)
    assert torch.equal(y, expected)


def test_float32_frozen_weights_no_gradient_and_processors_without_amx_take_torchs_convolution(
    amx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = layer(6, 10, 3, padding=1), maps(6, 6, 4, 4)
    assert torch.equal(convolve(net, x.float()), net(x.float()))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            assert torch.equal(convolve(net, x), net(x))
        frozen = layer(6, 10, 3, padding=1).requires_grad_(False)
        assert "PackedConvolution" not in str(convolve(frozen, x).grad_fn)
        assert "PackedConvolution" in str(convolve(net, x).grad_fn)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert "PackedConvolution" not in str(convolve(net, x).grad_fn)


# --- whole networks -------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler() -> None:
    if not device.compiler():
        pytest.skip("no C++ compiler on this machine")
    assert batchnorm.library() is not None


def short(block: type[BasicBlock | Bottleneck]) -> nn.Module:
    """Return a ResNet of one block per stage for images of 16 to 32 pixels."""
    net = ResNet(block, [1, 1, 1, 1], num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


def network(name: str, splits: int) -> nn.Module:
    torch.manual_seed(0)
    blocks = {"basic": BasicBlock, "bottleneck": Bottleneck}
    net = short(blocks[name]) if name in blocks else build_backbone(name, in_channels=3, image_size=32)[0]
    split_batchnorm(net, splits)
    return net.to(memory_format=torch.channels_last)


def fast(net: Net) -> Net:
    """Return a copy with optimised blocks, copied once more as momentum encoders and fine-tuning do."""
    twin = copy.deepcopy(net)
    use_fast_path(twin)
    return copy.deepcopy(twin)


def images(n: int, size: int) -> Tensor:
    x = F.avg_pool2d(torch.randn(n, 3, size + 2, size + 2, generator=torch.Generator().manual_seed(1)), 3, 1)
    return 3 * x.contiguous(memory_format=torch.channels_last)


def step(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output, the gradients and the buffers after one forward and backward pass in train mode."""
    y = net(x)
    y.float().square().sum().backward()
    return [y.detach(), *(p.grad for p in net.parameters() if p.grad is not None), *net.buffers()]


@pytest.mark.parametrize(("name", "splits"), [("resnet18", 1), ("resnet50", 1), ("thin32", 1), ("thin32", 4)])
def test_keys_stay_and_float32_and_evaluation_are_torchs_bit_for_bit(amx: None, name: str, splits: int) -> None:
    theirs = network(name, splits)
    ours = fast(theirs)
    classes = [type(part) for part in ours.modules()]
    assert not set(FAST) & set(classes)
    assert sum(part in FAST.values() for part in classes) == sum(type(part) in FAST for part in theirs.modules())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = images(4, 16)
    for a, b in zip(step(ours, x), step(theirs, x), strict=True):
        assert torch.equal(a, b)
    ours.eval(), theirs.eval()
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = ours(x)
            assert y.dtype == dtype
            assert torch.equal(y, theirs(x))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_a_resnet_is_torchvisions(name: str) -> None:
    """The same weights from the same seed, the same outputs, gradients and running statistics: bit for bit in float32."""
    torch.manual_seed(0)
    ours, _ = build_backbone(name, in_channels=3, image_size=96)
    use_fast_path(ours)
    torch.manual_seed(0)
    theirs = getattr(models, name)(weights=None)
    theirs.fc = nn.Identity()
    theirs.conv1.load_state_dict(ours.conv1.state_dict())  # ours draws its stem once more
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    x = torch.randn(2, 3, 66, 66)
    assert all(torch.equal(a, b) for a, b in zip(step(ours, x), step(theirs, x), strict=True))


@pytest.mark.parametrize(
    ("name", "splits", "size", "packed"),
    [("thin32", 1, 32, 6), ("thin32", 4, 32, 6), ("thin16", 1, 32, 15), ("basic", 1, 16, 9), ("bottleneck", 1, 16, 11)],
)
def test_a_step_in_bfloat16_is_as_near_to_float32_as_torchs(
    amx: None, compiler: None, name: str, splits: int, size: int, packed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = network(name, splits), images(16, size)
    exact = step(copy.deepcopy(net), x)
    maps_packed: list[int] = []
    fused: list[int] = []
    geometry, forward = resnet._geometry, batchnorm.forward
    monkeypatch.setattr(resnet, "_geometry", lambda *given: record(maps_packed, geometry(*given)))
    monkeypatch.setattr(batchnorm, "forward", lambda *given, **options: fused.append(1) or forward(*given, **options))
    with torch.autocast("cpu", torch.bfloat16):
        torchs, ours = step(copy.deepcopy(net), x), step(fast(net), x)
    assert maps_packed == [16] * packed, "every convolution to maps of 8 x 8 and smaller"
    assert len(fused) == sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules())
    gradients = slice(1, 1 + len(list(net.parameters())))
    for part in (slice(0, 1), gradients, slice(gradients.stop, None)):
        a, b, c = (torch.cat([t.flatten().float() for t in results[part]]) for results in (ours, torchs, exact))
        assert not torch.equal(a, b), "torch's own operations ran"
        assert (a - c).norm() < 1.1 * (b - c).norm()
    assert (ours[0] - exact[0]).norm() < 0.03 * exact[0].norm()


def record(into: list[int], geometry: resnet.ConvGeometry | None) -> resnet.ConvGeometry | None:
    if geometry is not None:
        into.append(geometry.packed)
    return geometry


def test_a_whole_moco_takes_the_fast_path_with_split_batchnorm_and_momentum_encoder(amx: None, compiler: None) -> None:
    theirs = contract.tiny("moco", bn_splits=4).to(memory_format=torch.channels_last)
    ours = fast(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    swapped = [name for name, part in ours.named_modules() if type(part) in FAST.values()]
    assert {name.split(".")[0] for name in swapped} == {"backbone", "momentum_encoder"}
    views, *others = contract.batch("moco")
    given = ([view.contiguous(memory_format=torch.channels_last) for view in views], *others)
    assert torch.equal(ours(*given)[0], theirs(*given)[0])
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(*given)[0]
    assert "PackedConvolution" in graph(loss)
    assert "FusedBatchNormAddReLU" in graph(loss)
    torch.testing.assert_close(loss, theirs(*given)[0], rtol=0.02, atol=0)


def graph(y: Tensor) -> str:
    """Return the names of all functions that autograd recorded."""
    names, pending = set(), [y.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in names:
            names.add(node)
            pending += [parent for parent, _ in node.next_functions]
    return " ".join(node.name() for node in names)
