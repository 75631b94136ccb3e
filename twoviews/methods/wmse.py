"""W-MSE (Ermolov et al. 2021, https://arxiv.org/abs/2007.06346): whitened views of an image are equal; whitening prevents a collapse.

Differences from the authors' code: sub-batches are consecutive rows, because the batch is already in random order, so every image
meets others in each epoch, and z is whitened in float64. `whitening_eps` adds a part of the identity to a covariance that is singular.
The loss then no longer prevents a collapse: directions in which z varies less are not whitened. So the recipes have 0.
"""

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from twoviews import distributed
from twoviews.losses import cosine, exact, whitened
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.forward import of_views


class WMSE(WithProjector):
    """Backbone, projector and the mean squared distance of whitened, normalised views (algorithm 1).

    Args:
        num_images, batch_size, drop_last: training images, N, and whether the last, short batch of an epoch is left out.
        whitening_size: images in a sub-batch: more than `out_dim`, and a divisor of N.
        whitening_eps: weight of the identity in the covariance, in [0, 1).
        one_forward: all views of one size in one forward pass, or one pass per view (authors' code).
        projector: see `WithProjector`.

    Raises:
        ValueError: if the sub-batches do not fit.
    """

    def __init__(
        self,
        *,
        num_images: int,
        batch_size: int,
        drop_last: bool,
        whitening_size: int,
        whitening_eps: float,
        one_forward: bool,
        **projector: Any,
    ) -> None:
        super().__init__(**projector)
        for size in (batch_size, 0 if drop_last else num_images % batch_size):
            if size % whitening_size or whitening_size <= projector["out_dim"]:
                more = f"more than out_dim={projector['out_dim']}, and a divisor of a batch of {size}"
                raise ValueError(f"whitening_size={whitening_size}: expected {more}")
        self.whitening_size, self.whitening_eps, self.one_forward = whitening_size, whitening_eps, one_forward

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        z = [distributed.gather(exact(x)) for x in of_views(self.project, views, one_forward=self.one_forward)]  # V tensors (N, D)
        v = [whitened(x, self.whitening_size, self.whitening_eps) for x in z]
        distances = torch.stack([2 - 2 * cosine(a, b) for a, b in combinations(v, 2)])  # eq. 3
        return distances.mean(), {}
