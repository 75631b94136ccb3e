"""The head `mlp`: its widths, where it has norms and biases, and that no ReLU follows the last layer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from twoviews.models.heads import mlp


@pytest.mark.parametrize("dims", [(4, 3), (8, 16, 4), (8, 16, 12, 4)])
@pytest.mark.parametrize("hidden_bn", [True, False])
@pytest.mark.parametrize("output_bn", [True, False])
def test_layers_are_linear_norm_relu_in_this_order(dims: tuple[int, ...], hidden_bn: bool, output_bn: bool) -> None:
    expected: list[tuple[type[nn.Module], Any]] = []
    for width_in, width_out in itertools.pairwise(dims[:-1]):
        expected += [(nn.Linear, (width_in, width_out)), *([(nn.BatchNorm1d, width_out)] if hidden_bn else []), (nn.ReLU, None)]
    expected += [(nn.Linear, (dims[-2], dims[-1])), *([(nn.BatchNorm1d, dims[-1])] if output_bn else [])]

    def described(layer: nn.Module) -> tuple[type[nn.Module], Any]:
        if isinstance(layer, nn.Linear):
            return nn.Linear, (layer.in_features, layer.out_features)
        return type(layer), layer.num_features if isinstance(layer, nn.BatchNorm1d) else None

    head = mlp(dims, hidden_bn=hidden_bn, output_bn=output_bn)
    assert [described(layer) for layer in head] == expected
    assert head(torch.randn(5, dims[0])).shape == (5, dims[-1])


@pytest.mark.parametrize("hidden_bn", [True, False])
@pytest.mark.parametrize("output_bn", [True, False])
def test_a_layer_has_a_bias_exactly_where_no_norm_follows(hidden_bn: bool, output_bn: bool) -> None:
    linears = [layer for layer in mlp((8, 6, 6, 4), hidden_bn=hidden_bn, output_bn=output_bn) if isinstance(layer, nn.Linear)]
    assert [layer.bias is None for layer in linears] == [hidden_bn, hidden_bn, output_bn]


def test_the_output_is_not_rectified() -> None:
    torch.manual_seed(0)
    z = mlp((8, 16, 4), hidden_bn=True, output_bn=False)(torch.randn(64, 8))
    assert (z < 0).any()
    assert (z > 0).any()


def test_the_hidden_layer_is_rectified() -> None:
    head = mlp((1, 1, 1), hidden_bn=False, output_bn=False)
    for layer in (head[0], head[-1]):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    torch.testing.assert_close(head(torch.tensor([[-2.0], [3.0]])), torch.tensor([[0.0], [3.0]]))


@pytest.mark.parametrize("dims", [(), (8,), (8, 0), (0, 8), (8, -1, 4)])
def test_fewer_than_two_widths_or_a_width_below_one_is_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="head"):
        mlp(dims, hidden_bn=True, output_bn=False)
