"""Optimised ResNet blocks for CPUs with bfloat16: fused BatchNorm, and packed convolutions on processors with AMX.

`use_fast_path` changes the class of a network's blocks. Parameters, buffers and key names stay. Where an input is not what
the fast code is for (evaluation, another dtype, another device), a block computes what torch's block does.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torchvision.models import resnet

from twoviews.cpu.batchnorm import FusedBatchNormAddReLU
from twoviews.models.batchnorm import SyncBatchNorm
from twoviews.models.resnet import ThinResNet

# oneDNN fills AMX's tiles of 16 rows along one row of a feature map, so narrow maps leave most of a tile empty.
NARROW = 8  # pixels up to which maps are packed in the backward pass
NARROWEST = 4  # the same in the forward pass
PACKED = 16  # maps in one wide map; more is no faster


def use_fast_path(module: nn.Module) -> None:
    """Swap the ResNets and blocks in a module for the optimised ones. They round differently from torch's.

    Args:
        module: changed in place.
    """
    for part in module.modules():
        if type(part) in FAST:
            part.__class__ = FAST[type(part)]


class FastBasicBlock(resnet.BasicBlock):  # type: ignore[misc]
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5, left)."""

    def forward(self, x: Tensor) -> Tensor:
        y = batchnorm_add_relu(self.bn1, convolve(self.conv1, x))
        return batchnorm_add_relu(self.bn2, convolve(self.conv2, y), _shortcut(self, x))


class FastBottleneck(resnet.Bottleneck):  # type: ignore[misc]
    """1x1, 3x3 and 1x1 convolutions and a shortcut (figure 5, right)."""

    def forward(self, x: Tensor) -> Tensor:
        y = batchnorm_add_relu(self.bn1, convolve(self.conv1, x))
        y = batchnorm_add_relu(self.bn2, convolve(self.conv2, y))
        return batchnorm_add_relu(self.bn3, convolve(self.conv3, y), _shortcut(self, x))


class FastResNet(resnet.ResNet):  # type: ignore[misc]
    """torchvision's ResNet with a fused stem."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(batchnorm_add_relu(self.bn1, self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        y: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return y


class FastThinResNet(ThinResNet):
    """The thin ResNet with a fused stem."""

    def stem(self, x: Tensor) -> Tensor:
        return batchnorm_add_relu(self.bn1, self.conv1(x))


FAST: dict[type[nn.Module], type[nn.Module]] = {
    resnet.BasicBlock: FastBasicBlock,
    resnet.Bottleneck: FastBottleneck,
    resnet.ResNet: FastResNet,
    ThinResNet: FastThinResNet,
}


def _shortcut(block: resnet.BasicBlock | resnet.Bottleneck, x: Tensor) -> Tensor:
    if block.downsample is None:
        return x
    convolution, bn = block.downsample
    return batchnorm_add_relu(bn, convolve(convolution, x), relu=False)


def batchnorm_add_relu(bn: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None = None, *, relu: bool = True) -> Tensor:
    """Return relu(bn(x) + shortcut): in train mode by one C++ function that rounds to bfloat16 once.

    Args:
        bn: of C channels; may have several `splits` (`models.batchnorm.SplitBatchNorm`).
        x: (N, C, H, W).
        shortcut: (N, C, H, W) or None.
        relu: whether to apply ReLU.
    """
    if _can_fuse(bn, x, shortcut):
        splits = getattr(bn, "splits", 1)
        results: tuple[Tensor, ...] = FusedBatchNormAddReLU.apply(x, shortcut, bn.weight, bn.bias, splits, bn.eps, relu)
        _update_running_stats(bn, results[1], results[2], x)
        return results[0]
    y: Tensor = bn(x)
    if shortcut is not None:
        y += shortcut
    return F.relu(y, inplace=True) if relu else y


def _can_fuse(bn: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None) -> bool:
    """Return whether the C++ function computes what `bn` does; it needs two values per channel in every part."""
    if not bn.training or x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    if not bn.affine or not bn.track_running_stats or bn.momentum is None or isinstance(bn, SyncBatchNorm):
        return False
    splits = getattr(bn, "splits", 1)
    maps = [x] if shortcut is None else [x, shortcut]
    same_form = all(t.shape == x.shape and t.dtype == x.dtype and t.is_contiguous(memory_format=torch.channels_last) for t in maps)
    return same_form and len(x) % splits == 0 and x.numel() > splits * x.shape[1] and bn.weight.dtype == torch.float32


@torch.no_grad()
def _update_running_stats(bn: nn.BatchNorm2d, means: Tensor, variances: Tensor, x: Tensor) -> None:
    """Update the running statistics as torch does, with the unbiased variance. Means and variances of x are (splits, C)."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.num_batches_tracked is not None
    assert bn.momentum is not None
    count = x.numel() // means.numel()
    bn.running_mean.lerp_(means.mean(0), bn.momentum)
    bn.running_var.lerp_(variances.mean(0) * (count / (count - 1)), bn.momentum)
    bn.num_batches_tracked.add_(1)


