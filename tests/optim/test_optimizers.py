"""Optimisers against loops written by hand, and weight decay only where the recipe wants it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from twoviews import optim
from twoviews.optim.optimizers import batched_directions, directions


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def optimizer_of(groups: list[dict[str, Any]], **changes: Any) -> torch.optim.Optimizer:
    keys: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2, "decay_norms": False}
    return optim.build(groups, **{**keys, **changes})


@pytest.mark.parametrize("decay_norms", [True, False])
def test_vectors_are_decayed_only_with_decay_norms(decay_norms: bool) -> None:
    module = net()
    optimizer = optimizer_of([{"params": module.parameters()}], decay_norms=decay_norms)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module.parameters())) == len(decay)
    for p in module.parameters():
        assert decay[id(p)] == (1e-2 if decay_norms or p.ndim > 1 else 0.0)


@pytest.mark.parametrize("decay_norms", [True, False])
def test_a_group_keeps_its_extra_keys(decay_norms: bool) -> None:
    first, second = net(), net()
    groups = [{"params": first.parameters()}, {"params": second.parameters(), "constant_lr": True}]
    optimizer = optimizer_of(groups, decay_norms=decay_norms)
    constant = {id(p) for group in optimizer.param_groups if group.get("constant_lr") for p in group["params"]}
    assert constant == {id(p) for p in second.parameters()}


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_sgd_equals_a_hand_written_loop(nesterov: bool, weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    target = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(w.clone())
    optimizer = optimizer_of([{"params": [parameter]}], weight_decay=weight_decay, nesterov=nesterov, decay_norms=True)
    velocity = torch.zeros_like(w)
    for step in range(25):
        lr = 0.3 * (step + 1) / 25
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        (0.5 * (parameter - target).square().sum()).backward()
        optimizer.step()

        gradient = w - target + weight_decay * w
        velocity = 0.9 * velocity + gradient
        w = w - lr * (gradient + 0.9 * velocity if nesterov else velocity)
        torch.testing.assert_close(parameter.detach(), w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (16, 4, 3, 3)])
def test_a_step_of_muon_is_nearly_orthogonal_whatever_the_gradients_conditioning(shape: tuple[int, ...]) -> None:
    """The step has the gradient's singular vectors, and singular values near 1 times max(1, sqrt(rows / columns))."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    gradient = torch.randn(shape, dtype=torch.float64)
    weight.grad = gradient.clone()
    optimizer = optim.build([{"params": [weight]}], optimizer="muon", momentum=0.9, nesterov=True, weight_decay=0.0, decay_norms=True)
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    rows, columns = shape[0], weight[0].numel()
    step = weight.detach().view(rows, columns) / (-0.5 * max(1, rows / columns) ** 0.5)
    left, values, right = torch.linalg.svd(gradient.view(rows, columns), full_matrices=False)
    assert torch.linalg.svdvals(step)[values > 0.1 * values[0]].min() > 0.6
    assert torch.linalg.svdvals(step).max() < 1.25
    assert torch.cosine_similarity(step.flatten(), (left @ right).flatten(), 0) > 0.95


def test_muon_updates_vectors_as_sgd_does() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    ends = []
    for name in ("sgd", "muon"):
        vector = nn.Parameter(start.clone())
        optimizer = optim.build([{"params": [vector]}], optimizer=name, momentum=0.9, nesterov=True, weight_decay=0.0, decay_norms=True)
        for gradient in gradients:
            vector.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = 0.3
            optimizer.step()
        ends.append(vector.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0)


def test_muons_weight_decay_is_decoupled_from_the_gradient() -> None:
    weight = nn.Parameter(torch.full((3, 3), 2.0))
    weight.grad = torch.zeros(3, 3)
    optimizer = optim.build([{"params": [weight]}], optimizer="muon", momentum=0.9, nesterov=True, weight_decay=0.1, decay_norms=True)
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 3), 2.0 * (1 - 0.5 * 0.1)))


def test_muons_products_are_one_compiled_graph_for_all_rates() -> None:
    """The compiled form, which a GPU uses, takes the same steps and is compiled once, whatever the rates."""
    torch.manual_seed(0)
    shapes = [(16, 4, 3, 3), (8, 40), (40, 8), (5,)]
    ours, theirs = ([nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1))) for shape in shapes] for _ in range(2))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    options: dict[str, Any] = {"optimizer": "muon", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "decay_norms": True}
    eager, compiled = optim.build([{"params": ours}], **options), optim.build([{"params": theirs}], compile=True, **options)
    assert compiled.directions is not directions  # type: ignore[attr-defined]
    compiled.directions = torch.compile(batched_directions, backend=counter, fullgraph=True, dynamic=False)  # type: ignore[attr-defined]
    for rate in (0.1, 0.2, 0.05):
        for params, optimizer in ((ours, eager), (theirs, compiled)):
            optimizer.param_groups[0]["lr"] = rate
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
            optimizer.step()
    assert counter.frame_count == 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.03)  # three steps in bfloat16


def test_muons_batched_steps_are_those_of_each_weight_up_to_bfloat16() -> None:
    torch.manual_seed(0)
    updates = [torch.randn(shape) for shape in [(16, 4, 3, 3), (40, 8), (16, 4, 3, 3), (5,), (40, 8), (7, 7)]]
    for one, other, update in zip(directions(updates), batched_directions(updates), updates, strict=True):
        assert other.dtype == torch.float32
        assert (one - other).norm() <= 0.06 * one.norm()
        assert update.ndim > 1 or torch.equal(other, update)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="'adagrad'"):
        optimizer_of([{"params": [nn.Parameter(torch.zeros(1))]}], optimizer="adagrad")


