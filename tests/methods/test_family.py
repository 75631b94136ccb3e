"""Each method computes what its paper says, from its own parts: who predicts whom, where gradients stop, and what a step changes."""

from __future__ import annotations

import copy
import math
from itertools import combinations, permutations
from typing import Any

import contract
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twoviews import optim
from twoviews.losses import barlow_twins, decoupled, sinkhorn, supcon, vicreg, whitened
from twoviews.methods.base import Method

START, HALF, END = (torch.tensor(value) for value in (0.0, 0.5, 1.0))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views_of(count: int, side: int = 16) -> list[Tensor]:
    return [normal(8, 3, side, side, seed=seed) for seed in range(count)]


def same_loss_and_gradients(method: Method, views: list[Tensor], naive: Tensor, labels: Tensor | None = None) -> None:
    """Compare a forward pass with a loss that was computed from the method's parts."""
    loss, _ = method(views, labels, HALF)
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-6)
    params = [p for p in method.parameters() if p.requires_grad]
    expected = torch.autograd.grad(naive, params, allow_unused=True)
    for p, mine, theirs in zip(params, torch.autograd.grad(loss, params, allow_unused=True), expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5, msg=str(tuple(p.shape)))


def minus_cosine(p: Tensor, z: Tensor) -> Tensor:
    return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean()


@pytest.mark.parametrize("count", [2, 4])
def test_simsiam_predicts_the_mean_of_the_other_views_and_stops_their_gradient(count: int) -> None:
    method, views = contract.tiny("simsiam"), views_of(count)
    z = [method.projector(method.backbone(x)) for x in views]
    naive = sum(minus_cosine(method.predictor(z[i]), (sum(z) - z[i]).detach() / (count - 1)) for i in range(count)) / count
    same_loss_and_gradients(method, views, naive)


def test_the_last_batchnorm_of_simsiams_projector_has_no_scale_and_shift_and_its_predictor_keeps_the_rate() -> None:
    method = contract.tiny("simsiam")
    assert method.projector[-1].weight is method.projector[-1].bias is None
    assert [group.get("constant_lr", False) for group in method.param_groups()] == [False, True]
    assert set(map(id, method.param_groups()[1]["params"])) == set(map(id, method.predictor.parameters()))


@pytest.mark.parametrize("count", [2, 3])
def test_byol_sums_over_views_the_distance_to_the_teachers_projections(count: int) -> None:
    method, views = contract.tiny("byol"), views_of(count)
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1 * normal(*p.shape, seed=3))  # so that it is not the student
    targets = [method.teacher(x).detach() for x in views]
    p = [method.predictor(method.projector(method.backbone(x))) for x in views]
    naive = sum(2 + 2 * minus_cosine(p[i], targets[j]) for i, j in permutations(range(count), 2)) / (count - 1)
    same_loss_and_gradients(method, views, naive)


@pytest.mark.parametrize("count", [2, 3])
def test_moco_v3_classifies_the_key_of_another_view_within_the_batch_times_2t(count: int) -> None:
    method, views = contract.tiny("moco_v3"), views_of(count)
    with torch.no_grad():
        for p in method.momentum_encoder.parameters():
            p.add_(0.1 * normal(*p.shape, seed=3))
    q = [F.normalize(method.predictor(method.projector(method.backbone(x))), dim=1) for x in views]
    k = [F.normalize(method.momentum_encoder(x), dim=1).detach() for x in views]
    t = method.temperature
    naive = sum(2 * t * F.cross_entropy(q[i] @ k[j].T / t, torch.arange(8)) for i, j in permutations(range(count), 2)) / (count - 1)
    same_loss_and_gradients(method, views, naive)


