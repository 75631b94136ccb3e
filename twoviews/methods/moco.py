"""MoCo v2 (Chen et al. 2020, https://arxiv.org/abs/2003.04297; MoCo: He et al. 2020, https://arxiv.org/abs/1911.05722).

The loss classifies the key of the query's own image among the keys of earlier images. A momentum copy of the encoder
computes the keys. Differences from the papers: BatchNorm over sub-batches replaces BatchNorm on many devices, so that any
number of processes computes the same, and a fixed reordering of the keys replaces the random shuffle. The symmetric loss (each
view is query once) is the one of MoCo's CIFAR demo, as the mean of both halves (the demo sums them).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews import distributed
from twoviews.losses import info_nce
from twoviews.methods.base import Loss, Method
from twoviews.models.batchnorm import split_batchnorm
from twoviews.models.heads import mlp
from twoviews.models.momentum import Queue, ema_update, momentum_copy, spread_order


class MoCo(Method):
    """Backbone, projector, their momentum copy and the queue (algorithm 1 of He et al. 2020).

    Args:
        backbone: (N, C, H, W) to (N, embed_dim).
        embed_dim: dimensions of h.
        num_images: in the training split; a longer queue would always hold an old key of the query's own image.
        batch_size: N.
        drop_last: whether the last, short batch of an epoch is left out.
        hidden_dims: widths of the projector's hidden layers.
        out_dim: D, the projector's output.
        hidden_bn, output_bn: BatchNorm in the projector.
        temperature: of InfoNCE, > 0.
        queue_size: K, at least the keys of one step.
        ema_decay: m of the momentum copy.
        symmetric: each of the two views is query once and key once.
        bn_splits: S, sub-batches with BatchNorm statistics of their own; divides N, and the last, short batch if it is kept. The
            processes share them equally; 1 means one for each process.

    Raises:
        ValueError: if a value is out of its range or does not fit another.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        embed_dim: int,
        num_images: int,
        batch_size: int,
        drop_last: bool,
        hidden_dims: Sequence[int],
        out_dim: int,
        hidden_bn: bool,
        output_bn: bool,
        temperature: float,
        queue_size: int,
        ema_decay: float,
        symmetric: bool,
        bn_splits: int,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature: expected a number above 0, got {temperature}")
        if not 0 <= ema_decay <= 1:
            raise ValueError(f"ema_decay: expected a number in [0, 1], got {ema_decay}")
        processes = distributed.size()
        if bn_splits > 1 and bn_splits % processes:
            raise ValueError(f"bn_splits={bn_splits}: {processes} processes cannot share them: choose a multiple of {processes}, or 1")
        for size in (batch_size, 0 if drop_last else num_images % batch_size):
            if size % bn_splits:
                raise ValueError(f"bn_splits={bn_splits}: does not divide a batch of {size}: choose a divisor, or 1")
        least = batch_size * (1 + symmetric)
        if not least <= queue_size <= num_images:
            raise ValueError(f"queue_size={queue_size}: expected {least} (the keys of a step) to {num_images} (the images)")
        self.backbone = backbone
        self.projector = mlp([embed_dim, *hidden_dims, out_dim], hidden_bn=hidden_bn, output_bn=output_bn)
        for module in (self.backbone, self.projector) if bn_splits > 1 else ():
            split_batchnorm(module, bn_splits // processes)  # the part of this process
        self.momentum_encoder = momentum_copy(nn.Sequential(self.backbone, self.projector))
        self.queue = Queue(queue_size, out_dim)
        self.temperature, self.ema_decay, self.symmetric, self.bn_splits = temperature, ema_decay, symmetric, bn_splits

    def modules_to_probe(self) -> dict[str, nn.Module]:
        return {"h": self.backbone, "z": nn.Sequential(self.backbone, self.projector)}

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        if len(views) != 2:
            raise ValueError(f"moco: expected two views, a query and a key, got {len(views)}: give view_sizes two entries")
        a, b = views
        negatives = self.queue.keys.clone()  # the backward pass needs the keys before this step's are written
        keys_b = self._keys(b)
        own = distributed.rows(len(keys_b))
        loss, accuracy = info_nce(self._query(a), keys_b[own], negatives, self.temperature)
        keys = keys_b
        if self.symmetric:
            keys_a = self._keys(a)
            other, others = info_nce(self._query(b), keys_a[own], negatives, self.temperature)
            loss, accuracy, keys = (loss + other) / 2, (accuracy + others) / 2, torch.cat([keys_a, keys_b])
        # important: after both halves, so that no query finds the key of its own image among the negatives
        self.queue.enqueue(keys)
        return loss, {"key_accuracy": accuracy}

    def _query(self, x: Tensor) -> Tensor:
        z: Tensor = self.projector(self.backbone(x))
        return z

    @torch.no_grad()
    def _keys(self, x: Tensor) -> Tensor:
        """Return the keys of all processes, (N, D) of unit length, in the order of the images. See `spread_order`."""
        x = distributed.gather(x)  # (N, C, H, W)
        n, splits = len(x), max(self.bn_splits, distributed.size())
        z = self.momentum_encoder(x[spread_order(n, splits, x.device)[distributed.rows(n)]])
        keys = distributed.gather(F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1))
        return keys[spread_order(n, n // splits, x.device)]

    def after_step(self, progress: Tensor) -> None:
        ema_update(self.momentum_encoder[0], self.backbone, self.ema_decay)
        ema_update(self.momentum_encoder[1], self.projector, self.ema_decay)
