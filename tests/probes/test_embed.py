"""Features by a frozen module: equal to a forward pass in eval mode, and nothing in the module changes."""

from __future__ import annotations

import contextlib
import copy
import importlib

import pytest
import torch
from probe_helpers import some_images, trained_net
from torch import Tensor, nn

from twoviews.probes.embed import at_once, embed, finite, pixels

# By name: `twoviews.probes.embed` may be the module or a function of that name, whichever was bound last.
EMBED_MODULE = importlib.import_module("twoviews.probes.embed")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def features_of(module: nn.Module, images: Tensor) -> Tensor:
    return embed(module, images, mean=MEAN, std=STD, device=torch.device("cpu"), autocast=contextlib.nullcontext)


def test_embedding_leaves_every_parameter_and_buffer_bit_identical_and_restores_the_modes() -> None:
    net = trained_net().train()
    net.layer1.eval()  # a part that the user froze
    net.conv1.weight.requires_grad_(False)
    state, modes = copy.deepcopy(net.state_dict()), [part.training for part in net.modules()]
    assert any(key.endswith("num_batches_tracked") for key in state)
    features = features_of(net, some_images(20))
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()].count(False) == 1
    assert all(p.grad is None for p in net.parameters())
    assert not features.requires_grad


def test_features_equal_a_forward_pass_in_eval_mode_on_normalised_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = trained_net(), some_images(20)
    x = (images.float() / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    with torch.no_grad():
        expected = copy.deepcopy(net).eval()(x)
    monkeypatch.setattr(EMBED_MODULE, "MOST", 6)
    features = features_of(net, images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_a_float64_module_gets_float64_and_its_features_are_float32() -> None:
    net, images = trained_net(), some_images(5)
    torch.testing.assert_close(features_of(copy.deepcopy(net).double(), images), features_of(net, images), rtol=1e-4, atol=1e-5)
    assert features_of(copy.deepcopy(net).double(), images).dtype == torch.float32


def test_features_that_are_not_finite_are_refused_and_the_modes_restored() -> None:
    net = trained_net().train()
    with torch.no_grad():
        net.conv1.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="4 of 4 images"):
        features_of(net, some_images(4))
    assert net.training


def test_the_modes_are_restored_if_the_module_fails() -> None:
    net = trained_net().train()
    with pytest.raises(RuntimeError):
        embed(net, some_images(4)[:, :1], mean=(0.5,), std=(0.5,), device=torch.device("cpu"), autocast=contextlib.nullcontext)
    assert all(part.training for part in net.modules())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_finite_finds_a_single_entry_that_is_not(bad: float) -> None:
    x = torch.arange(12.0).view(3, 4) - 6
    assert finite(x)
    assert finite(x[:0])
    x[1, 2] = bad
    assert not finite(x)


def test_pixels_are_rows_in_the_unit_interval() -> None:
    images = some_images(3)
    assert pixels(images).shape == (3, 192)
    assert torch.equal(pixels(images)[1], images[1].reshape(-1) / 255)
    assert pixels(images[:0]).shape == (0, 192)


@pytest.mark.parametrize("side", [64, 65, 96, 224])
def test_pixels_of_large_images_are_averaged_down_to_64(side: int) -> None:
    images = torch.randint(0, 256, (21, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = nn.functional.interpolate(images.double() / 255, size=(64, 64), mode="area").flatten(1)
    torch.testing.assert_close(pixels(images), expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("side", "count"), [(28, 1000), (32, 1000), (64, 256), (224, 20), (1024, 16)])
def test_large_images_are_computed_fewer_at_a_time(side: int, count: int) -> None:
    assert at_once(side * side) == count
    assert at_once(side * side, 18) == min(18, count)


def test_features_are_those_of_all_images_when_they_are_computed_in_parts() -> None:
    images, counts = torch.randint(0, 256, (50, 3, 192, 192), dtype=torch.uint8), []

    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            counts.append(len(x))
            return x.mean((2, 3))

    found = features_of(Means(), images)
    assert counts == [28, 22]
    expected = (images.float().mean((2, 3)) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(found, expected)