@pytest.mark.parametrize(("name", "copy_of"), [("byol", "teacher"), ("moco_v3", "momentum_encoder"), ("dino", "teacher")])
def test_the_momentum_copy_follows_after_the_step_with_a_decay_that_rises_as_a_cosine(name: str, copy_of: str) -> None:
    method = contract.tiny(name, ema_decay=0.9, ema_decay_end=1.0)
    parts = [method.backbone, method.projector] + ([method.prototypes] if name == "dino" else [])
    target = getattr(method, copy_of)
    for progress in (START, HALF / 2, HALF, END):
        before = copy.deepcopy(target)
        with torch.no_grad():
            for part in parts:
                for p in part.parameters():
                    p.add_(1.0)
        method(views_of(2), None, progress)[0].backward()
        method.before_step(progress)
        assert all(torch.equal(a, b) for a, b in zip(target.parameters(), before.parameters(), strict=True)), "not in forward"
        method.after_step(progress)
        decay = 1 - 0.1 * (math.cos(math.pi * progress.item()) + 1) / 2
        online = [p for part in parts for p in part.parameters()]
        for new, old, p in zip(target.parameters(), before.parameters(), online, strict=True):
            torch.testing.assert_close(new, decay * old + (1 - decay) * p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_barlow_twins_and_vicreg_are_means_over_pairs_of_views(count: int) -> None:
    views = views_of(count)
    for name in ("barlow_twins", "vicreg"):
        method = contract.tiny(name)
        z = [method.projector(method.backbone(x)) for x in views]
        if name == "vicreg":
            losses = [vicreg(a, b, **method.weights) for a, b in combinations(z, 2)]
        else:
            losses = [0.1 * barlow_twins(a, b, 0.0051) for a, b in combinations(z, 2)]
        same_loss_and_gradients(method, views, torch.stack(losses).mean())


@pytest.mark.parametrize("count", [2, 4])
def test_wmse_compares_views_that_were_whitened_each_by_itself(count: int) -> None:
    method, views = contract.tiny("wmse"), views_of(count)
    z = [whitened(method.projector(method.backbone(x)), 8, method.whitening_eps) for x in views]
    naive = sum((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean() for a, b in combinations(z, 2))
    same_loss_and_gradients(method, views, naive / math.comb(count, 2))


@pytest.mark.parametrize(
    ("changes", "batch"),
    [({"whitening_size": 4}, 256), ({"whitening_size": 7}, 256), ({"whitening_size": 8, "drop_last": False, "num_images": 50_003}, 83)],
)
def test_wmse_refuses_sub_batches_that_do_not_fit(changes: dict[str, Any], batch: int) -> None:
    with pytest.raises(
        ValueError, match=f"whitening_size={changes['whitening_size']}: expected more than out_dim=4, .* of a batch of {batch}"
    ):
        contract.tiny("wmse", **changes)


@pytest.mark.parametrize("count", [2, 3])
def test_nnclr_takes_neighbours_from_the_queue_before_it_enters_the_first_view(count: int) -> None:
    method, views = contract.tiny("nnclr", queue_size=300), views_of(count)
    queue = method.queue.keys.clone()
    z = [method.projector(method.backbone(x)) for x in views]
    near = [queue[(F.normalize(x, dim=1) @ queue.T).argmax(1)] for x in z]
    p = [F.normalize(method.predictor(x), dim=1) for x in z]
    pairs = list(permutations(range(count), 2))
    naive = sum(F.cross_entropy(near[i] @ p[j].T / method.temperature, torch.arange(8)) for i, j in pairs) / len(pairs)
    same_loss_and_gradients(method, views, naive)
    torch.testing.assert_close(method.queue.keys[:8], F.normalize(z[0], dim=1))
    assert torch.equal(method.queue.keys[8:], queue[8:])


def with_a_small_view() -> list[Tensor]:
    return [*views_of(2), normal(8, 3, 8, 8, seed=9)]


@pytest.mark.parametrize("progress", [START, HALF])
def test_swav_assigns_full_views_with_the_queue_and_predicts_from_all_others(progress: Tensor) -> None:
    method, views = contract.tiny("swav", queue_size=256, queue_from=0.3), with_a_small_view()
    queues = method.queue.keys.clone().chunk(2, 1)
    z = [F.normalize(method.projector(method.backbone(x)), dim=1) for x in views]
    scores = [x @ method.prototypes.weight.T for x in z]
    total = z[0].new_zeros(())
    for i in (0, 1):
        known = scores[i].detach()
        if progress == HALF:
            known = torch.cat([known, F.normalize(queues[i], dim=1) @ method.prototypes.weight.detach().T])
        codes = sinkhorn(known, temperature=0.05, iterations=3)[:8]
        total = total - sum((codes * F.log_softmax(scores[j] / 0.1, dim=1)).sum(1).mean() for j in range(3) if j != i) / 4
    loss, _ = method(views, None, progress)
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.queue.keys[:8], torch.cat(z[:2], 1).detach())


def test_swavs_prototypes_have_unit_length_after_every_step_and_are_frozen_at_first() -> None:
    method = contract.tiny("swav", freeze_until=0.3)
    method(views_of(2), None, START)[0].backward()
    gradient = method.prototypes.weight.grad.clone()
    method.before_step(HALF)
    assert torch.equal(method.prototypes.weight.grad, gradient)
    method.before_step(START)
    assert (method.prototypes.weight.grad == 0).all()
    with torch.no_grad():
        method.prototypes.weight.mul_(3).add_(0.1)
    method.after_step(HALF)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(len(method.prototypes.weight)))


