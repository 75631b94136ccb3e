"""Fine-tuning: train a copy of the encoder together with a linear layer on labels. The encoder itself does not change."""

import copy
from typing import Any

from torch import Tensor, nn

from twoviews.models.batchnorm import SplitBatchNorm
from twoviews.probes.linear import Linear
from twoviews.probes.minibatch import fit, of_views


def finetune(
    module: nn.Module, images: Tensor, labels: Tensor, *, embed_dim: int, seed: int, view_options: dict[str, Any], **options: Any
) -> tuple[nn.Module, Linear]:
    """Train all weights, starting from the encoder's (SimCLR, Chen et al. 2020, appendix B.5), with BatchNorm in train mode.

    Args:
        module: (N, C, H, W) to (N, embed_dim); copied.
        images, labels: (N, C, H, W) uint8 and (N,), on the device of the module.
        embed_dim: dimensions of the features.
        seed: of the layer's initial weights, the order of the images and their views.
        view_options: `views`, `make_views`, `dtype` and `autocast`, as in `minibatch.on_views`.
        options: `classes`, `schedule`, `max_steps` and `name`, as in `minibatch.fit`.

    Returns:
        (the tuned copy in eval mode, the layer on its features).

    Raises:
        ValueError, FloatingPointError: as `minibatch.fit`.
    """
    net = copy.deepcopy(module).train().requires_grad_(True)
    for part in net.modules():
        if isinstance(part, SplitBatchNorm):
            part.splits = 1  # sub-batches are for MoCo's keys; the run's file has plain BatchNorm, and any batch size must work
    features = of_views(net, images, seed=seed, **view_options)
    layer = fit(features, labels, embed_dim=embed_dim, seed=seed, backbone_parameters=net.parameters(), **options)
    return net.eval().requires_grad_(False), layer
