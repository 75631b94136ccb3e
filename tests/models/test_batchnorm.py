"""BatchNorm over sub-batches, and over the batches of all processes (whose gradients `tests/distributed` compares)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from twoviews.models.batchnorm import SplitBatchNorm, SyncBatchNorm, split_batchnorm, sync_batchnorm
from twoviews.models.resnet import ThinResNet


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("compiling", [False, True])
def test_split_batchnorm_equals_forward_passes_of_the_sub_batches(
    splits: int, memory: torch.memory_format, compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    torch.manual_seed(0)
    x = torch.randn(8, 5, 4, 3, dtype=torch.float64).contiguous(memory_format=memory).requires_grad_()
    split = SplitBatchNorm(5, splits).double()
    with torch.no_grad():
        split.weight.uniform_(0.5, 1.5)
        split.bias.normal_()
    plain = nn.BatchNorm2d(5).double()
    plain.load_state_dict(split.state_dict())
    copies = [copy.deepcopy(plain) for _ in range(splits)]
    y = split(x)
    expected = torch.cat([bn(part) for bn, part in zip(copies, x.chunk(splits), strict=True)])
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=memory)
    to = torch.randn_like(y)
    gradient = torch.autograd.grad((y * to).sum(), [x, split.weight, split.bias])
    naive = torch.autograd.grad((expected * to).sum(), [x, *(p for bn in copies for p in (bn.weight, bn.bias))])
    torch.testing.assert_close(gradient[0], naive[0])
    torch.testing.assert_close(gradient[1], sum(naive[1::2]))
    torch.testing.assert_close(gradient[2], sum(naive[2::2]))
    # one update of the running statistics per forward pass, with the mean over the sub-batches
    torch.testing.assert_close(split.running_mean, torch.stack([bn.running_mean for bn in copies]).mean(0))
    torch.testing.assert_close(split.running_var, torch.stack([bn.running_var for bn in copies]).mean(0))
    assert split.num_batches_tracked == 1
    split.eval()
    plain.load_state_dict(split.state_dict(), strict=False)
    torch.testing.assert_close(split(x), plain.eval()(x))


@pytest.mark.parametrize("compiling", [False, True])
def test_split_batchnorm_under_autocast_keeps_its_statistics_in_float32(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    x = torch.randn(8, 3, 4, 4)
    split, plain = SplitBatchNorm(3, 2), nn.BatchNorm2d(3)
    with torch.autocast("cpu", torch.bfloat16):
        y = split(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert split.running_var.dtype == torch.float32
    torch.testing.assert_close(y.float(), torch.cat([plain(part) for part in x.bfloat16().float().chunk(2)]), rtol=0, atol=0.03)


def test_a_compiled_split_batchnorm_reads_its_input_once_for_all_sub_batches() -> None:
    """A loop over sub-batches would have as many graph nodes again for each."""
    counts = []
    for splits in (2, 8):
        graphs: list[torch.fx.GraphModule] = []
        torch._dynamo.reset()
        compiled = torch.compile(SplitBatchNorm(3, splits), backend=lambda graph, _, graphs=graphs: graphs.append(graph) or graph.forward)
        compiled(torch.randn(16, 3, 4, 4))
        counts.append(len(list(graphs[0].graph.nodes)))
    assert counts[0] == counts[1]


def test_a_batch_that_the_splits_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 7 does not divide into 2 parts"):
        SplitBatchNorm(3, 2)(torch.randn(7, 3, 2, 2))


def test_every_batchnorm_of_a_backbone_is_split_and_keeps_its_state() -> None:
    net = ThinResNet(in_channels=3, widths=(4, 8), blocks=(1, 1), stem_stride=1)
    plain = copy.deepcopy(net)
    names = {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    split_batchnorm(net, 4)
    assert {name for name, module in net.named_modules() if isinstance(module, SplitBatchNorm)} == names
    assert len(names) > 4
    assert net.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(8, 3, 8, 8)
    assert torch.equal(net.eval()(x), plain.eval()(x))
    assert not torch.allclose(net.train()(x), plain.train()(x))


def test_one_process_computes_a_synchronised_batchnorm_as_torch_does_and_sub_batches_stay() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), SplitBatchNorm(3, 1))
    plain = copy.deepcopy(net)
    sync_batchnorm(net)
    assert [type(module) for module in net] == [SyncBatchNorm, nn.Linear, SplitBatchNorm]
    x = torch.randn(8, 3)
    assert torch.equal(net(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_split_batchnorm_keeps_dtype_device_options_mode_and_frozen_parameters(kind: type[nn.Module]) -> None:
    net = nn.Sequential(kind(3, eps=1e-3, momentum=0.2, dtype=torch.float64), kind(3, affine=False), kind(3, device="meta"))
    net[0].eval()
    net[0].weight.requires_grad_(False)
    net[0].running_var.fill_(2.0)
    state = net.state_dict(keep_vars=True)
    split_batchnorm(net, 2)
    assert [type(module) for module in net] == [SplitBatchNorm] * 3
    assert [(module.eps, module.momentum, module.training) for module in net][:2] == [(1e-3, 0.2, False), (1e-5, 0.1, True)]
    after = net.state_dict(keep_vars=True)
    assert after.keys() == state.keys()
    assert all(after[key] is tensor for key, tensor in state.items()), "the same tensors: dtype, device, requires_grad"
    shape = (4, 3, 2, 2) if kind is nn.BatchNorm2d else (4, 3)
    assert net[0].train()(torch.randn(shape, dtype=torch.float64)).dtype == torch.float64
    assert net[1](torch.randn(shape)).std().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"momentum": None}])
def test_a_batchnorm_that_cannot_be_split_is_refused(options: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, **options))
    with pytest.raises(ValueError, match="BatchNorm 1: has no running statistics or no momentum: expected both"):
        split_batchnorm(net, 2)
