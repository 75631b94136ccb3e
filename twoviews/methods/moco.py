"""MoCo v2 (Chen et al. 2020, https://arxiv.org/abs/2003.04297; MoCo: He et al. 2020, https://arxiv.org/abs/1911.05722).

The loss classifies the key of the query's own image among the keys of earlier images. A momentum copy of the encoder
computes the keys. Differences from the papers: BatchNorm over sub-batches replaces BatchNorm on many devices, so that any
number of processes computes the same, and a fixed reordering of the keys replaces the random shuffle. The symmetric loss (each
view is query once) is that of MoCo's CIFAR demo, as a mean (the demo sums both halves). More than two views are allowed.
"""

from typing import Any

import torch
from torch import Tensor, nn

from twoviews import distributed
from twoviews.losses import info_nce
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.batchnorm import own_splits, split_batchnorm
from twoviews.models.momentum import Queue, check_queue, ema_update, momentum_copy, shuffled_keys


class MoCo(WithProjector):
    """Backbone, projector, their momentum copy and the queue (algorithm 1 of He et al. 2020).

    Args:
        num_images: in the training split; a longer queue would always hold an old key of the query's own image.
        num_views: V.
        batch_size: N.
        drop_last: whether the last, short batch of an epoch is left out.
        temperature: of InfoNCE, > 0.
        queue_size: K, at least the keys of one step.
        ema_decay: m of the momentum copy.
        symmetric: each view is query once and key once; otherwise the first is the query and the others are keys.
        bn_splits: S, sub-batches with BatchNorm statistics of their own; divides N, and the last, short batch if it is kept. The
            processes share them equally; 1 means one for each process.
        projector: see `WithProjector`.

    Raises:
        ValueError: if a value does not fit another.
    """

    def __init__(
        self,
        *,
        num_images: int,
        num_views: int,
        batch_size: int,
        drop_last: bool,
        temperature: float,
        queue_size: int,
        ema_decay: float,
        symmetric: bool,
        bn_splits: int,
        **projector: Any,
    ) -> None:
        super().__init__(**projector)
        check_queue(queue_size, batch_size * (num_views if symmetric else num_views - 1), num_images)
        splits = own_splits(bn_splits, batch_size, 0 if drop_last else num_images % batch_size)
        for module in (self.backbone, self.projector) if bn_splits > 1 else ():
            split_batchnorm(module, splits)
        self.momentum_encoder = momentum_copy(nn.Sequential(self.backbone, self.projector))
        self.queue = Queue(queue_size, projector["out_dim"])
        self.temperature, self.ema_decay, self.symmetric, self.bn_splits = temperature, ema_decay, symmetric, bn_splits

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        negatives = self.queue.keys.clone()  # the backward pass needs the keys before this step's are written
        asking, answering = (range(len(views)),) * 2 if self.symmetric else (range(1), range(1, len(views)))
        keys = {j: shuffled_keys(self.momentum_encoder, views[j], self.bn_splits) for j in answering}  # (N, D) of all processes
        own, found = distributed.rows(len(keys[1])), []
        for i in asking:
            query = self.project(views[i])
            found += [info_nce(query, keys[j][own], negatives, self.temperature) for j in answering if j != i]
        # important: after all queries, so that none finds the key of its own image among the negatives
        self.queue.enqueue(torch.cat(list(keys.values())))
        losses, right = zip(*found, strict=True)
        return torch.stack(losses).mean(), {"key_accuracy": torch.stack(right).mean()}

    def after_step(self, progress: Tensor) -> None:
        ema_update(self.momentum_encoder[0], self.backbone, self.ema_decay)
        ema_update(self.momentum_encoder[1], self.projector, self.ema_decay)
