"""One forward pass for all views, or one for each."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def of_views(module: Callable[[Tensor], Tensor], views: Sequence[Tensor], *, one_forward: bool) -> list[Tensor]:
    """Return what a function computes for each view.

    Args:
        module: the function, from (N, C, H, W) to (N, D).
        views: V tensors (N, C, H, W).
        one_forward: views of one size share a forward pass, hence the statistics of BatchNorm; otherwise each has its own.
    """
    if not one_forward:
        return [module(x) for x in views]
    found: list[Tensor] = list(views)
    for shape in dict.fromkeys(x.shape for x in views):
        same = [i for i, x in enumerate(views) if x.shape == shape]
        out = module(torch.cat([views[i] for i in same]) if len(same) > 1 else views[same[0]])
        for i, part in zip(same, out.chunk(len(same)), strict=True):
            found[i] = part
    return found
