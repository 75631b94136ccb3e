"""Line charts as SVG: points, ticks and words, which the template draws in the colours of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 32  # room for labels, in the units of WIDTH
MOST_POINTS = 240  # of a line; longer ones become means of equal parts
MARKED = 40  # points up to which each is marked

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: shown in the legend; empty for the only line.
        points: (x, y), x ascending.
        number: of its colour.
    """

    name: str
    points: Sequence[Point]
    number: int = 0


@dataclass(frozen=True)
class Chart:
    """A chart, in the units of its values.

    Args:
        title: what is drawn.
        lines: of which none may be empty.
        marks: {name: y} of horizontal lines to compare with.
        x: name of the horizontal axis.
    """

    title: str
    lines: Sequence[Line]
    marks: dict[str, float] = field(default_factory=dict)
    x: str = "epoch"

    def drawn(self) -> dict[str, Any]:
        """Return what the template needs: paths, ticks, marks, and the chart in words."""
        points = [point for line in self.lines for point in line.points]
        xs, ys = _range([x for x, _ in points]), _range([*(y for _, y in points), *self.marks.values()])

        def at(x: float, y: float) -> Point:
            across = LEFT + (x - xs[0]) / (xs[1] - xs[0]) * (WIDTH - LEFT - RIGHT)
            return round(across, 1), round(HEIGHT - BOTTOM - (y - ys[0]) / (ys[1] - ys[0]) * (HEIGHT - TOP - BOTTOM), 1)

        lines = []
        for line in self.lines:
            drawn = [at(x, y) for x, y in thinned(line.points)]
            path = "M" + "L".join(f"{x} {y}" for x, y in drawn)
            lines.append({"name": line.name, "number": line.number, "path": path, "dots": drawn if len(drawn) <= MARKED else []})
        return {
            "title": self.title,
            "x": self.x,
            "lines": lines,
            "xticks": [(at(x, ys[0])[0], label) for x, label in labelled(ticks(*xs))],
            "yticks": [(at(xs[0], y)[1], label) for y, label in labelled(ticks(*ys))],
            "marks": [(at(xs[0], y)[1], name, shown(y)) for name, y in self.marks.items()],
            "words": self.words(),
            "box": (WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM),
        }

    def words(self) -> str:
        """Return the chart for those who cannot see it."""
        said = [
            f"{line.name + ' ' if line.name else ''}from {shown(line.points[0][1])} to {shown(line.points[-1][1])}" for line in self.lines
        ]
        said += [f"{name} {shown(y)}" for name, y in self.marks.items()]
        return f"{self.title} over the {self.x}s: {'; '.join(said)}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and highest value, apart from each other."""
    low, high = min(values), max(values)
    if high > low:
        return low, high
    return low - max(1e-9, abs(low) / 2), high + max(1e-9, abs(high) / 2)


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most `MOST_POINTS` points: means of equal parts, and the last one as it is."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = math.ceil(len(points) / (MOST_POINTS - 1))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts] + [points[-1]]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers within a range, at most so many."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most - 1 or factor == 20)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Return ticks with labels of as many digits as tell them apart."""
    for digits in range(3, 12):
        found = [shown(value, digits) for value in values]
        if len(set(found)) == len(found):
            break
    return list(zip(values, found, strict=True)) if values else []


def shown(value: float, digits: int = 3) -> str:
    """Return a number with so many digits, and thousands as `12k`."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.{digits}g}k"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"
