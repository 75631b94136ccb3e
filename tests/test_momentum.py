"""The momentum copy, the queue, and BatchNorm in parts: what MoCo needs to be MoCo on one device."""

from __future__ import annotations

import copy

import contract
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.backbones import ThinResNet
from twoviews.losses import info_nce
from twoviews.methods.moco import MoCo
from twoviews.momentum import Queue, SplitBatchNorm, ema_update, momentum_copy, split_batchnorm, spread_order


def moco(**changes: object) -> MoCo:
    """A tiny one in float64, on batches of eight."""
    method = contract.tiny("moco", **{"batch_size": 8, "queue_size": 32, "bn_splits": 2, "symmetric": False, **changes})
    assert isinstance(method, MoCo)
    return method.double()


def views(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2)]


# ---- the momentum copy ----


def test_the_copy_begins_equal_follows_by_the_formula_and_gets_no_gradient() -> None:
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
        online(torch.randn(8, 3, dtype=torch.float64))  # moves the online statistics: the copy's come from its own forwards
        ema_update(target, online, 0.9)
        expected = [0.9 * e + 0.1 * p for e, p in zip(expected, online.parameters(), strict=True)]
        for p, e in zip(target.parameters(), expected, strict=True):
            torch.testing.assert_close(p, e)
    assert torch.equal(target[1].running_mean, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize(("decay", "whose"), [(0.0, "online"), (1.0, "target")])
def test_the_ends_of_the_decay_copy_and_stand_still(decay: float, whose: str) -> None:
    nets = {"online": nn.Linear(3, 2), "target": nn.Linear(3, 2)}
    before = copy.deepcopy(nets)
    ema_update(nets["target"], nets["online"], decay)
    assert torch.equal(nets["target"].weight, before[whose].weight)
    assert torch.equal(nets["online"].weight, before["online"].weight)


def test_the_copy_moves_after_a_step_and_at_no_other_time() -> None:
    method = moco(ema_decay=0.5)
    start = copy.deepcopy(list(method.momentum_encoder.parameters()))
    loss, _ = method(views())
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(start, method.momentum_encoder.parameters(), strict=True))
    with torch.no_grad():
        for p in [*method.backbone.parameters(), *method.projector.parameters()]:
            p.add_(1.0)
    method.after_step(torch.tensor(0.0))
    moved = [b - a for a, b in zip(start, method.momentum_encoder.parameters(), strict=True)]
    assert all(torch.allclose(m, torch.full_like(m, 0.5)) for m in moved)


# ---- the queue ----


def test_the_queue_begins_with_unit_vectors_and_overwrites_the_oldest_around_its_end() -> None:
    queue = Queue(7, 3)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(7))
    kept = [row.clone() for row in queue.keys]
    place = 0
    for step in range(6):
        keys = torch.full((3, 3), float(step)) + torch.arange(3)[:, None] / 10
        queue.enqueue(keys)
        for key in keys:  # the naive ring
            kept[place % 7] = key
            place += 1
        assert torch.equal(queue.keys, torch.stack(kept))
        assert queue.cursor.item() == place % 7
    queue.enqueue(torch.zeros(7, 3))
    assert torch.equal(queue.keys, torch.zeros(7, 3))


def test_a_queue_takes_no_gradient_and_its_state_is_in_the_state_dict() -> None:
    queue = Queue(4, 2)
    queue.enqueue(torch.ones(3, 2, requires_grad=True))
    assert not queue.keys.requires_grad
    other = Queue(4, 2)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.keys, queue.keys)
    assert other.cursor.item() == 3


