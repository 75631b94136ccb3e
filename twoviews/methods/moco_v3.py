"""MoCo v3 (Chen et al. 2021, https://arxiv.org/abs/2104.02057), for ResNets: MoCo without a queue, with a predictor, in large batches.

Differences from the paper: more than two views are allowed; the loss is summed over views and averaged over the keys of each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twoviews import distributed
from twoviews.losses import info_nce_in_batch
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.forward import of_views
from twoviews.models.heads import mlp, without_scale_and_shift
from twoviews.models.momentum import cosine_ramp, ema_update, momentum_copy


class MoCoV3(WithProjector):
    """Backbone, projector, predictor and the momentum copy of backbone and projector (algorithm 1).

    Args:
        predictor_dims: widths of the predictor's hidden layers.
        temperature: of InfoNCE, > 0.
        ema_decay, ema_decay_end: decay of the momentum copy, rising as a cosine.
        one_forward: all views of one size in one forward pass, or one pass per view (authors' code).
        projector: see `WithProjector`. BatchNorm after its last layer has neither scale nor shift (authors' code).
    """

    def __init__(
        self,
        *,
        predictor_dims: Sequence[int],
        temperature: float,
        ema_decay: float,
        ema_decay_end: float,
        one_forward: bool,
        **projector: Any,
    ) -> None:
        super().__init__(**projector)
        without_scale_and_shift(self.projector[-1])
        dims = [projector["out_dim"], *predictor_dims, projector["out_dim"]]
        self.predictor = mlp(dims, hidden_bn=True, output_bn=False)
        self.momentum_encoder = momentum_copy(nn.Sequential(self.backbone, self.projector))
        self.temperature, self.one_forward = temperature, one_forward
        self.ema_decay, self.ema_decay_end = ema_decay, ema_decay_end

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        z = of_views(self.project, views, one_forward=self.one_forward)
        queries = of_views(self.predictor, z, one_forward=self.one_forward)
        with torch.no_grad():
            keys = [distributed.gather(k) for k in of_views(self.momentum_encoder, views, one_forward=self.one_forward)]  # (N, D)
        start = distributed.rows(len(keys[0])).start
        loss = torch.zeros((), device=keys[0].device)
        for i, q in enumerate(queries):
            for j, k in enumerate(keys):
                if i != j:
                    loss = loss + info_nce_in_batch(q, k, self.temperature, start) / (len(keys) - 1)
        return 2 * self.temperature * loss, {}  # the authors' factor: gradients do not shrink with the temperature

    def after_step(self, progress: Tensor) -> None:
        decay = cosine_ramp(self.ema_decay, self.ema_decay_end, progress)
        ema_update(self.momentum_encoder[0], self.backbone, decay)
        ema_update(self.momentum_encoder[1], self.projector, decay)
