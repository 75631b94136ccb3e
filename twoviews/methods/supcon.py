"""SupCon (Khosla et al. 2020, https://arxiv.org/abs/2004.11362): all views of all images of a class attract. It uses labels.

Difference from the authors' code: the loss is not multiplied by temperature / 0.07.
"""

import torch
from torch import Tensor

from twoviews import distributed
from twoviews.losses import supcon
from twoviews.methods.base import Loss
from twoviews.methods.simclr import SimCLR
from twoviews.models.forward import of_views


class SupCon(SimCLR):
    """Backbone, projector and the supervised contrastive loss (L_out, eq. 2). Arguments: those of SimCLR."""

    uses_labels = True

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        if labels is None:
            raise ValueError("supcon: expected labels of shape (N,), got none")
        z = torch.cat(of_views(self.project, views, one_forward=self.one_forward))  # (V*N, D)
        every = distributed.gather(labels)
        return supcon(z, every, self.temperature, len(views), gather=distributed.gather_views), {}
