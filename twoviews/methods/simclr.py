"""SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709): views of one image attract, views of different images repel.

Differences from the paper: the loss is the mean over anchors (the authors' code sums both directions: twice as large). More
than two views are allowed. A hyper-parameter decides whether views share one forward pass, hence BatchNorm statistics.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from twoviews import distributed
from twoviews.losses import nt_xent
from twoviews.methods.base import Loss, Method
from twoviews.models.heads import mlp


class SimCLR(Method):
    """Backbone, projector and NT-Xent (algorithm 1).

    Args:
        backbone: (N, C, H, W) to (N, embed_dim).
        embed_dim: dimensions of h.
        hidden_dims: widths of the projector's hidden layers.
        out_dim: D, the projector's output.
        hidden_bn, output_bn: BatchNorm in the projector.
        one_forward: all views in one forward pass if their sizes are equal (authors' code), or one pass per view (CIFAR recipes).
        temperature: of NT-Xent, > 0.

    Raises:
        ValueError: if the temperature is not positive.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        embed_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        hidden_bn: bool,
        output_bn: bool,
        one_forward: bool,
        temperature: float,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature: expected a number above 0, got {temperature}")
        self.backbone = backbone
        self.projector = mlp([embed_dim, *hidden_dims, out_dim], hidden_bn=hidden_bn, output_bn=output_bn)
        self.one_forward = one_forward
        self.temperature = temperature

    def modules_to_probe(self) -> dict[str, nn.Module]:
        return {"h": self.backbone, "z": nn.Sequential(self.backbone, self.projector)}

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        if self.one_forward and len({x.shape for x in views}) == 1:
            z = self.projector(self.backbone(torch.cat(views)))  # (V*N, D)
        else:
            z = torch.cat([self.projector(self.backbone(x)) for x in views])
        return nt_xent(z, self.temperature, len(views), gather=distributed.gather_views), {}
