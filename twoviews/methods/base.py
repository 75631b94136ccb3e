"""The contract between the training loop and a method: a module that turns views into a loss."""

from typing import Any

from torch import Tensor, nn

Loss = tuple[Tensor, dict[str, Tensor]]  # 0-dim loss, {name: 0-dim tensor to log}


class Method(nn.Module):
    """Base class of all methods.

    A constructor takes `backbone`, `embed_dim`, if needed `num_classes` and `num_images`, and the hyper-parameters. All are
    keyword-only without defaults: the recipe sets their values.
    """

    uses_labels = False  # True for supervised methods; every table marks them
    backbone: nn.Module

    def modules_to_probe(self) -> dict[str, nn.Module]:
        """Return modules from images (N, C, H, W) to features: `h` (N, embed_dim) and, with a projector, `z` (N, out_dim)."""
        return {"h": self.backbone}

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        """Return the loss of one batch. May write buffers, but no parameters.

        Args:
            views: V tensors (N, C, H, W); their sizes may differ.
            labels: (N,) int64, only for methods that use them.
            progress: 0-dim tensor in [0, 1]: the finished share of the run. A float would recompile at every step.

        Returns:
            (0-dim loss, {name: 0-dim tensor} to log).
        """
        raise AttributeError(f"{type(self).__name__} has no forward")

    def after_step(self, progress: Tensor) -> None:
        """Update what follows the optimiser step, such as a momentum copy."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the groups of parameters for the optimiser; a group may have `constant_lr=True`."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]
