"""DCL (Yeh et al. 2022, https://arxiv.org/abs/2110.06848): SimCLR without the positives in the denominator of the softmax.

Difference from the paper: more than two views are allowed. The weighted variant, DCLW, is not here.
"""

import torch
from torch import Tensor

from twoviews import distributed
from twoviews.losses import decoupled
from twoviews.methods.base import Loss
from twoviews.methods.simclr import SimCLR
from twoviews.models.forward import of_views


class DCL(SimCLR):
    """Backbone, projector and the decoupled contrastive loss (eq. 6). Arguments: those of SimCLR."""

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        z = torch.cat(of_views(self.project, views, one_forward=self.one_forward))  # (V*N, D)
        return decoupled(z, self.temperature, len(views), gather=distributed.gather_views), {}
