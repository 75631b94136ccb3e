"""The supervised upper bound: the same backbone, views and loop, but cross entropy on the labels.

Differences from the usual baseline: it sees the recipe's views, each of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twoviews.losses import cross_entropy
from twoviews.methods.base import Method


class Supervised(Method):
    """Backbone and a linear classifier.

    Args:
        backbone: (N, C, H, W) to (N, embed_dim).
        embed_dim: its width.
        num_classes: of the data set.
        one_forward: all views of one size in one batch, or one forward a view.
    """

    uses_labels = True

    def __init__(self, *, backbone: nn.Module, embed_dim: int, num_classes: int, one_forward: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(embed_dim, num_classes)
        self.one_forward = one_forward

    def forward(
        self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if labels is None:
            raise ValueError("supervised: expected labels of shape (N,), got none")
        if self.one_forward and len({x.shape for x in views}) == 1:
            logits = self.classifier(self.backbone(torch.cat(views)))  # (V*N, classes)
        else:
            logits = torch.cat([self.classifier(self.backbone(x)) for x in views])
        target = labels.repeat(len(views))
        return cross_entropy(logits, target), {"train_accuracy": (logits.argmax(1) == target).float().mean()}
