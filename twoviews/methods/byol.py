"""BYOL (Grill et al. 2020, https://arxiv.org/abs/2006.07733): predict the projection that a slow copy computes for another view.

Difference from the paper: more than two views are allowed; the loss is summed over views and averaged over the targets of each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twoviews.losses import cosine
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.forward import of_views
from twoviews.models.heads import mlp
from twoviews.models.momentum import cosine_ramp, ema_update, momentum_copy


class BYOL(WithProjector):
    """Backbone, projector and predictor, and the teacher: a momentum copy of backbone and projector (the paper's target network).

    Args:
        predictor_dims: widths of the predictor's hidden layers.
        ema_decay, ema_decay_end: decay of the teacher, rising as a cosine (section 3.2: to 1).
        one_forward: all views of one size in one forward pass, or one pass per view (authors' code).
        projector: see `WithProjector`.
    """

    def __init__(
        self, *, predictor_dims: Sequence[int], ema_decay: float, ema_decay_end: float, one_forward: bool, **projector: Any
    ) -> None:
        super().__init__(**projector)
        self.predictor = mlp([projector["out_dim"], *predictor_dims, projector["out_dim"]], hidden_bn=True, output_bn=False)
        self.teacher = momentum_copy(nn.Sequential(self.backbone, self.projector))
        self.ema_decay, self.ema_decay_end, self.one_forward = ema_decay, ema_decay_end, one_forward

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        z = of_views(self.project, views, one_forward=self.one_forward)
        p = of_views(self.predictor, z, one_forward=self.one_forward)
        with torch.no_grad():
            targets = of_views(self.teacher, views, one_forward=self.one_forward)
        loss = torch.zeros((), device=p[0].device)
        for i, p_i in enumerate(p):
            for j, target in enumerate(targets):
                if i != j:
                    loss = loss + (2 - 2 * cosine(p_i, target)) / (len(p) - 1)  # eq. 2
        return loss, {}

    def after_step(self, progress: Tensor) -> None:
        decay = cosine_ramp(self.ema_decay, self.ema_decay_end, progress)
        ema_update(self.teacher[0], self.backbone, decay)
        ema_update(self.teacher[1], self.projector, decay)
