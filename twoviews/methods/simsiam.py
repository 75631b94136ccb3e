"""SimSiam (Chen & He 2021, https://arxiv.org/abs/2011.10566): predict one view's projection from another's, without negatives.

With more than two views the target is the mean of the other views' projections, as in FastSiam (Pototzky et al. 2022).
Difference from the papers: the widths of the heads are hyper-parameters.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews.losses import cosine
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.forward import of_views
from twoviews.models.heads import mlp, without_scale_and_shift


class SimSiam(WithProjector):
    """Backbone and projector, together the paper's f, and predictor h (algorithm 1).

    Args:
        predictor_dims: widths of the predictor's hidden layers.
        one_forward: all views of one size in one forward pass, or one pass per view (authors' code).
        projector: see `WithProjector`. BatchNorm after its last layer has neither scale nor shift (authors' code).
    """

    def __init__(self, *, predictor_dims: Sequence[int], one_forward: bool, **projector: Any) -> None:
        super().__init__(**projector)
        without_scale_and_shift(self.projector[-1])
        self.predictor = mlp([projector["out_dim"], *predictor_dims, projector["out_dim"]], hidden_bn=True, output_bn=False)
        self.one_forward = one_forward

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        z = of_views(self.project, views, one_forward=self.one_forward)  # V tensors (N, D)
        loss = torch.zeros((), device=z[0].device)
        for i, p in enumerate(of_views(self.predictor, z, one_forward=self.one_forward)):
            target = torch.stack([z_j for j, z_j in enumerate(z) if j != i]).mean(0)
            loss = loss - cosine(p, target.detach()) / len(z)  # important: without gradient, or it collapses
        return loss, {"z_std": F.normalize(z[0].detach().float(), dim=1).std(0).mean()}

    def param_groups(self) -> list[dict[str, Any]]:
        trained = [*self.backbone.parameters(), *self.projector.parameters()]
        predictor = {"params": list(self.predictor.parameters()), "constant_lr": True}  # section 4.2: its rate does not decay
        return [{"params": trained}, predictor]
