"""The contract between the loop and a method: a module that turns views into a loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Method(nn.Module):
    """What a method offers. Its constructor takes `backbone`, `embed_dim`, where it needs them `num_classes` and
    `num_images`, and its hyper-parameters, all keyword-only and without defaults: their values stand in the recipe's card."""

    uses_labels = False  # True only for the supervised bound and its kin; every table marks it
    backbone: nn.Module

    def features(self) -> dict[str, nn.Module]:
        """Modules from images (N, C, H, W) to what probes may read: `h` (N, embed_dim) and, if there is a projector, `z` (N, out_dim)."""
        return {"h": self.backbone}

    def forward(
        self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch. May write buffers, never parameters.

        Args:
            views: V tensors (N, C, H, W); their sizes may differ.
            labels: (N,) int64, only for methods that use them.
            progress: 0-dim tensor in [0, 1], how much of the run is done; a float would recompile every step.

        Returns:
            (0-dim loss, {name: 0-dim tensor} worth logging).
        """
        raise AttributeError(f"{type(self).__name__} has no forward")

    def after_step(self, progress: Tensor) -> None:
        """What follows a real optimiser step: a momentum update, say."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser; a group may carry `constant_lr=True`."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]
