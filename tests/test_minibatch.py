"""Linear probes trained by minibatches: against a loop written out by hand, and the backbone stays as it is."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_probes import blobs, some_images, trained_net
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.backbones import ThinResNet
from twoviews.momentum import SplitBatchNorm, split_batchnorm
from twoviews.probes import minibatch
from twoviews.probes.finetune import finetune
from twoviews.probes.minibatch import ORDER, Schedule, crop_and_flip_views, fit, on_features, on_views
from twoviews.views import philox

HOW: dict[str, Any] = {"classes": 4, "seed": 3, "max_steps": None, "name": "test"}
ADAM = Schedule("adam", 0.1, epochs=4, batch_size=32)
SGD = Schedule("sgd", 0.2, epochs=4, batch_size=32, floor=0.001, unit="step", drop_last=True)


def order(epoch: int, n: int) -> Tensor:
    return torch.from_numpy(np.argsort(philox(3, epoch, ORDER, n), kind="stable"))


def by_hand(features: Tensor, labels: Tensor, how: Schedule) -> tuple[Tensor, Tensor]:
    """The same probe with torch's own optimiser and scheduler arithmetic written out."""
    torch.manual_seed(3)
    layer = nn.Linear(features.shape[1], 4)
    if how.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(layer.parameters(), how.learning_rate, weight_decay=how.weight_decay)
    else:
        optimizer = torch.optim.SGD(layer.parameters(), how.learning_rate, momentum=0.9, nesterov=True, weight_decay=how.weight_decay)
    n = len(labels)
    batches = [range(i, min(i + how.batch_size, n)) for i in range(0, n, how.batch_size)]
    batches = [b for b in batches if len(b) == how.batch_size or not how.drop_last]
    for epoch in range(how.epochs):
        rows = order(epoch, n)
        for i, batch in enumerate(batches):
            done = epoch / how.epochs if how.unit == "epoch" else (epoch * len(batches) + i) / (how.epochs * len(batches))
            rate = how.floor + (how.learning_rate - how.floor) * (1 + math.cos(math.pi * done)) / 2
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            F.cross_entropy(layer(features[rows[batch]]), labels[rows[batch]]).backward()
            optimizer.step()
    return layer.weight.detach(), layer.bias.detach()


@pytest.mark.parametrize(
    "how", [ADAM, SGD, Schedule("adam", 0.01, epochs=3, batch_size=1000, weight_decay=1e-2)], ids=["adam", "sgd", "one"]
)
def test_a_probe_is_what_the_loop_by_hand_gives(how: Schedule) -> None:
    features, labels = blobs(150, 6, 4, seed=0, dtype=torch.float32)  # four whole batches and a short one
    probe = on_features(features, labels, schedule=how, **HOW)
    weight, bias = by_hand(features, labels, how)
    torch.testing.assert_close(probe.weight, weight)
    torch.testing.assert_close(probe.bias, bias)


