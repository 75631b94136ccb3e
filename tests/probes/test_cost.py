"""The predicted time of an evaluation: it counts what each probe computes, by rates that were measured."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from twoviews.probes import cost, protocols

RATES = cost.Rates(image=1e-3, flop=1e-10)
schedule = partial(protocols.schedule, protocol="dkobak", backbone="resnet18", batch_size=100)


def seconds(*names: str, **changes: Any) -> float:
    settings = {"rows": 50_000, "queries": 10_000, "dims": (3072, 512), "classes": 10, "schedule": schedule, **changes}
    return cost.seconds([(name,) for name in names], RATES, **settings)


def test_two_networks_embed_all_images_once_for_all_probes() -> None:
    assert seconds() == pytest.approx(2 * 60_000 * 1e-3)
    knn = seconds("knn") - seconds()
    assert knn == pytest.approx(2 * 50_000 * 10_000 * (3072 + 2 * 512) * 1e-10)
    assert seconds("knn", baselines=False) == pytest.approx(60_000 * 1e-3 + 2 * 50_000 * 10_000 * 512 * 1e-10)
    assert seconds("knn", "linear_precomp") == pytest.approx(knn + seconds("linear_precomp"))


@pytest.mark.parametrize("name", [*protocols.ALL])
def test_every_probe_has_a_time_that_grows_with_the_images(name: str) -> None:
    few, many = (seconds(name, rows=rows) - seconds(rows=rows) for rows in (10_000, 40_000))
    assert 0 < few < many


def test_fine_tuning_is_two_networks_forward_and_backward_and_few_labels_take_their_share() -> None:
    augmented = seconds("linear_augm") - seconds()
    assert augmented == pytest.approx(schedule("linear_augm").epochs * 50_000 * 1e-3 * cost.VIEWS)
    tuned = seconds("finetune") - seconds()
    assert tuned == pytest.approx(2 * 3 * schedule("finetune").epochs * 50_000 * 1e-3 * cost.VIEWS)
    few = seconds("low_label_finetune") - seconds()
    assert few < 0.5 * tuned


def test_rates_are_measured_after_a_first_call() -> None:
    calls: list[int] = []
    rates = cost.measure(calls.append)
    assert calls == [cost.MEASURED] * 2
    assert rates.image > 0
    assert 1e-14 < rates.flop < 1e-8
