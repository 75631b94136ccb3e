"""Fine-tuning: it trains a copy, as a loop written out by hand does, and the encoder does not change."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from probe_helpers import FIT, SGD, order, some_images, trained_net, view_options
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.models.batchnorm import SplitBatchNorm, split_batchnorm
from twoviews.probes.finetune import finetune
from twoviews.probes.minibatch import fit


def test_fine_tuning_trains_a_copy_and_leaves_the_encoder_bit_identical() -> None:
    net, images, labels = trained_net(), some_images(64), torch.arange(64) % 4
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    options = view_options()
    tuned, layer = finetune(net, images, labels, embed_dim=16, view_options=options, schedule=SGD, **FIT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    moved = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(before), "every weight and every statistic of BatchNorm is trained"
    assert not any(m.training for m in tuned.modules())
    assert layer.weight.shape == (4, 16)
    again, _ = finetune(net, images, labels, embed_dim=16, view_options=options, schedule=SGD, **FIT)
    assert all(torch.equal(a, b) for a, b in zip(tuned.state_dict().values(), again.state_dict().values(), strict=True))


def test_fine_tuning_equals_the_loop_written_by_hand() -> None:
    net, images, labels = trained_net(), some_images(32), torch.arange(32) % 4
    options = view_options()
    tuned, layer = finetune(net, images, labels, embed_dim=16, view_options=options, schedule=replace(SGD, epochs=2), **FIT)
    mine = copy.deepcopy(net).train()
    torch.manual_seed(3)
    head = nn.Linear(16, 4)
    optimizer = torch.optim.SGD([*head.parameters(), *mine.parameters()], 0.2, momentum=0.9, nesterov=True)
    for step, rate in enumerate((0.2, 0.001 + 0.199 / 2)):
        optimizer.param_groups[0]["lr"] = rate
        rows = order(step, 32)
        (x,) = options["views"](images[rows], options["views"].draw(3, step, 32))
        optimizer.zero_grad()
        F.cross_entropy(head(mine(x.contiguous(memory_format=torch.channels_last))), labels[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight, head.weight)
    for name, tensor in mine.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], tensor)


def test_fine_tuning_mocos_encoder_equals_fine_tuning_the_network_without_split_batchnorm() -> None:
    """The last batch has 4 images, which 8 sub-batches do not divide."""
    plain, images, labels = trained_net(), some_images(36), torch.arange(36) % 4
    options = view_options()
    split = copy.deepcopy(plain)
    split_batchnorm(split, 8)
    schedule = replace(SGD, batch_size=32, drop_last=False)
    tuned = [finetune(net, images, labels, embed_dim=16, view_options=options, schedule=schedule, **FIT) for net in (plain, split)]
    for (name, a), b in zip(tuned[0][0].state_dict().items(), tuned[1][0].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert {m.splits for m in split.modules() if isinstance(m, SplitBatchNorm)} == {8}


def test_fine_tuning_has_no_batch_of_one_image() -> None:
    """BatchNorm has no statistics of one image. A probe on a frozen network needs none and keeps that batch."""
    images, labels = some_images(33), torch.arange(33) % 4
    sizes: list[int] = []
    net = nn.Parameter(torch.ones(16))
    schedule = replace(SGD, batch_size=32, drop_last=False, epochs=2)

    def features(rows: Tensor, step: int) -> Tensor:
        sizes.append(len(rows))
        return images[rows].float().flatten(1)[:, :16] / 255 * net

    fit(features, labels, embed_dim=16, schedule=schedule, backbone_parameters=[net], **FIT)
    fit(features, labels, embed_dim=16, schedule=schedule, **FIT)
    assert sizes == [32, 32, 32, 1, 32, 1]
