"""Projectors, predictors (all built by `mlp`) and prototypes."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.losses.precision import exact, without_autocast


def mlp(dims: Sequence[int], *, hidden_bn: bool, output_bn: bool) -> nn.Sequential:
    """Return linear layers with ReLU between them (the projection head g of SimCLR, Chen et al. 2020, section 2.1).

    Args:
        dims: widths from input to output, at least two; (512, 2048, 128) has one hidden layer.
        hidden_bn: BatchNorm before each ReLU.
        output_bn: BatchNorm after the last layer.

    Returns:
        A module from (N, dims[0]) to (N, dims[-1]). A layer before BatchNorm has no bias, because BatchNorm would cancel it.

    Raises:
        ValueError: if there are fewer than two widths or one is below 1.
    """
    if len(dims) < 2 or min(dims) < 1:
        raise ValueError(f"a head needs at least two widths >= 1, got {list(dims)}")
    layers: list[nn.Module] = []
    for i, (wide_in, wide_out) in enumerate(itertools.pairwise(dims)):
        last = i == len(dims) - 2
        bn = output_bn if last else hidden_bn
        layers.append(nn.Linear(wide_in, wide_out, bias=not bn))
        if bn:
            layers.append(nn.BatchNorm1d(wide_out))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def without_scale_and_shift(layer: nn.Module) -> None:
    """Take scale and shift from a BatchNorm; other layers do not change."""
    if isinstance(layer, nn.BatchNorm1d):
        layer.affine = False
        layer.register_parameter("weight", None)
        layer.register_parameter("bias", None)


class Prototypes(nn.Module):
    """K directions; the output of an embedding is its cosine similarity to each: a linear layer without bias.

    Args:
        dim: D of an embedding.
        count: K.
        weight_norm: the layer divides its weights by their length (DINO's last layer), or `normalize` must follow each step (SwAV).
    """

    def __init__(self, dim: int, count: int, *, weight_norm: bool) -> None:
        super().__init__()
        self.weight, self.weight_norm = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1)), weight_norm

    def forward(self, z: Tensor) -> Tensor:
        """Return similarities (N, K) of embeddings (N, D), in float32 (float64 for float64 input)."""
        with without_autocast(z.device):
            weight = exact(self.weight)
            return F.normalize(exact(z), dim=1) @ (F.normalize(weight, dim=1) if self.weight_norm else weight).T

    def before_step(self, progress: Tensor, *, frozen_until: float) -> None:
        """Set the gradient to 0 while `progress`, a 0-dim tensor, is below `frozen_until`, and keep the weights for `after_step`."""
        assert self.weight.grad is not None
        self.weight.grad.mul_(progress >= frozen_until)
        self.before = self.weight.detach().clone()

    @torch.no_grad()
    def after_step(self, progress: Tensor, *, frozen_until: float) -> None:
        """Undo the step while the weights are frozen: weight decay moves them without a gradient, too."""
        self.weight.copy_(torch.where(progress >= frozen_until, self.weight, self.before))

    @torch.no_grad()
    def normalize(self) -> None:
        """Give each prototype unit length again."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
