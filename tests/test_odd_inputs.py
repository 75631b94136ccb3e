"""Odd inputs: small cases, one function each, in `odd/`. Nothing of the user's may be lost, and nothing may go wrong silently."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from odd.odd import Case, Odd

MODULES = [path.stem for path in sorted((Path(__file__).parent / "odd").glob("*.py")) if path.stem not in ("__init__", "odd")]
LEAST = 60  # cases


def cases(module: str) -> list[Case]:
    """Return the public functions of a file that take an `Odd`."""
    loaded = __import__(f"odd.{module}", fromlist=["odd"])
    return [f for name, f in vars(loaded).items() if inspect.isfunction(f) and f.__module__ == loaded.__name__ and not name.startswith("_")]


CASES = [case for module in MODULES for case in cases(module)]


@pytest.mark.usefixtures("own_cache", "fast")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_odd_input(case: Case, tmp_path: Path) -> None:
    odd = Odd(tmp_path)
    odd.data.mkdir()
    case(odd)
    odd.check_nothing_lost()


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= LEAST