def test_dino_predicts_the_centred_sharpened_teacher_of_full_views_and_then_moves_the_centre() -> None:
    method = contract.tiny("dino", teacher_temperature=0.04, teacher_temperature_end=0.06)
    views = with_a_small_view()
    method.centre.copy_(0.1 * normal(len(method.centre), seed=1))
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1 * normal(*p.shape, seed=3))
    centre = method.centre.clone()
    student = [method.prototypes(method.projector(method.backbone(x))) / 0.1 for x in views]
    teacher = [method.teacher(x).detach() for x in views[:2]]
    targets = [F.softmax((t - centre) / 0.05, dim=1) for t in teacher]  # half-way from 0.04 to 0.06
    pairs = [(i, j) for i in range(2) for j in range(3) if i != j]
    naive = -sum((targets[i] * F.log_softmax(student[j], dim=1)).sum(1).mean() for i, j in pairs) / len(pairs)
    same_loss_and_gradients(method, views, naive)
    torch.testing.assert_close(method.centre, 0.9 * centre + 0.1 * torch.stack(teacher).mean((0, 1)))


def test_dinos_last_layer_is_weight_normed_and_frozen_at_first() -> None:
    method = contract.tiny("dino", freeze_until=0.3)
    scores = method.prototypes(normal(4, method.prototypes.weight.shape[1], seed=1))
    with torch.no_grad():
        method.prototypes.weight.mul_(7)
    torch.testing.assert_close(method.prototypes(normal(4, method.prototypes.weight.shape[1], seed=1)), scores)
    method(views_of(2), None, START)[0].backward()
    method.before_step(START)
    assert (method.prototypes.weight.grad == 0).all()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon", "lars", "larc"])
@pytest.mark.parametrize("name", ["swav", "dino"])
def test_frozen_prototypes_do_not_move_whatever_the_optimiser(name: str, optimizer: str) -> None:
    method = contract.tiny(name, freeze_until=0.3)
    settings: dict[str, Any] = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.1, "decay_norms": True}
    steps = optim.build(method.param_groups(), optimizer=optimizer, **settings)
    before = method.prototypes.weight.detach().clone()
    for progress in (START, torch.tensor(0.1), HALF):
        method(views_of(2), None, progress)[0].backward()
        method.before_step(progress)
        for group in steps.param_groups:
            group["lr"] = 0.1
        steps.step()
        steps.zero_grad()
        method.after_step(progress)
        if progress < 0.3:
            torch.testing.assert_close(method.prototypes.weight, before)
    assert not torch.equal(method.prototypes.weight, before)


def test_dinos_teacher_can_be_evaluated_in_place_of_the_student() -> None:
    student, teacher = (contract.tiny("dino", probe_teacher=value) for value in (False, True))
    assert student.modules_to_probe()["h"] is student.backbone
    assert teacher.modules_to_probe()["h"] is teacher.teacher[0]
    images = views_of(1)[0]
    torch.testing.assert_close(teacher.eval().modules_to_probe()["z"](images), student.eval().modules_to_probe()["z"](images))


def test_dcl_and_supcon_are_simclr_with_another_loss() -> None:
    views, labels = views_of(2), torch.arange(8) % 3
    for name in ("dcl", "supcon"):
        method = contract.tiny(name, one_forward=True)
        z = method.projector(method.backbone(torch.cat(views)))
        naive = decoupled(z, method.temperature) if name == "dcl" else supcon(z, labels, method.temperature)
        same_loss_and_gradients(method, views, naive, labels)


@pytest.mark.parametrize("symmetric", [True, False])
def test_moco_with_three_views_compares_each_query_with_the_keys_of_the_other_views(symmetric: bool) -> None:
    method = contract.tiny("moco", num_views=3, symmetric=symmetric, bn_splits=1, queue_size=768)
    views, queue = views_of(3), method.queue.keys.clone()
    keys = [F.normalize(method.momentum_encoder(x), dim=1).detach() for x in views]
    losses = []
    for i, j in permutations(range(3), 2) if symmetric else ((0, 1), (0, 2)):
        q = F.normalize(method.projector(method.backbone(views[i])), dim=1)
        logits = torch.cat([(q * keys[j]).sum(1, keepdim=True), q @ queue.T], 1) / method.temperature
        losses.append(F.cross_entropy(logits, torch.zeros(8, dtype=torch.int64)))
    same_loss_and_gradients(method, views, torch.stack(losses).mean())
    entered = torch.cat(keys if symmetric else keys[1:])
    torch.testing.assert_close(method.queue.keys[: len(entered)], entered)


@pytest.mark.parametrize("name", ["moco", "nnclr", "swav"])
def test_a_queue_that_cannot_hold_the_keys_of_a_step_or_is_longer_than_the_data_is_refused(name: str) -> None:
    for size in (100, 50_001):
        with pytest.raises(ValueError, match=rf"queue_size={size}: expected \d+ \(the keys of a step\) to 50000 \(the images\)"):
            contract.tiny(name, queue_size=size)
