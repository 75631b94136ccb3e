"""SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709): views of one image attract, views of different images repel.

Differences from the paper: the loss is the mean over anchors (the authors' code sums both directions: twice as large). More
than two views are allowed. A hyper-parameter decides whether views share one forward pass, hence BatchNorm statistics.
"""

from typing import Any

import torch
from torch import Tensor

from twoviews import distributed
from twoviews.losses import nt_xent
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.forward import of_views


class SimCLR(WithProjector):
    """Backbone, projector and NT-Xent (algorithm 1).

    Args:
        temperature: of NT-Xent, > 0.
        one_forward: all views of one size in one forward pass (authors' code), or one pass per view (CIFAR recipes).
        projector: see `WithProjector`.
    """

    def __init__(self, *, temperature: float, one_forward: bool, **projector: Any) -> None:
        super().__init__(**projector)
        self.temperature, self.one_forward = temperature, one_forward

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        z = torch.cat(of_views(self.project, views, one_forward=self.one_forward))  # (V*N, D)
        return nt_xent(z, self.temperature, len(views), gather=distributed.gather_views), {}
