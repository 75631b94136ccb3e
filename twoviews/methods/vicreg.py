"""VICReg (Bardes et al. 2022, https://arxiv.org/abs/2105.04906): equal views, with a least variance and without covariance.

Differences from the paper: with more than two views the loss is the mean over pairs. The variance term has the factor 1/2 of the
authors' code. All statistics are those of the whole batch of all processes.
"""

from itertools import combinations
from typing import Any

from torch import Tensor

from twoviews import distributed
from twoviews.losses import exact, vicreg
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.forward import of_views


class VICReg(WithProjector):
    """Backbone, projector (the paper's expander) and the three terms of eq. 6.

    Args:
        invariance, variance, covariance: weights of the terms (the paper's lambda, mu and nu).
        one_forward: all views of one size in one forward pass, or one pass per view (authors' code).
        projector: see `WithProjector`.
    """

    def __init__(self, *, invariance: float, variance: float, covariance: float, one_forward: bool, **projector: Any) -> None:
        super().__init__(**projector)
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        self.one_forward = one_forward

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        z = [distributed.gather(exact(x)) for x in of_views(self.project, views, one_forward=self.one_forward)]  # V tensors (N, D)
        losses = [vicreg(a, b, **self.weights) for a, b in combinations(z, 2)]
        return sum(losses[1:], losses[0]) / len(losses), {}
