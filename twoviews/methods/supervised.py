"""Supervised training, for comparison: the same backbone, views and loop, but cross entropy on the labels.

Difference from the usual baseline: it trains on every view of the recipe.
"""

import torch
from torch import Tensor, nn

from twoviews.losses import cross_entropy
from twoviews.methods.base import Loss, Method
from twoviews.models.forward import of_views


class Supervised(Method):
    """Backbone and a linear classifier.

    Args:
        backbone: (N, C, H, W) to (N, embed_dim).
        embed_dim: dimensions of h.
        num_classes: of the data set.
        one_forward: all views of one size in one forward pass, or one pass per view.
    """

    uses_labels = True
    least_views = 1

    def __init__(self, *, backbone: nn.Module, embed_dim: int, num_classes: int, one_forward: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(embed_dim, num_classes)
        self.one_forward = one_forward

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        if labels is None:
            raise ValueError("supervised: expected labels of shape (N,), got none")
        logits = self.classifier(torch.cat(of_views(self.backbone, views, one_forward=self.one_forward)))  # (V*N, classes)
        target = labels.repeat(len(views))
        return cross_entropy(logits, target), {"train_accuracy": (logits.argmax(1) == target).float().mean()}
