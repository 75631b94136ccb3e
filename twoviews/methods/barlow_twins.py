"""Barlow Twins (Zbontar et al. 2021, https://arxiv.org/abs/2103.03230): two views correlate in each dimension, dimensions do not.

Differences from the paper: with more than two views the loss is the mean over pairs. The correlation is that of the whole batch of
all processes, with exact gradients.
"""

from itertools import combinations
from typing import Any

from torch import Tensor

from twoviews import distributed
from twoviews.losses import barlow_twins, exact
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.forward import of_views


class BarlowTwins(WithProjector):
    """Backbone, projector and the cross-correlation loss (algorithm 1).

    Args:
        off_diagonal: lambda, the weight of the correlations between different dimensions.
        loss_scale: factor of the loss (solo-learn: 0.1), which changes the balance with weight decay.
        one_forward: all views of one size in one forward pass, or one pass per view (authors' code).
        projector: see `WithProjector`.
    """

    def __init__(self, *, off_diagonal: float, loss_scale: float, one_forward: bool, **projector: Any) -> None:
        super().__init__(**projector)
        self.off_diagonal, self.loss_scale, self.one_forward = off_diagonal, loss_scale, one_forward

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        z = [distributed.gather(exact(x)) for x in of_views(self.project, views, one_forward=self.one_forward)]  # V tensors (N, D)
        losses = [barlow_twins(a, b, self.off_diagonal) for a, b in combinations(z, 2)]
        return self.loss_scale * sum(losses[1:], losses[0]) / len(losses), {}
