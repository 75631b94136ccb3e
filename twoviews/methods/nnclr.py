"""NNCLR (Dwibedi et al. 2021, https://arxiv.org/abs/2104.14548): a view's positive is the nearest neighbour of another view.

Differences from the paper: more than two views are allowed (mean over ordered pairs). The queue starts with random unit vectors and
holds the projections of the first view of all processes.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews import distributed
from twoviews.losses import exact, info_nce_in_batch
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.forward import of_views
from twoviews.models.heads import mlp
from twoviews.models.momentum import Queue, check_queue


class NNCLR(WithProjector):
    """Backbone, projector, predictor and the queue of projections, the paper's support set (section 3.2).

    Args:
        num_images: in the training split.
        batch_size: N.
        predictor_dims: widths of the predictor's hidden layers.
        temperature: of InfoNCE, > 0.
        queue_size: K, from N to the training images.
        one_forward: all views of one size in one forward pass, or one pass per view (CIFAR recipes).
        projector: see `WithProjector`.

    Raises:
        ValueError: if a value is out of its range.
    """

    def __init__(
        self,
        *,
        num_images: int,
        batch_size: int,
        predictor_dims: Sequence[int],
        temperature: float,
        queue_size: int,
        one_forward: bool,
        **projector: Any,
    ) -> None:
        super().__init__(**projector)
        check_queue(queue_size, batch_size, num_images)
        self.predictor = mlp([projector["out_dim"], *predictor_dims, projector["out_dim"]], hidden_bn=True, output_bn=False)
        self.queue = Queue(queue_size, projector["out_dim"])
        self.temperature, self.one_forward = temperature, one_forward

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        z = of_views(self.project, views, one_forward=self.one_forward)  # V tensors (n, D)
        p = [distributed.gather(exact(x)) for x in of_views(self.predictor, z, one_forward=self.one_forward)]  # V tensors (N, D)
        neighbours = [self.queue.nearest(x) for x in z]
        start = distributed.rows(len(p[0])).start
        pairs = list(permutations(range(len(z)), 2))
        losses = torch.stack([info_nce_in_batch(neighbours[i], p[j], self.temperature, start) for i, j in pairs])
        # important: afterwards, so that no view finds itself
        self.queue.enqueue(F.normalize(distributed.gather(exact(z[0].detach())), dim=1))
        return losses.mean(), {}
