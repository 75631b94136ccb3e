"""SimSiam (Chen & He 2021, https://arxiv.org/abs/2011.10566): predict one view's projection from the other's, without negatives.

Difference from the paper: the projector's widths are hyper-parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.methods.base import Loss, Method
from twoviews.models.heads import mlp


class SimSiam(Method):
    """Backbone, projector f and predictor h, as in the paper's algorithm 1.

    Args:
        backbone: (N, C, H, W) to (N, embed_dim).
        embed_dim: width of its output.
        hidden_dims: widths of the projector's hidden layers.
        out_dim: D, the projector's output; the predictor's hidden layer has D / 4.
        hidden_bn, output_bn: BatchNorm in the projector.
    """

    def __init__(
        self, *, backbone: nn.Module, embed_dim: int, hidden_dims: Sequence[int], out_dim: int, hidden_bn: bool, output_bn: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([embed_dim, *hidden_dims, out_dim], hidden_bn=hidden_bn, output_bn=output_bn)
        self.predictor = mlp([out_dim, out_dim // 4, out_dim], hidden_bn=True, output_bn=False)

    def modules_to_probe(self) -> dict[str, nn.Module]:
        return {"h": self.backbone, "z": nn.Sequential(self.backbone, self.projector)}

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        a, b = (self.projector(self.backbone(x)) for x in views)  # z: (N, D)
        loss = self.distance(self.predictor(a), b) / 2 + self.distance(self.predictor(b), a) / 2
        return loss, {"std": F.normalize(a.detach(), dim=1).std(0).mean()}

    @staticmethod
    def distance(p: Tensor, z: Tensor) -> Tensor:
        """Return the negative cosine similarity of p and z (eq. 1), without gradient through z."""
        p, z = (x if x.dtype == torch.float64 else x.float() for x in (p, z.detach()))  # not in bfloat16
        return -F.cosine_similarity(p, z, dim=1).mean()

    def param_groups(self) -> list[dict[str, object]]:
        encoder = [*self.backbone.parameters(), *self.projector.parameters()]
        return [{"params": encoder}, {"params": list(self.predictor.parameters()), "constant_lr": True}]  # section 4.1: fixed rate