# ---- BatchNorm in parts ----


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_batchnorm_in_parts_equals_forwards_of_the_parts(splits: int, memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 5, 4, 3, dtype=torch.float64).contiguous(memory_format=memory).requires_grad_()
    split = SplitBatchNorm(5, splits).double()
    with torch.no_grad():
        split.weight.uniform_(0.5, 1.5)
        split.bias.normal_()
    plain = nn.BatchNorm2d(5).double()
    plain.load_state_dict(split.state_dict())
    parts = [copy.deepcopy(plain) for _ in range(splits)]
    y = split(x)
    expected = torch.cat([bn(part) for bn, part in zip(parts, x.chunk(splits), strict=True)])
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=memory)
    to = torch.randn_like(y)
    gradient = torch.autograd.grad((y * to).sum(), [x, split.weight, split.bias])
    naive = torch.autograd.grad((expected * to).sum(), [x, *(p for bn in parts for p in (bn.weight, bn.bias))])
    torch.testing.assert_close(gradient[0], naive[0])
    torch.testing.assert_close(gradient[1], sum(naive[1::2]))
    torch.testing.assert_close(gradient[2], sum(naive[2::2]))
    # as documented: one step of the running statistics, towards the mean of those of the parts
    torch.testing.assert_close(split.running_mean, torch.stack([bn.running_mean for bn in parts]).mean(0))
    torch.testing.assert_close(split.running_var, torch.stack([bn.running_var for bn in parts]).mean(0))
    assert split.num_batches_tracked == 1
    split.eval()
    plain.load_state_dict(split.state_dict(), strict=False)
    torch.testing.assert_close(split(x), plain.eval()(x))


