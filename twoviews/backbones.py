"""Backbones: torchvision's ResNets with the stem that small images need, and thin ResNets for CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.layers import norm

WHITEN_EPSILON = 1e-2  # variance added to each direction: keeps the noise of the smallest ones from being blown up


def build(name: str, *, in_channels: int, image_size: int) -> tuple[nn.Module, int]:
    """A backbone with random weights.

    Args:
        name: a key of `BACKBONES`.
        in_channels: C of the images.
        image_size: side in pixels; above 64 the standard ResNets keep their ImageNet stem.

    Returns:
        (module from (N, C, H, W) to (N, embed_dim), embed_dim).

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {name!r}")
    return BACKBONES[name](in_channels, image_size)


def _resnet(block: str, layers: list[int]) -> Callable[[int, int], tuple[nn.Module, int]]:
    def make(in_channels: int, image_size: int) -> tuple[nn.Module, int]:
        """ResNet (He et al. 2016) under torchvision's key names; up to 64 pixels with the CIFAR stem of SimCLR, appendix B.9:
        3x3 stride-1 convolution, no max-pooling, so that 32 x 32 images give maps of 32, 16, 8, 4 (and 28 x 28: 28, 14, 7, 4)."""
        from twoviews import blocks  # late: torchvision takes a second to import

        net = blocks.ResNet(getattr(blocks, block), layers)
        embed_dim = net.fc.in_features
        net.fc = nn.Identity()
        if image_size <= 64:
            net.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
            net.maxpool = nn.Identity()
        elif in_channels != 3:
            net.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        return net, embed_dim

    return make


@torch.no_grad()
def whiten_stem(backbone: nn.Module, images: Tensor) -> None:
    """Start the stem's filters as the whitening of the images' own patches, each with both signs (cifar10-airbench, Jordan 2024).

    The net then sees decorrelated patches from the first step on; the filters train like all others.

    Args:
        backbone: with a first convolution `conv1`; filters beyond the 2 C k k patch directions keep their random start.
        images: (N, C, H, W) normalised float, some thousand of the training images.
    """
    weight = backbone.get_parameter("conv1.weight")  # (O, C, k, k)
    out, kernel = weight.shape[0], weight.shape[-1]
    patches = F.unfold(images, kernel, stride=kernel).transpose(1, 2).reshape(-1, weight[0].numel()).double()  # (patches, C k k)
    variance, directions = torch.linalg.eigh(patches.T @ patches / len(patches))  # ascending
    filters = (directions / (variance + WHITEN_EPSILON).sqrt()).T.flip(0)[: out // 2]
    # important: a sign that does not depend on the solver, or two machines start from two nets
    filters = filters * torch.sign(filters.gather(1, filters.abs().argmax(1, keepdim=True)))
    filters = torch.cat([filters, -filters]).view(-1, *weight.shape[1:])
    weight[: len(filters)] = filters.to(weight.dtype)


def has_imagenet_stem(name: str, image_size: int) -> bool:
    """Whether `build` gives this backbone its ImageNet stem (7x7 stride 2 and max-pooling): worth a printed line."""
    return name.startswith("resnet") and image_size > 64


class ThinResNet(nn.Module):
    """A ResNet of basic blocks for CPUs: few channels, a stem that may stride, any number of input channels.

    Keys are torchvision's (conv1, bn1, layer1, ...). With a stride-2 stem 32 x 32 images give maps of 16, 8, 4, 2.

    Args:
        in_channels: C of the images.
        widths: channels of each stage; each stage after the first halves the maps.
        blocks: basic blocks of each stage.
        stem_stride: stride of the 3x3 stem.

    Raises:
        ValueError: if widths and blocks differ in number.
    """

    def __init__(self, *, in_channels: int, widths: Sequence[int], blocks: Sequence[int], stem_stride: int) -> None:
        from twoviews.blocks import Block

        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"expected one number of blocks a stage, got {list(widths)} and {list(blocks)}")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(widths)
        width_in = widths[0]
        for i, (width, depth) in enumerate(zip(widths, blocks, strict=True), start=1):
            stage = []
            for j in range(depth):
                stride = 2 if i > 1 and j == 0 else 1
                shortcut = None
                if stride != 1 or width_in != width:
                    shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
                stage.append(Block(width_in, width, stride, shortcut))
                width_in = width
            self.add_module(f"layer{i}", nn.Sequential(*stage))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, widths[-1]): the last maps, averaged."""
        x = norm(self.bn1, self.conv1(x))
        for i in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{i}")(x)
        return torch.flatten(x.mean((2, 3)), 1)


def _thin(widths: Sequence[int], blocks: Sequence[int], stem_stride: int) -> Callable[[int, int], tuple[nn.Module, int]]:
    def make(in_channels: int, image_size: int) -> tuple[nn.Module, int]:
        return ThinResNet(in_channels=in_channels, widths=widths, blocks=blocks, stem_stride=stem_stride), widths[-1]

    return make


BACKBONES: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "resnet18": _resnet("Block", [2, 2, 2, 2]),
    "resnet34": _resnet("Block", [3, 4, 6, 3]),
    "resnet50": _resnet("Bottleneck", [3, 4, 6, 3]),
    "thin16": _thin((16, 32, 64, 128), (2, 2, 2, 2), 2),
    "thin32": _thin((32, 64, 128), (1, 1, 1), 2),
    "thin64": _thin((64, 128, 256), (2, 2, 2), 2),
}
