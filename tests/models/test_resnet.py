"""Backbones: sizes of the feature maps, which a wrong stem changes silently, dimensions of h, and torchvision's key names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from twoviews.models.resnet import BACKBONES, ThinResNet, build_backbone, has_imagenet_stem, whiten_stem

RESNETS = tuple(name for name in BACKBONES if name.startswith("resnet"))
THIN = tuple(name for name in BACKBONES if not name.startswith("resnet"))


@torch.no_grad()
def map_sides(module: nn.Module, in_channels: int, size: int) -> tuple[list[int], torch.Size]:
    """Return the sides of the feature maps after layer1, layer2, ..., and the shape of the output."""
    sides: list[int] = []
    stages = [child for name, child in module.named_children() if name.startswith("layer")]
    hooks = [stage.register_forward_hook(lambda module, args, out: sides.append(out.shape[-1])) for stage in stages]
    out = module.eval()(torch.randn(2, in_channels, size, size, device=next(module.parameters()).device))
    for hook in hooks:
        hook.remove()
    return sides, out.shape


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_keep_the_resolution_of_small_images_and_return_embed_dim(name: str) -> None:
    with torch.device("meta"):  # shapes without values
        net, embed_dim = build_backbone(name, in_channels=3, image_size=32)
    assert map_sides(net, 3, 32) == ([32, 16, 8, 4], (2, embed_dim))


@pytest.mark.parametrize("in_channels", [1, 3])
def test_28_pixels_stay_28(in_channels: int) -> None:
    with torch.device("meta"):
        net, embed_dim = build_backbone("resnet18", in_channels=in_channels, image_size=28)
    assert map_sides(net, in_channels, 28) == ([28, 14, 7, 4], (2, embed_dim))


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_have_torchvisions_keys_and_shapes(name: str) -> None:
    with torch.device("meta"):
        net, _ = build_backbone(name, in_channels=3, image_size=96)
        small, _ = build_backbone(name, in_channels=3, image_size=32)
        theirs = getattr(resnet, name)(weights=None).state_dict()
    expected = {key: tensor.shape for key, tensor in theirs.items() if not key.startswith("fc.")}
    assert {key: tensor.shape for key, tensor in net.state_dict().items()} == expected
    assert set(small.state_dict()) == set(expected)


@pytest.mark.parametrize(("size", "imagenet"), [(28, False), (32, False), (64, False), (65, True), (96, True), (224, True)])
def test_the_imagenet_stem_is_used_above_64_pixels(size: int, imagenet: bool) -> None:
    with torch.device("meta"):
        net, _ = build_backbone("resnet18", in_channels=3, image_size=size)
    stem = (net.conv1.kernel_size, net.conv1.stride, net.conv1.padding, type(net.maxpool))
    assert stem == (((7, 7), (2, 2), (3, 3), nn.MaxPool2d) if imagenet else ((3, 3), (1, 1), (1, 1), nn.Identity))
    assert has_imagenet_stem("resnet18", size) == imagenet
    assert not has_imagenet_stem("thin16", size)


@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_the_imagenet_stem_accepts_any_number_of_channels(in_channels: int) -> None:
    with torch.device("meta"):
        net, embed_dim = build_backbone("resnet18", in_channels=in_channels, image_size=96)
    assert map_sides(net, in_channels, 96) == ([24, 12, 6, 3], (2, embed_dim))


@pytest.mark.parametrize("name", THIN)
@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize(("size", "sides"), [(32, [16, 8, 4, 2]), (28, [14, 7, 4, 2])])
def test_thin_resnets_halve_their_feature_maps_and_return_embed_dim(name: str, in_channels: int, size: int, sides: list[int]) -> None:
    net, embed_dim = build_backbone(name, in_channels=in_channels, image_size=size)
    assert map_sides(net, in_channels, size) == (sides[: net.stages], (2, embed_dim))


def test_a_whitened_stem_gives_uncorrelated_outputs_of_unit_variance_and_both_signs() -> None:
    torch.manual_seed(0)
    net, _ = build_backbone("thin32", in_channels=3, image_size=32)
    random_start = net.conv1.weight.detach().clone()
    mix = torch.randn(3, 3)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(400, 3, 34, 34), 3, 1)  # pixels and channels correlate, as in photographs
    images = torch.einsum("cd,ndhw->nchw", mix, smooth) * 50
    whiten_stem(net, images)
    patches = torch.nn.functional.unfold(images, 3, stride=3).transpose(1, 2).reshape(-1, 27)
    weight = net.conv1.weight.detach().flatten(1)
    outputs = patches @ weight[:16].T
    torch.testing.assert_close(outputs.T @ outputs / len(outputs), torch.eye(16), rtol=0, atol=0.02)
    assert torch.equal(weight[:16], -weight[16:32])
    again, _ = build_backbone("thin32", in_channels=3, image_size=32)
    whiten_stem(again, images)
    assert torch.equal(again.conv1.weight, net.conv1.weight)
    assert not torch.equal(random_start, net.conv1.weight)


def test_filters_beyond_the_directions_of_the_patches_keep_their_random_values() -> None:
    net, _ = build_backbone("thin32", in_channels=1, image_size=28)  # 32 filters, 9 directions, two signs
    start = net.conv1.weight.detach().clone()
    whiten_stem(net, torch.randn(50, 1, 28, 28))
    assert torch.equal(net.conv1.weight[18:], start[18:])
    assert torch.equal(net.conv1.weight[:9], -net.conv1.weight[9:18])


@pytest.mark.parametrize("name", THIN)
def test_thin_resnets_use_torchvisions_key_names(name: str) -> None:
    net, _ = build_backbone(name, in_channels=3, image_size=32)
    theirs = {key for key in resnet.resnet18(weights=None).state_dict() if not key.startswith("fc.")}
    first_block_shortcut = {key for key in net.state_dict() if key.startswith("layer1.0.downsample")}
    assert first_block_shortcut == set()
    assert set(net.state_dict()) <= theirs


@pytest.mark.parametrize("name", list(BACKBONES))
def test_in_eval_mode_an_image_does_not_depend_on_the_others_and_the_output_is_finite(name: str) -> None:
    torch.manual_seed(0)
    net, _ = build_backbone(name, in_channels=3, image_size=32)
    net.eval()
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        together, alone = net(x), torch.cat([net(row[None]) for row in x])
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_convolutions_and_the_replaced_stem_start_with_kaimings_fan_out_initialisation() -> None:
    torch.manual_seed(0)
    net, _ = build_backbone("resnet18", in_channels=3, image_size=32)
    for key, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15), key


@pytest.mark.parametrize("name", ["resnet18", "thin32"])
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 96), (4, 96)])
@pytest.mark.parametrize("stem_init", ["he", "torch", None])
def test_stem_init_chooses_the_start_of_the_first_convolution_and_changes_no_other(
    name: str, channels: int, size: int, stem_init: str | None
) -> None:
    torch.manual_seed(0)
    net, _ = build_backbone(name, in_channels=channels, image_size=size, stem_init=stem_init)
    torch.manual_seed(0)
    plain, _ = build_backbone(name, in_channels=channels, image_size=size)
    weight, fan_in = net.conv1.weight, net.conv1.weight[0].numel()
    fan_out = len(weight) * net.conv1.kernel_size[0] ** 2
    own = "he" if name == "resnet18" else "torch"
    expected = {"he": math.sqrt(2 / fan_out), "torch": 1 / math.sqrt(3 * fan_in)}[stem_init or own]
    assert weight.std().item() == pytest.approx(expected, rel=0.1)
    if (stem_init or own) == "torch":
        assert weight.abs().max() <= fan_in**-0.5
    same = {key: torch.equal(value, plain.state_dict()[key]) for key, value in net.state_dict().items()}
    assert same.pop("conv1.weight") == (stem_init in (None, own)), "a start that the backbone has anyway is not drawn again"
    assert all(same.values())


def test_an_unknown_start_of_the_stem_is_refused() -> None:
    with pytest.raises(ValueError, match="stem_init: expected he, torch or null, got 'xavier'"):
        build_backbone("thin16", in_channels=3, image_size=32, stem_init="xavier")


def test_weights_are_a_function_of_the_seed() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(build_backbone("thin16", in_channels=3, image_size=32)[0].state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(weights(0), weights(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(0), weights(1), strict=True))


def test_an_unknown_name_is_refused_with_a_list_of_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"resnet18.*thin16.*'resnet19'"):
        build_backbone("resnet19", in_channels=3, image_size=32)


def test_widths_and_blocks_must_have_the_same_number() -> None:
    with pytest.raises(ValueError, match="blocks"):
        ThinResNet(in_channels=3, widths=(8, 16), blocks=(1,), stem_stride=1)
