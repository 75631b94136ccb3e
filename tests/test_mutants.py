"""The faults of `make mutants` can be planted: each replaces text that occurs once, and names tests that exist."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mutants import MUTANTS, mutant

GOOD = MUTANTS[0]


def test_every_fault_can_be_planted_and_its_tests_exist() -> None:
    assert mutant.problems(MUTANTS) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"old": "no such text"}, "occurs 0 times"),
        ({"old": "z"}, "expected once"),
        ({"file": "no/such/file.py"}, "occurs 0 times"),
        ({"new": GOOD.old}, "changes nothing"),
        ({"new": "("}, "is not Python"),
        ({"tests": "test_no_such_file.py"}, "test_no_such_file.py is defined 0 times"),
        ({"tests": f"{GOOD.tests} test_no_such_test[1]"}, "test_no_such_test[1] is defined 0 times"),
        ({"tests": ""}, "no test"),
    ],
)
def test_a_fault_that_cannot_be_planted_is_reported(changes: dict[str, str], problem: str) -> None:
    (found,) = mutant.problems([replace(GOOD, **changes)])
    assert found.startswith(f"{GOOD.name}: ")
    assert problem in found


def test_two_faults_of_one_name_are_reported() -> None:
    assert mutant.problems([GOOD, GOOD]) == [f"{GOOD.name}: 2 mutants have this name"]


def test_a_fault_is_planted_in_the_copy_alone(tmp_path: Path) -> None:
    original, copy = tmp_path / "original.py", tmp_path / GOOD.file
    shutil.copy(mutant.ROOT / "twoviews" / GOOD.file, original)
    copy.parent.mkdir(exist_ok=True)
    copy.hardlink_to(original)
    before = original.read_text(encoding="utf-8")
    GOOD.plant(tmp_path)
    assert copy.read_text(encoding="utf-8") == before.replace(GOOD.old, GOOD.new)
    assert original.read_text(encoding="utf-8") == before
