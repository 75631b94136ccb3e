"""The losses equal naive loops that follow the papers' formulas, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twoviews.losses import contrastive, cross_entropy, info_nce, nt_xent


def algorithm_1(z: Tensor, temperature: float) -> Tensor:
    """Compute SimCLR's algorithm 1 literally: z_(2k-1) and z_(2k) are the two views of image k, counted from 1."""
    n = len(z) // 2
    interleaved = [None] + [z[k + view * n] for k in range(n) for view in (0, 1)]

    def s(i: int, j: int) -> Tensor:
        a, b = interleaved[i], interleaved[j]
        return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())

    def ell(i: int, j: int) -> Tensor:
        below = sum(torch.exp(s(i, k) / temperature) for k in range(1, 2 * n + 1) if k != i)
        return -torch.log(torch.exp(s(i, j) / temperature) / below)

    return sum(ell(2 * k - 1, 2 * k) + ell(2 * k, 2 * k - 1) for k in range(1, n + 1)) / (2 * n)


def l_out(z: Tensor, temperature: float, views: int) -> Tensor:
    """Compute L_out of Khosla et al. 2020, eq. 2: the positives of a row are the other views of its image."""
    rows, n = len(z), len(z) // views
    unit = [row / row.square().sum().sqrt() for row in z]
    total = z.new_zeros(())
    for i in range(rows):
        below = sum(torch.exp((unit[i] * unit[a]).sum() / temperature) for a in range(rows) if a != i)
        positives = [p for p in range(rows) if p != i and p % n == i % n]
        for p in positives:
            total = total - torch.log(torch.exp((unit[i] * unit[p]).sum() / temperature) / below) / len(positives)
    return total / rows


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("n", "d"), [(1, 4), (2, 1), (2, 3), (3, 8), (5, 2), (6, 16)])
def test_nt_xent_and_its_gradient_equal_algorithm_1(n: int, d: int, temperature: float) -> None:
    z = normal(2 * n, d, seed=n * d).requires_grad_()
    naive = algorithm_1(z, temperature)
    (expected,) = torch.autograd.grad(naive, z)
    loss = nt_xent(z, temperature)
    (gradient,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(loss, naive, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_more_than_two_views_equal_l_out_with_gradient(views: int, temperature: float) -> None:
    z = normal(views * 3, 5, seed=views).requires_grad_()
    naive = l_out(z, temperature, views)
    (expected,) = torch.autograd.grad(naive, z)
    loss = nt_xent(z, temperature, views)
    (gradient,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(loss, naive, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    n=st.integers(1, 5),
    views=st.integers(2, 4),
    d=st.integers(1, 9),
    temperature=st.floats(0.05, 5.0),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_nt_xent_equals_the_naive_loop_on_any_shape_and_ignores_lengths(
    n: int, views: int, d: int, temperature: float, scale: float, seed: int
) -> None:
    z = normal(views * n, d, seed=seed)
    loss = nt_xent(z, temperature, views)
    torch.testing.assert_close(loss, l_out(z, temperature, views), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(nt_xent(z * scale, temperature, views), loss, rtol=1e-9, atol=1e-10)  # a cosine does not depend on lengths


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_for_equal_rows_the_loss_is_the_log_of_the_number_of_other_rows(n: int, views: int) -> None:
    loss = nt_xent(torch.ones(views * n, 8, dtype=torch.float64), 0.5, views)
    assert loss.item() == pytest.approx(math.log(views * n - 1), abs=1e-12)


def test_for_equal_pairs_far_from_all_others_the_loss_is_0() -> None:
    z = torch.eye(8, dtype=torch.float64).repeat(2, 1)
    assert nt_xent(z, 0.01).item() == pytest.approx(0, abs=1e-12)


def test_the_order_of_images_and_of_views_does_not_matter() -> None:
    views, n = 3, 6
    z = normal(views, n, 8)
    loss = nt_xent(z.flatten(0, 1), 0.3, views)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(nt_xent(z[:, order].flatten(0, 1), 0.3, views), loss)
    torch.testing.assert_close(nt_xent(z[[2, 0, 1]].flatten(0, 1), 0.3, views), loss)
    pair = z[:2]
    torch.testing.assert_close(nt_xent(pair.flip(0).flatten(0, 1), 0.3), nt_xent(pair.flatten(0, 1), 0.3))
    one_view_moved = torch.stack([pair[0], pair[1][order]]).flatten(0, 1)
    assert abs(nt_xent(one_view_moved, 0.3) - nt_xent(pair.flatten(0, 1), 0.3)) > 1e-3, "the pairing itself must change the loss"


@pytest.mark.parametrize("z", ["normal", "equal", "opposite"])
@pytest.mark.parametrize("temperature", [1e-3, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_n2_loss_and_gradient_are_finite_at_small_temperatures(z: str, temperature: float, dtype: torch.dtype) -> None:
    half = normal(8, 16, dtype=torch.float32)
    rows = {"normal": normal(16, 16, dtype=torch.float32), "equal": torch.ones(16, 16), "opposite": torch.cat([half, -half])}[z]
    rows = rows.to(dtype).requires_grad_()
    loss = nt_xent(rows, temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(rows.grad).all()


EXTREMES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["normal", "equal", "zeros", "one row zero", "huge", "tiny"]),
        "n": st.sampled_from([1, 2, 3, 17]),
        "d": st.sampled_from([1, 2, 33]),
        "log_temperature": st.floats(math.log(1e-3), math.log(100)),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        "seed": st.integers(0, 99),
    }
)


def extreme(case: dict[str, Any], rows: int, shift: int = 0) -> Tensor:
    """Return rows that are valid but unusual."""
    z = torch.randn(rows, case["d"], generator=torch.Generator().manual_seed(case["seed"] + shift))
    scale = {"huge": 1e4, "tiny": 1e-4, "zeros": 0.0}.get(case["kind"], 1.0)
    z = (z * scale).to(case["dtype"])
    if case["kind"] == "equal":
        z[:] = z[0].clone()
    if case["kind"] == "one row zero":
        z[0] = 0
    return z


@settings(max_examples=200, deadline=None)
@given(case=EXTREMES)
def test_n2_losses_of_unusual_but_valid_rows_equal_those_in_float64(case: dict[str, Any]) -> None:
    temperature, n = math.exp(case["log_temperature"]), case["n"]
    key, queue = (torch.nn.functional.normalize(extreme(case, rows, shift).float(), dim=1) for rows, shift in ((n, 1), (5, 2)))

    def against_the_queue(q: Tensor) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        return info_nce(q, key.to(wide), queue.to(wide), temperature)[0]

    functions: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = [
        (extreme(case, 2 * n), lambda z: nt_xent(z, temperature)),
        (extreme(case, n), against_the_queue),
        (extreme(case, n), lambda logits: cross_entropy(logits, torch.arange(n) % case["d"])),
    ]
    for rows, loss in functions:
        rows.requires_grad_()
        value, exact = loss(rows), loss(rows.detach().double()).item()
        # float32 has a cosine to about 1e-7, divided by the temperature, and a logit of 1e4 to 1e-3
        assert abs(value.item() - exact) <= 4e-6 / temperature + 1e-5 * abs(exact) + 1e-6
        value.backward()
        if case["dtype"] != torch.float16:  # the gradient of a tiny row exceeds its maximum of 65,504
            assert torch.isfinite(rows.grad).all()


def test_a_small_temperature_gives_the_gap_to_the_hardest_negative() -> None:
    z = normal(12, 6)
    unit = torch.nn.functional.normalize(z, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-math.inf)
    positive = cosine[torch.arange(12), (torch.arange(12) + 6) % 12]
    expected = ((cosine.amax(1) - positive) / 1e-3).mean()  # logsumexp tends to the maximum
    assert nt_xent(z, 1e-3).item() == pytest.approx(expected.item(), rel=1e-2)


def test_the_diagonal_has_no_effect_even_at_a_high_temperature() -> None:
    z = torch.eye(4, dtype=torch.float64)  # all cosines are 0, so each row has three equal others, and none of e^(1/T)
    assert nt_xent(z, 100.0).item() == pytest.approx(math.log(3), abs=1e-12)


@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 0.5])
def test_the_views_of_a_single_image_have_no_negatives(temperature: float) -> None:
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # a mask of -1000 would be as large as this pair's logit
    assert nt_xent(opposite, temperature).item() == 0


@pytest.mark.parametrize("tile", [1, 7, 40, 10**6])
@pytest.mark.parametrize(("rows", "views"), [(12, 2), (12, 3), (12, 4), (2, 2), (14, 2)])
def test_tiles_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch, rows: int, views: int, tile: int) -> None:
    plain, tiled = normal(rows, 6).requires_grad_(), normal(rows, 6).requires_grad_()
    expected = nt_xent(plain, 0.2, views)
    (3 * expected).backward()
    monkeypatch.setattr(contrastive, "TILED_FROM", 0)
    monkeypatch.setattr(contrastive, "TILE", tile)
    loss = nt_xent(tiled, 0.2, views)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(tiled.grad, plain.grad)


def test_tiles_are_used_only_for_many_rows() -> None:
    def nodes(rows: int) -> set[str]:
        """Return the names of the autograd nodes of a loss."""
        names, todo = set(), [nt_xent(torch.ones(rows, 1).requires_grad_(), 1.0).grad_fn]
        while todo:
            node = todo.pop()
            if node is not None:
                names.add(node.name())
                todo += [parent for parent, _ in node.next_functions]
        return names

    assert any("Tiled" in name for name in nodes(contrastive.TILED_FROM + 2))
    assert not any("Tiled" in name for name in nodes(64))


def test_bfloat16_input_is_computed_in_float32() -> None:
    z = normal(64, 32, dtype=torch.float32).bfloat16()
    loss = nt_xent(z, 0.07)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(z.float(), 0.07), rtol=0, atol=0)


def test_autocast_does_not_change_the_losses() -> None:
    z, logits, labels = normal(64, 32, dtype=torch.float32), normal(16, 10, dtype=torch.float32), torch.arange(16) % 10
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(z, 0.07), cross_entropy(logits, labels)
    for loss, expected in zip(inside, (nt_xent(z, 0.07), cross_entropy(logits, labels)), strict=True):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_float64_input_stays_float64() -> None:
    assert nt_xent(normal(4, 4), 0.5).dtype == torch.float64
    assert cross_entropy(normal(4, 4), torch.arange(4)).dtype == torch.float64


def test_gradient_flows_where_all_cosines_are_negative() -> None:
    corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)  # a tetrahedron: cosines of -1/3
    corners.requires_grad_()
    nt_xent(corners, 0.5).backward()
    assert (corners.grad.norm(dim=1) > 0.01).all(), "clamping the similarity at 0 would stop the gradient here"


