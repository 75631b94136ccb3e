"""Parts of momentum methods: the EMA copy, the queue, and the order of the keys."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from twoviews.models.momentum import Queue, ema_update, momentum_copy, spread_order


def test_the_copy_starts_equal_follows_the_formula_and_gets_no_gradient() -> None:
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    target = momentum_copy(online)
    assert all(torch.equal(a, b) for a, b in zip(target.state_dict().values(), online.state_dict().values(), strict=True))
    assert not any(p.requires_grad for p in target.parameters())
    assert target.training
    expected = [p.clone() for p in target.parameters()]
    for step in range(5):
        with torch.no_grad():
            for p in online.parameters():
                p.add_(torch.full_like(p, 0.1 * (step + 1)))
        online(torch.randn(8, 3, dtype=torch.float64))  # changes the running statistics of the online network, not those of the copy
        ema_update(target, online, 0.9)
        expected = [0.9 * e + 0.1 * p for e, p in zip(expected, online.parameters(), strict=True)]
        for p, e in zip(target.parameters(), expected, strict=True):
            torch.testing.assert_close(p, e)
    assert torch.equal(target[1].running_mean, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize(("decay", "whose"), [(0.0, "online"), (1.0, "target")])
def test_decay_0_copies_and_decay_1_changes_nothing(decay: float, whose: str) -> None:
    nets = {"online": nn.Linear(3, 2), "target": nn.Linear(3, 2)}
    before = copy.deepcopy(nets)
    ema_update(nets["target"], nets["online"], decay)
    assert torch.equal(nets["target"].weight, before[whose].weight)
    assert torch.equal(nets["online"].weight, before["online"].weight)


def test_the_queue_starts_with_unit_vectors_and_new_keys_overwrite_the_oldest() -> None:
    queue = Queue(7, 3)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(7))
    expected = [row.clone() for row in queue.keys]
    position = 0
    for step in range(6):
        keys = torch.full((3, 3), float(step)) + torch.arange(3)[:, None] / 10
        queue.enqueue(keys)
        for key in keys:  # the naive ring
            expected[position % 7] = key
            position += 1
        assert torch.equal(queue.keys, torch.stack(expected))
        assert queue.cursor.item() == position % 7
    queue.enqueue(torch.zeros(7, 3))
    assert torch.equal(queue.keys, torch.zeros(7, 3))


def test_the_queue_has_no_gradient_and_its_state_is_in_the_state_dict() -> None:
    queue = Queue(4, 2)
    queue.enqueue(torch.ones(3, 2, requires_grad=True))
    assert not queue.keys.requires_grad
    other = Queue(4, 2)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.keys, queue.keys)
    assert other.cursor.item() == 3


@pytest.mark.parametrize(("n", "splits"), [(8, 2), (32, 4), (64, 8), (8, 8), (6, 1)])
def test_spread_order_takes_each_part_evenly_from_all_parts(n: int, splits: int) -> None:
    order = spread_order(n, splits, torch.device("cpu"))
    assert torch.equal(order[spread_order(n, n // splits, torch.device("cpu"))], torch.arange(n))
    assert sorted(order.tolist()) == list(range(n))
    size = n // splits
    for part in order.chunk(splits):
        counts = torch.bincount(part // size, minlength=splits)
        assert counts.max() - counts.min() <= 1