def test_batchnorm_in_parts_under_autocast_keeps_its_statistics_in_float32() -> None:
    x = torch.randn(8, 3, 4, 4)
    split, plain = SplitBatchNorm(3, 2), nn.BatchNorm2d(3)
    with torch.autocast("cpu", torch.bfloat16):
        y = split(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert split.running_var.dtype == torch.float32
    torch.testing.assert_close(y.float(), torch.cat([plain(part) for part in x.bfloat16().float().chunk(2)]), rtol=0, atol=0.03)


def test_a_batch_that_does_not_divide_is_refused() -> None:
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
    whole = copy.deepcopy(plain)
    split_batchnorm(whole, 1)
    assert not any(isinstance(module, SplitBatchNorm) for module in whole.modules())


@pytest.mark.parametrize(("n", "splits"), [(8, 2), (32, 4), (64, 8), (8, 8), (6, 1)])
def test_the_keys_order_spreads_each_part_over_all_parts(n: int, splits: int) -> None:
    order = spread_order(n, splits, torch.device("cpu"))
    assert torch.equal(order[spread_order(n, n // splits, torch.device("cpu"))], torch.arange(n))
    assert sorted(order.tolist()) == list(range(n))
    size = n // splits
    for part in order.chunk(splits):
        counts = torch.bincount(part // size, minlength=splits)
        assert counts.max() - counts.min() <= 1


# ---- MoCo: algorithm 1, and what must not leak ----


def naive_loss(method: MoCo, query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """Algorithm 1 of the paper, a query at a time, each part of BatchNorm a forward of its own."""
    order = torch.arange(8).view(2, 4).T.reshape(-1)
    encoder, z = method.momentum_encoder, torch.empty(8, method.queue.keys.shape[1], dtype=torch.float64)
    with torch.no_grad():
        z[order] = torch.cat([encoder(part) for part in key[order].chunk(2)])
    q = torch.cat([method.projector(method.backbone(part)) for part in query.chunk(2)])
    total = query.new_zeros(())
    for i in range(8):
        unit = q[i] / q[i].norm()
        own = torch.exp(unit @ (z[i] / z[i].norm()) / method.temperature)
        others = sum(torch.exp(unit @ row / method.temperature) for row in queue)
        total = total - torch.log(own / (own + others))
    return total / 8


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_and_its_gradient_equal_algorithm_1(symmetric: bool) -> None:
    method, (a, b) = moco(symmetric=symmetric), views()
    naive = copy.deepcopy(method)
    for module in naive.modules():  # ordinary BatchNorm, on parts given by hand
        if isinstance(module, SplitBatchNorm):
            module.splits = 1
    queue = method.queue.keys.clone()
    expected = naive_loss(naive, a, b, queue)
    if symmetric:
        expected = (expected + naive_loss(naive, b, a, queue)) / 2
    loss, extras = method([a, b])
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    assert 0 <= extras["key_accuracy"] <= 1
    loss.backward()
    expected.backward()
    for (name, p), q in zip(method.named_parameters(), naive.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-12, msg=name)


@pytest.mark.parametrize("symmetric", [False, True])
def test_keys_are_unit_vectors_enqueued_after_the_loss(symmetric: bool) -> None:
    method = moco(symmetric=symmetric)
    before = method.queue.keys.clone()
    method(views())
    new = 16 if symmetric else 8
    assert method.queue.cursor.item() == new
    torch.testing.assert_close(method.queue.keys.norm(dim=1), torch.ones(32, dtype=torch.float64))
    assert torch.equal(method.queue.keys[new:], before[new:])
    assert not (method.queue.keys[:new] == before[:new]).any()


def test_in_the_symmetric_loss_no_query_meets_its_own_images_key_as_a_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spy(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        seen.append(negatives.clone())
        assert (key @ negatives.T).max() < 0.999, "a key of this step is among its negatives"
        return info_nce(query, key, negatives, temperature)

    monkeypatch.setattr("twoviews.methods.moco.info_nce", spy)
    method = moco(symmetric=True)
    start = method.queue.keys.clone()
    method(views())
    assert len(seen) == 2
    assert all(torch.equal(negatives, start) for negatives in seen)


def test_a_key_shares_its_part_of_the_batch_with_other_images_than_its_query() -> None:
    method = moco(bn_splits=2)
    b = views()[1]
    changed = b.clone()
    changed[1] += 3.0  # the second image is in the queries' first part; the keys' parts are images 0 4 1 5 and 2 6 3 7
    first, second = method._keys(b), method._keys(changed)
    differ = (first - second).abs().amax(1) > 1e-9
    assert differ.tolist() == [True, True, False, False, True, True, False, False]
    for module in method.modules():  # ordinary BatchNorm, on parts given by hand
        if isinstance(module, SplitBatchNorm):
            module.splits = 1
    with torch.no_grad():  # the same by hand: images 0 4 1 5 in one forward, 2 6 3 7 in the other
        parts = [method.momentum_encoder[1](method.momentum_encoder[0](b[rows])) for rows in ([0, 4, 1, 5], [2, 6, 3, 7])]
    by_hand = torch.cat(parts)[torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])]
    torch.testing.assert_close(first, F.normalize(by_hand, dim=1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bn_splits": 3}, "bn_splits=3: does not divide a batch of 8"),
        ({"queue_size": 7}, "queue_size=7: expected 8 .* to 50000"),
        ({"queue_size": 15, "symmetric": True}, "queue_size=15: expected 16"),
        ({"queue_size": 50_001}, "queue_size=50001: expected 8 .* to 50000"),
        ({"ema_decay": 1.1}, "ema_decay"),
        ({"temperature": 0.0}, "temperature"),
        ({"drop_last": False, "num_images": 8 * 6000 + 3}, "bn_splits=2: does not divide a batch of 3"),
    ],
)
def test_values_that_cannot_work_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        moco(**changes)


def test_other_numbers_of_views_are_refused() -> None:
    with pytest.raises(ValueError, match="moco: expected two views, a query and a key, got 3"):
        moco()([*views(), views()[0]])


def test_with_split_parts_no_batchnorm_of_the_projector_sees_the_whole_batch() -> None:
    method = moco(hidden_bn=True, output_bn=True)
    norms = [module for module in method.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 8
    assert all(isinstance(module, SplitBatchNorm) for module in norms)
    assert torch.isfinite(method(views())[0])


def test_a_short_batch_that_divides_is_taken() -> None:
    assert isinstance(moco(drop_last=False, num_images=8 * 6000 + 4), MoCo)
