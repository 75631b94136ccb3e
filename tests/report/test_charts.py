"""Charts: every point is where its value says, ticks are round, and the words say what is drawn."""

from __future__ import annotations

import re

import pytest

from twoviews.report import charts
from twoviews.report.charts import Chart, Line


def test_points_are_drawn_where_their_values_say() -> None:
    drawn = Chart("loss", [Line("", [(0.0, 4.0), (5.0, 2.0), (10.0, 0.0)])]).drawn()
    width, height, left, right, top, bottom = drawn["box"]
    assert drawn["lines"][0]["dots"] == [(left, top), ((left + right) / 2, (top + bottom) / 2), (right, bottom)]
    assert 0 < left < right < width
    assert 0 < top < bottom < height
    assert [label for _, label in drawn["xticks"]] == ["0", "5", "10"]
    assert [label for _, label in drawn["yticks"]] == ["0", "1", "2", "3", "4"]
    assert drawn["words"] == "loss over the epochs: from 4 to 0"


def test_a_mark_is_inside_the_range_and_in_the_words() -> None:
    drawn = Chart("kNN", [Line("", [(1.0, 50.0), (2.0, 60.0)])], {"test": 80.0}).drawn()
    ((y, name, value),) = drawn["marks"]
    assert (y, name, value) == (drawn["box"][4], "test", "80")
    assert drawn["words"] == "kNN over the epochs: from 50 to 60; test 80"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, ["0", "0.5", "1"]),
        (0, 15, ["0", "5", "10", "15"]),
        (1650, 1790, ["1650", "1700", "1750"]),
        (10_100, 10_500, ["10.1k", "10.2k", "10.3k", "10.4k", "10.5k"]),
        (0.0012, 0.0031, ["0.0015", "0.002", "0.0025", "0.003"]),
        (12_340, 12_380, ["12.34k", "12.35k", "12.36k", "12.37k", "12.38k"]),
        (4.123, 4.127, ["4.123", "4.124", "4.125", "4.126", "4.127"]),
        (101.2, 101.6, ["101.2", "101.3", "101.4", "101.5", "101.6"]),
    ],
)
def test_ticks_are_round_few_and_different(low: float, high: float, expected: list[str]) -> None:
    labels = [label for _, label in charts.labelled(charts.ticks(low, high))]
    assert labels == expected
    assert len(set(labels)) == len(labels) <= 5


@pytest.mark.parametrize("points", [[(0.0, 3.0)], [(0.0, 3.0), (1.0, 3.0)], [(2.0, 0.0), (2.0, 0.0)]])
def test_one_value_alone_can_be_drawn(points: list[tuple[float, float]]) -> None:
    drawn = Chart("loss", [Line("", points)]).drawn()
    _, _, left, right, top, bottom = drawn["box"]
    assert all(left <= x <= right and top <= y <= bottom for x, y in drawn["lines"][0]["dots"])


def test_a_long_line_becomes_means_and_keeps_its_last_point() -> None:
    points = [(float(i), float(i % 2)) for i in range(5000)]
    thin = charts.thinned(points)
    assert len(thin) <= charts.MOST_POINTS
    assert thin[-1] == points[-1]
    assert all(abs(y - 0.5) < 0.1 for _, y in thin[:-2])
    drawn = Chart("loss", [Line("", points)]).drawn()
    assert drawn["lines"][0]["dots"] == []
    assert len(re.findall("L", drawn["lines"][0]["path"])) == len(thin) - 1