def convolve(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Return convolution(x).

    On a processor with AMX, narrow feature maps are packed side by side into one wide map, with zeros between them.
    docs/performance.md has the gain. The gradient of the weights then rounds differently.

    Args:
        convolution: packed if its padding keeps the map's size, and it has no groups, dilation or bias.
        x: (N, C, H, W); as many maps are packed as divide both N and 16.
    """
    geometry = _geometry(convolution, x)
    if geometry is None:
        return convolution(x)  # type: ignore[no-any-return]
    y: Tensor = PackedConvolution.apply(x, convolution.weight, geometry)
    return y


class ConvGeometry(NamedTuple):
    """Stride and padding of a convolution, and how many maps are packed into one."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    packed: int


def _geometry(convolution: nn.Conv2d, x: Tensor) -> ConvGeometry | None:
    """Return how to pack the maps of x, or None where packing is not possible or not faster."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or not torch.cpu._is_amx_tile_supported():
        return None
    if convolution.groups != 1 or convolution.dilation != (1, 1) or convolution.bias is not None:
        return None
    if not isinstance(convolution.padding, tuple) or convolution.padding_mode != "zeros":
        return None
    if not (torch.is_grad_enabled() and convolution.weight.requires_grad and torch.is_autocast_enabled("cpu")):
        return None
    same_size = 2 * convolution.padding[1] + 1 == convolution.kernel_size[1]
    packed = math.gcd(len(x), PACKED)
    if packed == 1 or not same_size or (x.shape[3] - 1) // convolution.stride[1] >= NARROW:
        return None
    return ConvGeometry(convolution.stride, convolution.padding, packed)  # type: ignore[arg-type]


class PackedConvolution(torch.autograd.Function):
    """A convolution of packed maps, for autograd: (x, weight, geometry) to y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        width, weight = (x.shape[3] - 1) // geometry.stride[1] + 1, weight.bfloat16()
        if width > NARROWEST:
            return F.conv2d(x, weight, stride=geometry.stride, padding=geometry.padding)
        packed = _pack(x, geometry.packed, _pitch(x, geometry) * geometry.stride[1])
        return _unpack(F.conv2d(packed, weight, stride=geometry.stride, padding=geometry.padding), geometry.packed, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, packed = ctx.geometry
        width, pitch, needs_x = x.shape[3], _pitch(x, ctx.geometry), ctx.needs_input_grad[0]
        grad, x = _pack(grad, packed, pitch), _pack(x, packed, pitch * stride[1])
        options = (None, stride, padding, (1, 1), False, (0, 0), 1, (needs_x, True, False))
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight.bfloat16(), *options)
        return _unpack(grad_x, packed, width) if needs_x else None, grad_weight.to(weight.dtype), None


def _pitch(x: Tensor, geometry: ConvGeometry) -> int:
    """Return the distance between packed maps in output pixels: zeros separate neighbours, and each map starts at a stride."""
    return -(-(x.shape[3] + geometry.padding[1]) // geometry.stride[1])


def _pack(x: Tensor, packed: int, pitch: int) -> Tensor:
    """Return (N, C, H, W) as (N / packed, C, H, packed x pitch): maps side by side, zeros after each."""
    n, channels, height, width = x.shape
    out = x.new_zeros(n // packed, height, packed, pitch, channels)
    out[:, :, :, :width] = x.permute(0, 2, 3, 1).reshape(n // packed, packed, height, width, channels).transpose(1, 2)
    return out.flatten(2, 3).permute(0, 3, 1, 2)


def _unpack(x: Tensor, packed: int, width: int) -> Tensor:
    """Return (N / packed, C, H, packed x pitch) as (N, C, H, width): the inverse of `_pack`."""
    rows, channels, height, whole = x.shape
    maps = x.permute(0, 2, 3, 1).reshape(rows, height, packed, whole // packed, channels)[:, :, :, :width].transpose(1, 2)
    # A new tensor, not a view: autograd forbids in-place changes of views that its functions return.
    out = torch.empty((rows * packed, channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    out.permute(0, 2, 3, 1).view(maps.shape).copy_(maps)
    return out
