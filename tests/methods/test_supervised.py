"""Supervised training: cross entropy of every view with the label of its image."""

from __future__ import annotations

import contract
import torch

from twoviews.losses import cross_entropy


def test_supervised_is_cross_entropy_of_every_view_with_the_images_label() -> None:
    method = contract.tiny("supervised").eval()
    method.classifier.weight.data.mul_(100)  # else all images have almost the same logits, and any order of labels passes
    views, labels, progress = contract.batch("supervised")
    logits = [method.classifier(method.backbone(view)) for view in views]
    loss, extras = method(views, labels, progress)
    torch.testing.assert_close(loss, sum(cross_entropy(part, labels) for part in logits) / len(views))
    hits = torch.cat([part.argmax(1) == labels for part in logits]).float().mean()
    torch.testing.assert_close(extras["train_accuracy"], hits)
