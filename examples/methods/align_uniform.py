"""Alignment and uniformity (Wang & Isola 2020, https://arxiv.org/abs/2005.10242): views agree, images spread over the sphere.

Difference from the paper: uniformity is the mean over the views of the batch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews import distributed
from twoviews.losses import exact, without_autocast
from twoviews.methods.base import Loss, WithProjector


class AlignUniform(WithProjector):
    """Backbone, projector and the two losses of section 4.

    Args:
        temperature: 1 / t, the width of the Gaussian potential, > 0.
        projector: see `WithProjector`.
    """

    def __init__(self, *, temperature: float, **projector: Any) -> None:
        super().__init__(**projector)
        self.temperature = temperature

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        a, b = (distributed.gather(F.normalize(exact(self.project(x)), dim=1)) for x in views)  # (N, D) each
        alignment = (a - b).square().sum(1).mean()
        uniformity = (self.potential(a) + self.potential(b)) / 2
        return alignment + uniformity, {"alignment": alignment.detach()}

    def potential(self, z: Tensor) -> Tensor:
        """Return the logarithm of the mean Gaussian potential of all pairs of rows."""
        with without_autocast(z.device):  # not in bfloat16
            distances = 2 - 2 * z @ z.T  # squared
            pairs = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
            return torch.logsumexp(torch.where(pairs, -distances / self.temperature, -torch.inf).flatten(), 0) - torch.log(pairs.sum())
