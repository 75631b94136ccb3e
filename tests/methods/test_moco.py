"""MoCo equals algorithm 1 of its paper, and no query meets the key of its own image among the negatives."""

from __future__ import annotations

import copy

import contract
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.losses import info_nce
from twoviews.methods.moco import MoCo
from twoviews.models.batchnorm import SplitBatchNorm
from twoviews.models.momentum import shuffled_keys


def moco(**changes: object) -> MoCo:
    """Return a tiny MoCo in float64 for batches of eight images."""
    method = contract.tiny("moco", **{"batch_size": 8, "queue_size": 32, "bn_splits": 2, "symmetric": False, **changes})
    assert isinstance(method, MoCo)
    return method.double()


def views(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_the_momentum_copy_changes_only_after_a_step() -> None:
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


def naive_loss(method: MoCo, query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """Compute algorithm 1 of the paper one query at a time, with a forward pass for each sub-batch of BatchNorm."""
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
    for module in naive.modules():  # plain BatchNorm, on sub-batches chosen by hand
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


def test_in_the_symmetric_loss_the_key_of_a_querys_own_image_is_no_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spy(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        seen.append(negatives.clone())
        assert (key @ negatives.T).max() < 0.999, "a key of this step is among the negatives"
        return info_nce(query, key, negatives, temperature)

    monkeypatch.setattr("twoviews.methods.moco.info_nce", spy)
    method = moco(symmetric=True)
    start = method.queue.keys.clone()
    method(views())
    assert len(seen) == 2
    assert all(torch.equal(negatives, start) for negatives in seen)


def test_a_key_and_its_query_share_their_sub_batches_with_different_images() -> None:
    method = moco(bn_splits=2)
    b = views()[1]
    changed = b.clone()
    changed[1] += 3.0  # the keys' sub-batches are images 0 4 1 5 and 2 6 3 7, the queries' 0 1 2 3 and 4 5 6 7
    first, second = (shuffled_keys(method.momentum_encoder, x, 2) for x in (b, changed))
    differ = (first - second).abs().amax(1) > 1e-9
    assert differ.tolist() == [True, True, False, False, True, True, False, False]
    for module in method.modules():  # plain BatchNorm, on sub-batches chosen by hand
        if isinstance(module, SplitBatchNorm):
            module.splits = 1
    with torch.no_grad():  # by hand: one forward pass for images 0 4 1 5, another for 2 6 3 7
        parts = [method.momentum_encoder[1](method.momentum_encoder[0](b[rows])) for rows in ([0, 4, 1, 5], [2, 6, 3, 7])]
    by_hand = torch.cat(parts)[torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])]
    torch.testing.assert_close(first, F.normalize(by_hand, dim=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bn_splits": 3}, "bn_splits=3: does not divide a batch of 8"),
        ({"queue_size": 7}, "queue_size=7: expected 8 .* to 50000"),
        ({"queue_size": 15, "symmetric": True}, "queue_size=15: expected 16"),
        ({"queue_size": 50_001}, "queue_size=50001: expected 8 .* to 50000"),
        ({"drop_last": False, "num_images": 8 * 6000 + 3}, "bn_splits=2: does not divide a batch of 3"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moco(**changes)


def test_with_bn_splits_every_batchnorm_is_split_the_projectors_too() -> None:
    method = moco(hidden_bn=True, output_bn=True)
    norms = [module for module in method.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 8
    assert all(isinstance(module, SplitBatchNorm) for module in norms)
    assert torch.isfinite(method(views())[0])


def test_a_short_batch_that_bn_splits_divides_is_accepted() -> None:
    assert isinstance(moco(drop_last=False, num_images=8 * 6000 + 4), MoCo)
