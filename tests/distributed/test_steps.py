"""Several processes compute what one does: gradients, weights, queue, views and running statistics."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import processes
import pytest
import torch

from twoviews import config, distributed
from twoviews.rng import philox
from twoviews.views.spec import draw

SIZES = [2, pytest.param(4, marks=pytest.mark.slow)]
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a single process computes."""
    return processes.run(1, "steps.py", tmp_path_factory.mktemp("one"), "true")[0]


def check_equal_everywhere(found: list[dict[str, Any]]) -> None:
    """Weights, momentum copy, queue and running statistics are equal bit for bit in all processes."""
    for case, first in found[0].items():
        for other in found[1:]:
            assert [name for name, x in first["state"].items() if not torch.equal(x, other[case]["state"][name])] == [], case
            assert all(torch.equal(x, other[case]["gradients"][name]) for name, x in first["gradients"].items()), case


def check_equal_views(one: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """The views of all processes together are those of one process, bit for bit."""
    for case, whole in one.items():
        for view, pixels in enumerate(whole["views"]):
            assert torch.equal(torch.cat([process[case]["views"][view] for process in found]), pixels), case


@pytest.mark.parametrize("count", SIZES)
def test_p1_with_one_batchnorm_gradients_and_weights_are_those_of_one_process(count: int, one: dict[str, Any], tmp_path: Path) -> None:
    found = processes.run(count, "steps.py", tmp_path, "true")
    check_equal_everywhere(found)
    check_equal_views(one, found)
    for case, whole in one.items():
        part = found[0][case]
        torch.testing.assert_close(part["loss"], whole["loss"], rtol=1e-12, atol=0)
        assert len(part["gradients"]) == len(whole["gradients"]) > 5
        for name, gradient in whole["gradients"].items():
            difference = (part["gradients"][name] - gradient).abs().max()
            assert difference <= 1e-9 * gradient.abs().max() + 1e-15, f"{case}: {name}"  # before a BatchNorm, a bias has none but rounding
        for name, tensor in whole["state"].items():
            difference = (part["state"][name].double() - tensor.double()).abs().max()
            assert difference <= 1e-6 * tensor.double().abs().max() + 1e-12, f"{case}: {name}"  # a mean that is 0 but for rounding
        assert len(part["losses"]) == 8
        assert part["losses"] == pytest.approx(whole["losses"], rel=1e-9)


SOME = ("moco", "moco, whole batch", "simclr", "vicreg")


@pytest.mark.parametrize("cases", [SOME, pytest.param((), marks=pytest.mark.slow)], ids=["some", "all"])
def test_p2_with_a_batchnorm_of_each_process_all_still_agree(one: dict[str, Any], tmp_path: Path, cases: tuple[str, ...]) -> None:
    found = processes.run(2, "steps.py", tmp_path, "false", "", *cases)
    assert set(found[0]) == set(cases or one)
    one = {case: one[case] for case in found[0]}
    check_equal_everywhere(found)
    check_equal_views(one, found)
    for case in one:
        same = case == "moco"  # its sub-batches are those of one process
        assert (found[0][case]["losses"] == pytest.approx(one[case]["losses"], rel=1e-9)) == same, case
        assert mean(found[0][case]["losses"]) == pytest.approx(mean(one[case]["losses"]), rel=0.1), case
    # two processes are two sub-batches, and keys are computed in the other one than their queries
    two_parts = processes.run(1, "steps.py", tmp_path, "true", "2", "moco")[0]["moco"]["losses"]
    assert found[0]["moco, whole batch"]["losses"] == pytest.approx(two_parts, rel=1e-9)


@pytest.mark.slow
def test_with_a_batchnorm_of_each_process_the_loss_after_200_steps_is_within_the_spread_of_seeds(tmp_path: Path) -> None:
    one, two = (processes.run(count, "spread.py", tmp_path)[0]["losses"] for count in (1, 2))
    assert all(len(losses) == 200 for losses in one + two)
    ends = [[sum(losses[-20:]) / 20 for losses in found] for found in (one, two)]
    spread = max(ends[0]) - min(ends[0])
    assert ends[0] != ends[1], "each process has a BatchNorm of its own"
    assert abs(sum(ends[1]) - sum(ends[0])) / len(ends[0]) <= spread, ends


@pytest.mark.parametrize(("start", "count"), [(0, 7), (1, 6), (3, 4), (33 * 5, 33 * 3), (8, 8)])
def test_a_part_of_a_random_sequence_is_that_part_of_the_whole(start: int, count: int) -> None:
    assert philox(3, 5, 1, count, start).tolist() == philox(3, 5, 1, 400)[start : start + count].tolist()


def test_a_process_draws_the_numbers_of_its_own_images() -> None:
    whole = draw(1, 2, 2, 12)
    assert all(torch.equal(draw(1, 2, 2, 4, start), whole[:, start : start + 4]) for start in (0, 4, 8))


def test_in_a_single_process_every_function_is_the_identity() -> None:
    x = torch.randn(6, 3)
    module = torch.nn.Linear(3, 3)
    assert (distributed.rank(), distributed.size(), distributed.first(), distributed.program()) == (0, 1, True, "twoviews")
    assert distributed.gather(x) is distributed.mean(x) is x
    assert distributed.gather_views(x, 2)[0] is x
    assert distributed.data_parallel(module) is module
    assert x[distributed.rows(6)].shape == x.shape
    assert distributed.in_parts(lambda rows: rows, x) is x
    assert distributed.on_first(lambda: x) is distributed.first_on_each_machine(lambda: x) is x
    with distributed.Agreement() as agree, distributed.group(1):
        assert agree(3, 0, True) == [3, 0, True]


def test_several_processes_that_torchrun_did_not_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE=2 without RANK: start several processes with torchrun"), distributed.group(1):
        pass


@pytest.mark.parametrize("word", ["accumulate_grad_batches=4", "gradient_accumulation_steps=2"])
def test_gradient_accumulation_is_refused_with_the_reason(word: str) -> None:
    with pytest.raises(ValueError, match="not supported, because it is not the same as a larger batch: an image is compared only with"):
        config.load("pretrain", [word])


def test_the_program_for_several_processes_gathers_averages_and_agrees(tmp_path: Path) -> None:
    found = processes.run(3, "functions.py", tmp_path)
    for rank, values in enumerate(found):
        assert values["gather"].tolist() == [[0.0], [1.0], [2.0]]
        assert values["gradient"].tolist() == [[(rank + 1.0) * (1 + 2 + 3)]]
        assert values["views"] == (["0a", "1a", "2a", "0b", "1b", "2b"], rank)
        assert values["parts"].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
        assert values["few"].tolist() == [0.0, 2.0]
        assert [column.tolist() for column in values["columns"]] == [[0, 1, 2, 3], [0, 2, 4, 6]]
        assert values["mean"] == 1.0
        assert values["statistics"] == [1.0, 1.0]
        assert values["first"] == ("from 0", 1), "alone inside"
        assert values["agreed"] == [[0, 0], [0, 2], [1, 2], [1, 2]], "the answer is that of the call before, except at the end"
        own = "ArithmeticError: no features" if rank == 2 else "ValueError: no features (process of rank 2)"
        assert values["errors"] == [own, "ZeroDivisionError: integer division or modulo by zero"]
        assert values["compiled"] == found[0]["compiled"] > 0
        assert values["cached"] == (rank > 0)
        assert values["program"] == "torchrun --nproc-per-node=3 -m twoviews"
        assert values["stdout"] == (rank == 0)
