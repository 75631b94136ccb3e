"""The contract between the training loop and a method: a module that turns views into a loss."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from twoviews.models.heads import mlp

Loss = tuple[Tensor, dict[str, Tensor]]  # 0-dim loss, {name: 0-dim tensor to log}


class Method(nn.Module):
    """Base class of all methods.

    A constructor takes `backbone`, `embed_dim`, if needed `num_classes`, `num_images`, `num_views` and `num_full_views` (of the largest
    size), and the hyper-parameters. All are keyword-only without defaults: the recipe sets their values.
    """

    uses_labels = False  # True for supervised methods; every table marks them
    least_views = 2
    backbone: nn.Module

    def modules_to_probe(self) -> dict[str, nn.Module]:
        """Return modules from images (N, C, H, W) to features: `h` (N, embed_dim) and, with a projector, `z` (N, out_dim).

        The module of `h` is evaluated and saved. It may be another than the trained backbone, such as a teacher's.
        """
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

    def before_step(self, progress: Tensor) -> None:
        """Change gradients between the backward pass and the optimiser step, for example to freeze a layer at first."""

    def after_step(self, progress: Tensor) -> None:
        """Update what follows the optimiser step, such as a momentum copy."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the groups of parameters for the optimiser; a group may have `constant_lr=True`."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


class WithProjector(Method):
    """A method with a backbone and a projector.

    Args:
        backbone: (N, C, H, W) to h (N, embed_dim).
        embed_dim: dimensions of h.
        hidden_dims: widths of the projector's hidden layers.
        out_dim: D, the dimensions of z.
        hidden_bn, output_bn: BatchNorm in the projector.
    """

    def __init__(
        self, *, backbone: nn.Module, embed_dim: int, hidden_dims: Sequence[int], out_dim: int, hidden_bn: bool, output_bn: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([embed_dim, *hidden_dims, out_dim], hidden_bn=hidden_bn, output_bn=output_bn)

    def modules_to_probe(self) -> dict[str, nn.Module]:
        return {"h": self.backbone, "z": nn.Sequential(self.backbone, self.projector)}

    def project(self, x: Tensor) -> Tensor:
        """Return z (N, D) of images."""
        z: Tensor = self.projector(self.backbone(x))
        return z