def test_the_seed_decides_the_probe_and_nothing_else_moves() -> None:
    features, labels = blobs(100, 6, 4, seed=0, dtype=torch.float32)
    state = torch.random.get_rng_state()
    first, again = (on_features(features, labels, schedule=ADAM, **HOW) for _ in range(2))
    other = on_features(features, labels, schedule=ADAM, **{**HOW, "seed": 4})
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_max_steps_cuts_without_changing_the_schedule() -> None:
    features, labels = blobs(96, 6, 4, seed=0, dtype=torch.float32)
    asked: list[tuple[int, Tensor]] = []

    def seen(rows: Tensor, step: int) -> Tensor:
        asked.append((step, rows))
        return features[rows]

    whole = fit(seen, labels, embed_dim=6, schedule=ADAM, **HOW)
    steps = len(asked)
    cut = fit(seen, labels, embed_dim=6, schedule=ADAM, **{**HOW, "max_steps": 2})
    assert steps == 12
    assert [step for step, _ in asked[steps:]] == [0, 1]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(asked[:2], asked[steps:], strict=True))
    assert not torch.equal(whole.weight, cut.weight)
    for epoch in range(4):
        assert sorted(torch.cat([rows for step, rows in asked[:steps] if step // 3 == epoch]).tolist()) == list(range(96))


def test_a_batch_larger_than_the_set_is_refused_where_short_ones_are_left_out() -> None:
    features, labels = blobs(20, 6, 4, seed=0, dtype=torch.float32)
    with pytest.raises(ValueError, match="20 images are less than a batch of 32"):
        on_features(features, labels, schedule=SGD, **HOW)
    on_features(features, labels, schedule=ADAM, **HOW)


def test_a_rate_that_diverges_is_said() -> None:
    features, labels = blobs(64, 6, 4, seed=0, dtype=torch.float32)
    with pytest.raises(FloatingPointError, match="try a lower one"):
        on_features(features * 1e30, labels, schedule=Schedule("sgd", 1e30, epochs=3, batch_size=32), **HOW)


def test_it_trains_inside_no_grad_too() -> None:
    features, labels = blobs(200, 8, 4, seed=0, apart=8.0, dtype=torch.float32)
    with torch.no_grad():
        probe = on_features(features, labels, schedule=ADAM, **HOW)
    assert probe.accuracy(features, labels) > 0.98
    assert not probe.weight.requires_grad


# --- on augmented images --------------------------------------------------------------------------------------------


def on_images(module: nn.Module, images: Tensor, labels: Tensor, **more: Any) -> Any:
    views = crop_and_flip_views((3, 8, 8), crop_scale=(0.2, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3)
    given = {"dtype": torch.float32, "autocast": contextlib.nullcontext, "embed_dim": 16, "schedule": ADAM, **HOW, **more}
    return on_views(module, images, labels, views=views, make_views=given.pop("make_views", views), **given)


@pytest.mark.parametrize("cached", [None, 2])
def test_the_frozen_backbone_is_bit_identical_after_an_augmented_probe(cached: int | None) -> None:
    """The first seed's fault: it trained the whole net and moved BatchNorm's statistics."""
    net, images = trained_net(), some_images(64)
    labels = torch.arange(64) % 4
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    on_images(net, images, labels, schedule=SGD, cached=cached)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("cached", [None, 2])
def test_the_backbone_is_in_eval_mode_and_without_a_graph_while_the_probe_trains(cached: int | None) -> None:
    seen = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = ThinResNet(in_channels=3, widths=(8, 16), blocks=(1, 1), stem_stride=1)

        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, self.net.training, torch.is_grad_enabled(), x.requires_grad))
            return self.net(x)

    module = Watched().train()
    on_images(module, some_images(64), torch.arange(64) % 4, cached=cached)
    assert set(seen) == {(False, False, False, False)}
    assert module.training


def test_every_step_sees_new_crops_and_flips_and_untouched_colours() -> None:
    shown: list[Tensor] = []

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 16)

        def forward(self, x: Tensor) -> Tensor:
            shown.append(x.clone())
            return self.layer(x.mean((2, 3)))

    colours = torch.randint(256, (32, 3, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    flat = colours.expand(32, 3, 8, 8).contiguous()  # whatever is cut out of one colour is that colour
    on_images(Mean(), flat, torch.arange(32) % 4)
    assert len(shown) == 4
    for step, x in enumerate(shown):
        expected = (colours[order(step, 32)].float() / 255 - 0.5) / 0.25
        torch.testing.assert_close(x, expected.expand(-1, -1, 8, 8), rtol=0, atol=1e-5)
    drawn: list[Tensor] = []
    views = crop_and_flip_views((3, 8, 8), crop_scale=(0.2, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3)

    def recorded(images: Tensor, u: Tensor) -> list[Tensor]:
        drawn.append(u)
        return views(images, u)

    on_images(Mean(), flat, torch.arange(32) % 4, make_views=recorded)
    assert [tuple(u.shape[:2]) for u in drawn] == [(1, 32)] * 4
    assert not any(torch.isclose(a, b, atol=1e-6).any(2).all() for a, b in itertools.combinations(drawn, 2))
    assert len({u[0, i].sum().item() for u in drawn for i in range(32)}) == 4 * 32, "numbers of their own for each image and step"


def test_cached_views_are_made_once_and_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sets of views in chunks of 20, four epochs: sets 0, 1, 2 and 0 again."""
    monkeypatch.setattr(minibatch, "CHUNK", 20)
    net, images, labels = trained_net(), some_images(50), torch.arange(50) % 4
    views = crop_and_flip_views((3, 8, 8), crop_scale=(0.2, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3)
    made = []

    def recorded(images: Tensor, u: Tensor) -> list[Tensor]:
        made.append(views(images, u)[0])
        return [made[-1]]

    probe = on_images(net, images, labels, make_views=recorded, cached=3)
    assert [len(x) for x in made] == 3 * [20, 20, 10]
    sets = [torch.cat(made[3 * i : 3 * i + 3]) for i in range(3)]
    assert not any(torch.isclose(a, b).all((1, 2, 3)).any() for a, b in itertools.combinations(sets, 2)), "new crops of every image"
    with torch.no_grad():
        net.eval()
        cache = [net(x).half().float() for x in sets]
    expected = fit(lambda rows, step: cache[step // 2 % 3][rows], labels, embed_dim=16, schedule=ADAM, **HOW)
    torch.testing.assert_close(probe.weight, expected.weight, rtol=1e-4, atol=1e-5)


def test_no_more_views_are_cached_than_are_taken() -> None:
    how = Schedule("adam", 0.1, epochs=10, batch_size=30)  # four steps an epoch of 100
    assert [how.sets(100, max_steps, 16) for max_steps in (None, 40, 39, 5, 4, 1)] == [10, 10, 10, 2, 1, 1]
    assert how.sets(100, None, 4) == 4


def test_fine_tuning_trains_a_copy_and_leaves_the_encoder_bit_identical() -> None:
    net, images, labels = trained_net(), some_images(64), torch.arange(64) % 4
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    views = crop_and_flip_views((3, 8, 8), crop_scale=(0.2, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3)
    of = {"views": views, "make_views": views, "dtype": torch.float32, "autocast": contextlib.nullcontext}
    tuned, layer = finetune(net, images, labels, embed_dim=16, of=of, schedule=SGD, **HOW)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    moved = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(before), "every weight and every statistic of BatchNorm was trained along"
    assert not any(m.training for m in tuned.modules())
    assert layer.weight.shape == (4, 16)
    again, _ = finetune(net, images, labels, embed_dim=16, of=of, schedule=SGD, **HOW)
    assert all(torch.equal(a, b) for a, b in zip(tuned.state_dict().values(), again.state_dict().values(), strict=True))


def test_fine_tuning_is_the_loop_written_out() -> None:
    net, images, labels = trained_net(), some_images(32), torch.arange(32) % 4
    views = crop_and_flip_views((3, 8, 8), crop_scale=(0.2, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3)
    of = {"views": views, "make_views": views, "dtype": torch.float32, "autocast": contextlib.nullcontext}
    tuned, layer = finetune(net, images, labels, embed_dim=16, of=of, schedule=replace(SGD, epochs=2), **HOW)
    mine = copy.deepcopy(net).train()
    torch.manual_seed(3)
    head = nn.Linear(16, 4)
    optimizer = torch.optim.SGD([*head.parameters(), *mine.parameters()], 0.2, momentum=0.9, nesterov=True)
    for step, rate in enumerate((0.2, 0.001 + 0.199 / 2)):
        optimizer.param_groups[0]["lr"] = rate
        rows = order(step, 32)
        (x,) = views(images[rows], views.draw(3, step, 32))
        optimizer.zero_grad()
        F.cross_entropy(head(mine(x.contiguous(memory_format=torch.channels_last))), labels[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight, head.weight)
    for name, tensor in mine.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], tensor)


def test_fine_tuning_an_encoder_of_moco_is_fine_tuning_the_plain_net() -> None:
    """Whatever parts its BatchNorm saw in training; the last batch, of 4 images, would not divide into 8."""
    plain, images, labels = trained_net(), some_images(36), torch.arange(36) % 4
    views = crop_and_flip_views((3, 8, 8), crop_scale=(0.2, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3)
    of = {"views": views, "make_views": views, "dtype": torch.float32, "autocast": contextlib.nullcontext}
    split = copy.deepcopy(plain)
    split_batchnorm(split, 8)
    how = replace(SGD, batch_size=32, drop_last=False)
    tuned = [finetune(net, images, labels, embed_dim=16, of=of, schedule=how, **HOW) for net in (plain, split)]
    for (name, a), b in zip(tuned[0][0].state_dict().items(), tuned[1][0].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert {m.splits for m in split.modules() if isinstance(m, SplitBatchNorm)} == {8}


def test_fine_tuning_never_meets_a_batch_of_one() -> None:
    """BatchNorm has no statistics of one image; a probe on a frozen net has no such need."""
    images, labels = some_images(33), torch.arange(33) % 4
    sizes: list[int] = []
    net = nn.Parameter(torch.ones(16))
    how = replace(SGD, batch_size=32, drop_last=False, epochs=2)

    def features(rows: Tensor, step: int) -> Tensor:
        sizes.append(len(rows))
        return images[rows].float().flatten(1)[:, :16] / 255 * net

    fit(features, labels, embed_dim=16, schedule=how, along=[net], **HOW)
    fit(features, labels, embed_dim=16, schedule=how, **HOW)
    assert sizes == [32, 32, 32, 1, 32, 1]


@pytest.mark.parametrize("cached", [None, 4])
def test_images_do_not_leave_their_labels(cached: int | None) -> None:
    """Four classes of one colour each: right rows with right labels are solved at once."""
    labels = torch.arange(64) % 4
    images = (labels * 60 + 20).to(torch.uint8).view(64, 1, 1, 1).expand(64, 3, 8, 8).contiguous()
    one_hot = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 16))
    probe = on_images(one_hot, images, labels, schedule=Schedule("adam", 0.1, epochs=60, batch_size=32), cached=cached)
    with torch.no_grad():
        h = one_hot((images.float() / 255 - 0.5) / 0.25)
    assert probe.accuracy(h, labels) > 0.95