def test_a_step_down_the_gradient_pulls_an_opposite_pair_together() -> None:
    z = torch.tensor([[1.0, 0.1], [0.1, 1.0], [-1.0, 0.2], [0.2, -1.0]], dtype=torch.float64, requires_grad=True)

    def pair_cosine(rows: Tensor) -> Tensor:
        return torch.cosine_similarity(rows[:2], rows[2:]).sum()

    (gradient,) = torch.autograd.grad(nt_xent(z, 0.5), z)
    assert pair_cosine(z.detach()) < -1.5
    assert pair_cosine(z.detach() - 0.1 * gradient) > pair_cosine(z.detach()) + 1e-4


@pytest.mark.parametrize(("rows", "temperature", "views"), [(5, 0.5, 2), (4, 0.5, 3), (4, 0.0, 2), (4, -0.1, 2), (4, 0.5, 1), (4, 0.5, 0)])
def test_nt_xent_refuses_values_out_of_range(rows: int, temperature: float, views: int) -> None:
    with pytest.raises(ValueError, match="nt_xent"):
        nt_xent(torch.ones(rows, 3), temperature, views)


def test_nt_xent_refuses_rows_that_are_not_vectors() -> None:
    with pytest.raises(ValueError, match="nt_xent"):
        nt_xent(torch.ones(4, 3, 2), 0.5)


