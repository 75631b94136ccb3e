"""Linear probes trained by minibatches: equal to a loop written out by hand, and the backbone does not change."""

from __future__ import annotations

import copy
import importlib
import itertools
import math
from typing import Any

import pytest
import torch
from probe_helpers import ADAM, FIT, SGD, order, some_images, trained_net, view_options
from tiny import blobs
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.models.resnet import ThinResNet
from twoviews.probes.minibatch import Schedule, fit, on_features, on_views


def by_hand(features: Tensor, labels: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Train the same probe with torch's optimiser and the schedule written out."""
    torch.manual_seed(3)
    layer = nn.Linear(features.shape[1], 4)
    options: dict[str, Any] = {"lr": schedule.learning_rate, "weight_decay": schedule.weight_decay}
    if schedule.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(layer.parameters(), **options)
    else:
        optimizer = torch.optim.SGD(layer.parameters(), momentum=0.9, nesterov=True, **options)
    n = len(labels)
    batches = [range(i, min(i + schedule.batch_size, n)) for i in range(0, n, schedule.batch_size)]
    batches = [b for b in batches if len(b) == schedule.batch_size or not schedule.drop_last]
    for epoch in range(schedule.epochs):
        rows = order(epoch, n)
        for i, batch in enumerate(batches):
            done = epoch / schedule.epochs if schedule.unit == "epoch" else (epoch * len(batches) + i) / (schedule.epochs * len(batches))
            rate = schedule.floor + (schedule.learning_rate - schedule.floor) * (1 + math.cos(math.pi * done)) / 2
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            F.cross_entropy(layer(features[rows[batch]]), labels[rows[batch]]).backward()
            optimizer.step()
    return layer.weight.detach(), layer.bias.detach()


@pytest.mark.parametrize(
    "schedule", [ADAM, SGD, Schedule("adam", 0.01, epochs=3, batch_size=1000, weight_decay=1e-2)], ids=["adam", "sgd", "one"]
)
def test_a_probe_equals_the_loop_written_by_hand(schedule: Schedule) -> None:
    features, labels = blobs(150, 6, 4, seed=0, dtype=torch.float32)  # four full batches and a short one
    probe = on_features(features, labels, schedule=schedule, **FIT)
    weight, bias = by_hand(features, labels, schedule)
    torch.testing.assert_close(probe.weight, weight)
    torch.testing.assert_close(probe.bias, bias)


def test_a_probe_is_a_function_of_its_seed_and_leaves_the_global_generator_unchanged() -> None:
    features, labels = blobs(100, 6, 4, seed=0, dtype=torch.float32)
    state = torch.random.get_rng_state()
    first, again = (on_features(features, labels, schedule=ADAM, **FIT) for _ in range(2))
    other = on_features(features, labels, schedule=ADAM, **{**FIT, "seed": 4})
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_max_steps_stops_early_without_changing_the_schedule() -> None:
    features, labels = blobs(96, 6, 4, seed=0, dtype=torch.float32)
    calls: list[tuple[int, Tensor]] = []

    def recorded(rows: Tensor, step: int) -> Tensor:
        calls.append((step, rows))
        return features[rows]

    whole = fit(recorded, labels, embed_dim=6, schedule=ADAM, **FIT)
    steps = len(calls)
    cut = fit(recorded, labels, embed_dim=6, schedule=ADAM, **{**FIT, "max_steps": 2})
    assert steps == 12
    assert [step for step, _ in calls[steps:]] == [0, 1]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(calls[:2], calls[steps:], strict=True))
    assert not torch.equal(whole.weight, cut.weight)
    for epoch in range(4):
        assert sorted(torch.cat([rows for step, rows in calls[:steps] if step // 3 == epoch]).tolist()) == list(range(96))


def test_a_batch_larger_than_the_training_set_is_refused_where_short_batches_are_left_out() -> None:
    features, labels = blobs(20, 6, 4, seed=0, dtype=torch.float32)
    with pytest.raises(ValueError, match="20 images are less than a batch of 32"):
        on_features(features, labels, schedule=SGD, **FIT)
    on_features(features, labels, schedule=ADAM, **FIT)


def test_a_diverging_loss_is_an_error_that_suggests_a_lower_rate() -> None:
    features, labels = blobs(64, 6, 4, seed=0, dtype=torch.float32)
    with pytest.raises(FloatingPointError, match="try a lower one"):
        on_features(features * 1e30, labels, schedule=Schedule("sgd", 1e30, epochs=3, batch_size=32), **FIT)


def test_one_row_is_enough() -> None:
    features, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    probe = on_features(features, labels, schedule=Schedule("adam", 0.1, epochs=20, batch_size=1000), **FIT)
    assert probe.predict(features).tolist() == [1]


def test_training_works_inside_no_grad() -> None:
    features, labels = blobs(200, 8, 4, seed=0, apart=8.0, dtype=torch.float32)
    with torch.no_grad():
        probe = on_features(features, labels, schedule=ADAM, **FIT)
    assert probe.accuracy(features, labels) > 0.98
    assert not probe.weight.requires_grad


def on_images(module: nn.Module, images: Tensor, labels: Tensor, **changes: Any) -> Any:
    return on_views(module, images, labels, **{**view_options(), "embed_dim": 16, "schedule": ADAM, **FIT, **changes})


@pytest.mark.parametrize("cached", [None, 2])
def test_the_frozen_backbone_is_bit_identical_after_an_augmented_probe(cached: int | None) -> None:
    """A known fault of p3i0t/SimCLR-CIFAR10: its probe trained the whole network and updated BatchNorm's statistics."""
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


def test_every_step_uses_new_crops_and_flips_and_leaves_colours_unchanged() -> None:
    shown: list[Tensor] = []

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 16)

        def forward(self, x: Tensor) -> Tensor:
            shown.append(x.clone())
            return self.layer(x.mean((2, 3)))

    colours = torch.randint(256, (32, 3, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    flat = colours.expand(32, 3, 8, 8).contiguous()  # every crop of a single colour has that colour
    on_images(Mean(), flat, torch.arange(32) % 4)
    assert len(shown) == 4
    for step, x in enumerate(shown):
        expected = (colours[order(step, 32)].float() / 255 - 0.5) / 0.25
        torch.testing.assert_close(x, expected.expand(-1, -1, 8, 8), rtol=0, atol=1e-5)
    drawn: list[Tensor] = []
    views = view_options()["views"]

    def recorded(images: Tensor, u: Tensor) -> list[Tensor]:
        drawn.append(u)
        return views(images, u)

    on_images(Mean(), flat, torch.arange(32) % 4, make_views=recorded)
    assert [tuple(u.shape[:2]) for u in drawn] == [(1, 32)] * 4
    assert not any(torch.isclose(a, b, atol=1e-6).any(2).all() for a, b in itertools.combinations(drawn, 2))
    assert len({u[0, i].sum().item() for u in drawn for i in range(32)}) == 4 * 32, "each image has its own numbers at each step"


def test_cached_views_are_computed_once_and_used_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sets of views in chunks of 20, four epochs: sets 0, 1, 2 and 0 again."""
    monkeypatch.setattr(importlib.import_module("twoviews.probes.embed"), "MOST", 20)
    net, images, labels = trained_net(), some_images(50), torch.arange(50) % 4
    views = view_options()["views"]
    drawn = []

    def recorded(images: Tensor, u: Tensor) -> list[Tensor]:
        drawn.append(views(images, u)[0])
        return [drawn[-1]]

    probe = on_images(net, images, labels, make_views=recorded, cached=3)
    assert [len(x) for x in drawn] == 3 * [20, 20, 10]
    sets = [torch.cat(drawn[3 * i : 3 * i + 3]) for i in range(3)]
    assert not any(torch.isclose(a, b).all((1, 2, 3)).any() for a, b in itertools.combinations(sets, 2)), "all crops differ"
    with torch.no_grad():
        net.eval()
        cache = [net(x).half().float() for x in sets]
    expected = fit(lambda rows, step: cache[step // 2 % 3][rows], labels, embed_dim=16, schedule=ADAM, **FIT)
    torch.testing.assert_close(probe.weight, expected.weight, rtol=1e-4, atol=1e-5)


def test_no_more_views_are_cached_than_training_uses() -> None:
    schedule = Schedule("adam", 0.1, epochs=10, batch_size=30)  # four steps an epoch of 100
    assert [schedule.sets(100, max_steps, 16) for max_steps in (None, 40, 39, 5, 4, 1)] == [10, 10, 10, 2, 1, 1]
    assert schedule.sets(100, None, 4) == 4


@pytest.mark.parametrize("cached", [None, 4])
def test_images_keep_their_labels(cached: int | None) -> None:
    """Four classes of one gray value each are separable, but only if images keep their labels."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 4
    images = (labels * 60 + 20).to(torch.uint8).view(64, 1, 1, 1).expand(64, 3, 8, 8).contiguous()
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 16))
    probe = on_images(net, images, labels, schedule=Schedule("adam", 0.1, epochs=60, batch_size=32), cached=cached)
    with torch.no_grad():
        h = net((images.float() / 255 - 0.5) / 0.25)
    assert probe.accuracy(h, labels) > 0.95
