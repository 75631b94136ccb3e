"""Supervised training, for comparison: the same backbone, views and loop, but cross entropy on the labels.

Difference from the usual baseline: it trains on every view of the recipe.
"""

import torch
from torch import Tensor, nn

from twoviews.losses import cross_entropy
from twoviews.methods.base import Loss, Method


class Supervised(Method):
    """Backbone and a linear classifier.

    Args:
        backbone: (N, C, H, W) to (N, embed_dim).
        embed_dim: dimensions of h.
        num_classes: of the data set.
        one_forward: all views in one forward pass if their sizes are equal, or one pass per view.
    """

    uses_labels = True

    def __init__(self, *, backbone: nn.Module, embed_dim: int, num_classes: int, one_forward: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(embed_dim, num_classes)
        self.one_forward = one_forward

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        if labels is None:
            raise ValueError("supervised: expected labels of shape (N,), got none")
        if self.one_forward and len({x.shape for x in views}) == 1:
            logits = self.classifier(self.backbone(torch.cat(views)))  # (V*N, classes)
        else:
            logits = torch.cat([self.classifier(self.backbone(x)) for x in views])
        target = labels.repeat(len(views))
        return cross_entropy(logits, target), {"train_accuracy": (logits.argmax(1) == target).float().mean()}