def test_cross_entropy_equals_the_mean_of_minus_log_p() -> None:
    logits, labels = normal(9, 5), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    naive = sum(-math.log(math.exp(row[y]) / sum(map(math.exp, row))) for row, y in zip(logits.tolist(), labels.tolist(), strict=True)) / 9
    assert cross_entropy(logits, labels).item() == pytest.approx(naive, rel=1e-12)


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32() -> None:
    logits, labels = normal(64, 10, dtype=torch.float32).bfloat16(), torch.arange(64) % 10
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.float(), labels), rtol=0, atol=0)


def unit(*shape: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(normal(*shape, seed=seed), dim=1)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 2), (4, 3, 5), (6, 32, 8)])
def test_info_nce_and_its_gradient_equal_the_papers_formula(n: int, k: int, d: int, temperature: float) -> None:
    query, key, queue = normal(n, d, seed=1).requires_grad_(), unit(n, d, seed=2), unit(k, d, seed=3)
    naive = query.new_zeros(())
    for i in range(n):  # eq. 1 of He et al. 2020: the sum is over one positive and K negatives
        q = query[i] / query[i].norm()
        logits = [q @ key[i] / temperature] + [q @ row / temperature for row in queue]
        naive = naive - torch.log(torch.exp(logits[0]) / sum(torch.exp(logit) for logit in logits)) / n
    (expected,) = torch.autograd.grad(naive, query)
    loss, _ = info_nce(query, key, queue, temperature)
    (gradient,) = torch.autograd.grad(loss, query)
    torch.testing.assert_close(loss, naive, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_info_nce_counts_the_queries_whose_own_key_is_the_most_similar() -> None:
    key = torch.eye(4, dtype=torch.float64)
    queue = torch.cat([key[:1], -key])  # the first query's own key is in the queue too, so it is not the most similar
    _, share = info_nce(3 * key, key, queue, 0.2)
    assert share.item() == 0.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_n2_info_nce_is_in_float32_and_finite_at_small_temperatures(dtype: torch.dtype) -> None:
    query = normal(8, 16, seed=4).to(dtype).requires_grad_()
    key, queue = unit(8, 16, seed=5).float(), unit(64, 16, seed=6).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = info_nce(query, key, queue, 1e-3)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(query.grad).all()
    exact, _ = info_nce(query.detach().double(), key.double(), queue.double(), 1e-3)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-3)


def test_info_nce_refuses_shapes_that_do_not_match() -> None:
    good = [normal(4, 3), normal(4, 3), normal(9, 3)]
    for i, wrong in ((0, normal(5, 3)), (1, normal(4, 2)), (2, normal(9, 2))):
        with pytest.raises(ValueError, match="info_nce: expected queries and keys"):
            info_nce(*[wrong if i == j else part for j, part in enumerate(good)], 0.2)
    with pytest.raises(ValueError, match="temperature > 0"):
        info_nce(*good, 0.0)
