"""Fine-tuning: a copy of the encoder and a linear layer, trained on labels together. The encoder itself stays as it is."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from twoviews.momentum import SplitBatchNorm
from twoviews.probes.linear import Linear
from twoviews.probes.minibatch import fit, of_views


def finetune(
    module: nn.Module, images: Tensor, labels: Tensor, *, embed_dim: int, seed: int, of: dict[str, Any], **how: Any
) -> tuple[nn.Module, Linear]:
    """Train all weights from where the encoder stands (SimCLR, Chen et al. 2020, appendix B.5), BatchNorm in train mode.

    Args:
        module: (N, C, H, W) to (N, embed_dim); copied.
        images, labels: (N, C, H, W) uint8 and (N,), on the device of the module.
        embed_dim: width of the features.
        seed: of the layer's first weights, the order of the images and their views.
        of: `views`, `make_views`, `dtype` and `autocast`, as `minibatch.on_views` takes them.
        how: `classes`, `schedule`, `max_steps` and `name`, as `minibatch.fit` takes them.

    Returns:
        (the tuned copy in eval mode, the layer on its features).

    Raises:
        ValueError, FloatingPointError: as `minibatch.fit`.
    """
    net = copy.deepcopy(module).train().requires_grad_(True)
    for part in net.modules():
        if isinstance(part, SplitBatchNorm):
            part.splits = 1  # parts are for keys: labels are fitted by the plain net, as from the run's file, and in batches of any size
    layer = fit(of_views(net, images, seed=seed, **of), labels, embed_dim=embed_dim, seed=seed, along=net.parameters(), **how)
    return net.eval().requires_grad_(False), layer
