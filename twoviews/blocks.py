"""torchvision's ResNet and its blocks, with their keys and their start, made of `layers.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models import resnet

from twoviews.layers import convolve, norm, norm_convolve


class Block(resnet.BasicBlock):  # type: ignore[misc]
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5, left)."""

    def forward(self, x: Tensor) -> Tensor:
        y = norm_convolve(self.bn1, self.conv2, convolve(self.conv1, x))
        return norm(self.bn2, y, _shortcut(self, x))


class Bottleneck(resnet.Bottleneck):  # type: ignore[misc]
    """1x1, 3x3 and 1x1 convolutions and a shortcut (figure 5, right)."""

    def forward(self, x: Tensor) -> Tensor:
        y = norm_convolve(self.bn1, self.conv2, convolve(self.conv1, x))
        y = norm_convolve(self.bn2, self.conv3, y)
        return norm(self.bn3, y, _shortcut(self, x))


class ResNet(resnet.ResNet):  # type: ignore[misc]
    """Of these blocks."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(norm(self.bn1, self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        y: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return y


def _shortcut(block: resnet.BasicBlock | resnet.Bottleneck, x: Tensor) -> Tensor:
    if block.downsample is None:
        return x
    convolution, bn = block.downsample
    return norm(bn, convolve(convolution, x), relu=False)
