"""Projectors and predictors: all heads are built by `mlp`."""

import itertools
from collections.abc import Sequence

from torch import nn


def mlp(dims: Sequence[int], *, hidden_bn: bool, output_bn: bool) -> nn.Sequential:
    """Return linear layers with ReLU between them (the projection head g of SimCLR, Chen et al. 2020, section 2.1).

    Args:
        dims: widths from input to output, at least two; (512, 2048, 128) has one hidden layer.
        hidden_bn: BatchNorm before each ReLU.
        output_bn: BatchNorm after the last layer.

    Returns:
        A module from (N, dims[0]) to (N, dims[-1]). A layer before BatchNorm has no bias, because BatchNorm would cancel it.

    Raises:
        ValueError: if there are fewer than two widths or one is below 1.
    """
    if len(dims) < 2 or min(dims) < 1:
        raise ValueError(f"a head needs at least two widths >= 1, got {list(dims)}")
    layers: list[nn.Module] = []
    for i, (wide_in, wide_out) in enumerate(itertools.pairwise(dims)):
        last = i == len(dims) - 2
        bn = output_bn if last else hidden_bn
        layers.append(nn.Linear(wide_in, wide_out, bias=not bn))
        if bn:
            layers.append(nn.BatchNorm1d(wide_out))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