@pytest.mark.parametrize("changes", [{"momentum": -0.1}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"momentum": 0.0, "nesterov": True}])
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"momentum|weight_decay|[Nn]esterov"):
        optimizer_of([{"params": [nn.Parameter(torch.zeros(1))]}], **changes)


def lars_loop(
    weights: list[torch.Tensor], gradients: list[list[torch.Tensor]], *, rate: float, decay: float, skip_vectors: bool, nesterov: bool
):  # type: ignore[no-untyped-def]
    """Run SimCLR's lars_optimizer.py (classic momentum) with plain floats, one layer at a time."""
    weights = [w.clone() for w in weights]
    velocity = [torch.zeros_like(w) for w in weights]
    for step in gradients:
        for i, (w, g) in enumerate(zip(weights, step, strict=True)):
            plain = skip_vectors and w.ndim <= 1
            g = g if plain else g + decay * w
            local = 1.0
            if not plain and w.norm() > 0 and g.norm() > 0:
                local = 0.001 * math.sqrt(sum(x * x for x in w.flatten().tolist())) / math.sqrt(sum(x * x for x in g.flatten().tolist()))
            velocity[i] = 0.9 * velocity[i] + local * rate * g
            weights[i] = w - (0.9 * velocity[i] + local * rate * g if nesterov else velocity[i])
    return weights


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_norms", [False, True])
def test_lars_equals_simclrs_code_and_scales_vectors_only_with_decay_norms(decay_norms: bool, nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (5, 4), (4,), (5,)]
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    start[3].zero_()  # a layer whose norm is 0 keeps the plain rate
    gradients = [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(4)]
    params = [nn.Parameter(w.clone()) for w in start]
    optimizer = optim.build(
        [{"params": params}], optimizer="lars", momentum=0.9, nesterov=nesterov, weight_decay=0.01, decay_norms=decay_norms
    )
    for step in gradients:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        for group in optimizer.param_groups:
            group["lr"] = 0.7
        optimizer.step()
    expected = lars_loop(start, gradients, rate=0.7, decay=0.01, skip_vectors=not decay_norms, nesterov=nesterov)
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), e)


def test_adam_is_torchs_with_momentum_as_first_beta() -> None:
    ours, theirs = (nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    first = optim.build([{"params": [ours]}], optimizer="adam", momentum=0.8, nesterov=False, weight_decay=0.1, decay_norms=True)
    second = torch.optim.Adam([theirs], lr=0.01, betas=(0.8, 0.999), weight_decay=0.1)
    for step in range(5):
        for p, optimizer in ((ours, first), (theirs, second)):
            p.grad = torch.sin(torch.arange(6.0).view(2, 3) + step)
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="no Nesterov momentum: use nesterov=false"):
        optim.build([{"params": [ours]}], optimizer="adam", momentum=0.8, nesterov=True, weight_decay=0.0, decay_norms=True)


def larc_loop(
    weights: list[torch.Tensor], gradients: list[list[torch.Tensor]], *, rate: float, decay: float, skip_vectors: bool, nesterov: bool
):  # type: ignore[no-untyped-def]
    """Run apex's LARC (clip=True, coefficient 0.02) around SGD with plain floats, one layer at a time."""
    weights = [w.clone() for w in weights]
    velocity = [torch.zeros_like(w) for w in weights]
    for step in gradients:
        for i, (w, g) in enumerate(zip(weights, step, strict=True)):
            if not (skip_vectors and w.ndim <= 1):
                length, slope = (math.sqrt(sum(x * x for x in t.flatten().tolist())) for t in (w, g))
                if length > 0 and slope > 0:
                    g = min(0.02 * length / (slope + decay * length) / rate, 1) * (g + decay * w)
            velocity[i] = 0.9 * velocity[i] + g
            weights[i] = w - rate * (g + 0.9 * velocity[i] if nesterov else velocity[i])
    return weights


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_norms", [False, True])
@pytest.mark.parametrize("rate", [0.7, 0.001])  # below the layers' own rates: clipped
def test_larc_equals_apexs_code_and_scales_vectors_only_with_decay_norms(rate: float, decay_norms: bool, nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (5, 4), (4,), (5,)]
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    start[3].zero_()
    gradients = [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(4)]
    params = [nn.Parameter(w.clone()) for w in start]
    optimizer = optimizer_of([{"params": params}], optimizer="larc", nesterov=nesterov, decay_norms=decay_norms)
    for step in gradients:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    expected = larc_loop(start, gradients, rate=rate, decay=0.01, skip_vectors=not decay_norms, nesterov=nesterov)
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), e)


def test_larc_with_a_rate_of_0_changes_nothing() -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = optimizer_of([{"params": [parameter]}], optimizer="larc", decay_norms=True)
    parameter.grad = torch.ones(3, 2)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(3, 2))


def test_adamw_decays_weights_apart_from_the_gradient() -> None:
    parameter = nn.Parameter(torch.full((2, 2), 3.0))
    optimizer = optimizer_of([{"params": [parameter]}], optimizer="adamw", nesterov=False, weight_decay=0.5, decay_norms=True)
    parameter.grad = torch.zeros(2, 2)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((2, 2), 3.0 * (1 - 0.1 * 0.5)))
    with pytest.raises(ValueError, match="optimizer=adamw: it has no Nesterov momentum"):
        optimizer_of([{"params": [parameter]}], optimizer="adamw")
