"""Backbones: torchvision's ResNets with a stem for small images, and thin ResNets for CPUs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

WHITEN_EPSILON = 1e-2  # added to the variance of each direction, so that noise in the smallest ones is not amplified


def build_backbone(name: str, *, in_channels: int, image_size: int, stem_init: str | None = None) -> tuple[nn.Module, int]:
    """Return a backbone with random weights.

    Args:
        name: a key of `BACKBONES`.
        in_channels: C of the images.
        image_size: side in pixels; above 64 the standard ResNets keep their ImageNet stem.
        stem_init: of the first convolution: `he`, normal with He's fan-out (He et al. 2015, as in torchvision's ResNets); `torch`,
            PyTorch's default, uniform with fan-in; None: `he` for the standard ResNets, `torch` for the thin ones.

    Returns:
        (module from (N, C, H, W) to h (N, embed_dim), embed_dim).

    Raises:
        ValueError: if a name is unknown.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {name!r}")
    if stem_init not in (None, "he", "torch"):
        raise ValueError(f"stem_init: expected he, torch or null, got {stem_init!r}")
    net, embed_dim = BACKBONES[name](in_channels, image_size)
    own = "he" if name.startswith("resnet") else "torch"  # not drawn a second time
    if stem_init == "he" != own:
        _he(net.get_parameter("conv1.weight"))
    elif stem_init == "torch" != own:
        net.get_submodule("conv1").reset_parameters()  # type: ignore[operator]
    return net, embed_dim


def _he(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def _resnet(block: type[BasicBlock | Bottleneck], layers: list[int]) -> Callable[[int, int], tuple[nn.Module, int]]:
    def make(in_channels: int, image_size: int) -> tuple[nn.Module, int]:
        """Return a ResNet (He et al. 2016) with torchvision's key names.

        Up to 64 pixels it has the CIFAR stem of SimCLR, appendix B.9: a 3x3 stride-1 convolution and no max-pooling, so that
        images of 32 x 32 give feature maps of 32, 16, 8, 4.
        """
        net = ResNet(block, layers)
        embed_dim = net.fc.in_features
        net.fc = nn.Identity()
        if image_size <= 64:
            net.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
            net.maxpool = nn.Identity()
        elif in_channels != 3:
            net.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        _he(net.conv1.weight)
        return net, embed_dim

    return make


@torch.no_grad()
def whiten_stem(backbone: nn.Module, images: Tensor) -> None:
    """Initialise the stem's filters with the whitening of the images' patches, each with both signs (cifar10-airbench, Jordan 2024).

    The network then sees decorrelated patches from the first step on. These filters are trained like all others.

    Args:
        backbone: with a first convolution `conv1`; filters beyond the 2 C k k patch directions keep their random values.
        images: (N, C, H, W) normalised float, a few thousand of the training images.
    """
    weight = backbone.get_parameter("conv1.weight")  # (O, C, k, k)
    out, kernel = weight.shape[0], weight.shape[-1]
    patches = F.unfold(images, kernel, stride=kernel).transpose(1, 2).reshape(-1, weight[0].numel()).double()  # (patches, C k k)
    variance, directions = torch.linalg.eigh(patches.T @ patches / len(patches))  # ascending
    filters = (directions / (variance + WHITEN_EPSILON).sqrt()).T.flip(0)[: out // 2]
    # important: a sign that does not depend on the solver, so that every machine starts from the same weights
    filters = filters * torch.sign(filters.gather(1, filters.abs().argmax(1, keepdim=True)))
    filters = torch.cat([filters, -filters]).view(-1, *weight.shape[1:])
    weight[: len(filters)] = filters.to(weight.dtype)


def has_imagenet_stem(name: str, image_size: int) -> bool:
    """Return whether `build_backbone` keeps the ImageNet stem (7x7 stride 2 and max-pooling) of this backbone."""
    return name.startswith("resnet") and image_size > 64


class ThinResNet(nn.Module):
    """A ResNet of basic blocks for CPUs: few channels, a stem that may stride, any number of input channels.

    Key names are torchvision's (conv1, bn1, layer1, ...). With a stride-2 stem, images of 32 x 32 give feature maps of 16, 8, 4, 2.

    Args:
        in_channels: C of the images.
        widths: channels of each stage; each stage after the first halves the feature maps.
        blocks: number of basic blocks of each stage.
        stem_stride: stride of the 3x3 stem.

    Raises:
        ValueError: if widths and blocks differ in number.
    """

    def __init__(self, *, in_channels: int, widths: Sequence[int], blocks: Sequence[int], stem_stride: int) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"expected one number of blocks per stage, got {list(widths)} and {list(blocks)}")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(widths)
        channels = widths[0]
        for i, (width, depth) in enumerate(zip(widths, blocks, strict=True), start=1):
            stage = []
            for j in range(depth):
                stride = 2 if i > 1 and j == 0 else 1
                shortcut = None
                if stride != 1 or channels != width:
                    shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
                stage.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
            self.add_module(f"layer{i}", nn.Sequential(*stage))

    def stem(self, x: Tensor) -> Tensor:
        """Return the first feature maps: (N, widths[0], ...)."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return h: (N, C, H, W) to (N, widths[-1]), the last feature maps, averaged."""
        x = self.stem(x)
        for i in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{i}")(x)
        return torch.flatten(x.mean((2, 3)), 1)


def _thin(widths: Sequence[int], blocks: Sequence[int], stem_stride: int) -> Callable[[int, int], tuple[nn.Module, int]]:
    def make(in_channels: int, image_size: int) -> tuple[nn.Module, int]:
        return ThinResNet(in_channels=in_channels, widths=widths, blocks=blocks, stem_stride=stem_stride), widths[-1]

    return make


BACKBONES: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "resnet18": _resnet(BasicBlock, [2, 2, 2, 2]),
    "resnet34": _resnet(BasicBlock, [3, 4, 6, 3]),
    "resnet50": _resnet(Bottleneck, [3, 4, 6, 3]),
    "thin16": _thin((16, 32, 64, 128), (2, 2, 2, 2), 2),
    "thin32": _thin((32, 64, 128), (1, 1, 1), 2),
    "thin64": _thin((64, 128, 256), (2, 2, 2), 2),
}
