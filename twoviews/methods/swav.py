"""SwAV (Caron et al. 2020, https://arxiv.org/abs/2006.09882): predict the prototypes that another view of the image is assigned to.

Views of the largest size are assigned and predict; smaller ones (multi-crop, section 3.3) only predict. Difference from the paper: the
queue fills from the first step, and counts from `queue_from` on.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twoviews import distributed
from twoviews.losses import cross_entropy, exact, sinkhorn
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.forward import of_views
from twoviews.models.heads import Prototypes
from twoviews.models.momentum import Queue, check_queue


class SwAV(WithProjector):
    """Backbone, projector, prototypes and a queue of projections (algorithm 1).

    Args:
        num_images, num_full_views, batch_size, prototypes: training images, views of the largest size, N and K.
        temperature: of the prediction, > 0; sinkhorn_temperature, sinkhorn_iterations: of the assignments (in the paper 0.05 and 3).
        queue_size: projections of earlier images that are assigned too, so that a small batch can use all prototypes; None: none.
        queue_from, freeze_until: shares of the run from which the queue counts, and until which the prototypes are frozen.
        one_forward, projector: all views of one size in one forward pass (authors' code); see `WithProjector`.
    """

    def __init__(
        self,
        *,
        num_images: int,
        num_full_views: int,
        batch_size: int,
        prototypes: int,
        temperature: float,
        sinkhorn_temperature: float,
        sinkhorn_iterations: int,
        queue_size: int | None,
        queue_from: float,
        freeze_until: float,
        one_forward: bool,
        **projector: Any,
    ) -> None:
        super().__init__(**projector)
        check_queue(queue_size or batch_size, batch_size, num_images)
        self.prototypes = Prototypes(projector["out_dim"], prototypes, weight_norm=False)
        self.queue = Queue(queue_size, num_full_views * projector["out_dim"]) if queue_size else None
        self.temperature, self.queue_from, self.freeze_until, self.one_forward = temperature, queue_from, freeze_until, one_forward
        self.sinkhorn = partial(sinkhorn, temperature=sinkhorn_temperature, iterations=sinkhorn_iterations)

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        z = of_views(self.project, views, one_forward=self.one_forward)  # V tensors (n, D)
        full = [i for i, x in enumerate(views) if x.shape[-1] == max(y.shape[-1] for y in views)]
        codes = self._codes([distributed.gather(exact(z[i].detach())) for i in full], progress)  # (N, K) for each full view
        own, scores = distributed.rows(len(codes[0])), [self.prototypes(x) / self.temperature for x in z]
        losses = [cross_entropy(scores[j], q[own]) for i, q in zip(full, codes, strict=True) for j in range(len(z)) if j != i]
        return torch.stack(losses).mean(), {}

    @torch.no_grad()
    def _codes(self, z: list[Tensor], progress: Tensor | None) -> list[Tensor]:
        """Return the assignments (N, K) of the projections (N, D) of each full view, and put the projections into the queue."""
        if self.queue is None:
            return [self.sinkhorn(self.prototypes(x)) for x in z]
        counted = torch.arange(len(z[0]) + len(self.queue.keys), device=z[0].device) < len(z[0])
        counted = counted | (progress is None or progress >= self.queue_from)
        rows = [torch.cat([x.to(old.dtype), old]) for x, old in zip(z, self.queue.keys.chunk(len(z), 1), strict=True)]
        codes = [self.sinkhorn(self.prototypes(x), counted=counted)[: len(z[0])] for x in rows]
        self.queue.enqueue(torch.cat([nn.functional.normalize(x, dim=1) for x in z], 1))
        return codes

    def before_step(self, progress: Tensor) -> None:
        self.prototypes.before_step(progress, frozen_until=self.freeze_until)

    def after_step(self, progress: Tensor) -> None:
        self.prototypes.after_step(progress, frozen_until=self.freeze_until)
        self.prototypes.normalize()
