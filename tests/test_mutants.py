"""The faults of `make mutants` can be put in: each stands once in the code as it is, and names tests that exist."""

from __future__ import annotations

from pathlib import Path

import mutants

PACKAGE, TESTS = mutants.ROOT / "twoviews", Path(__file__).parent


def test_every_fault_stands_once_and_names_tests_that_exist() -> None:
    wrong = []
    for one in mutants.MUTANTS:
        if (count := (PACKAGE / one.file).read_text(encoding="utf-8").count(one.old)) != 1:
            wrong.append(f"{one.name}: stands {count} times in {one.file}")
        for name in one.tests.split():
            file, _, test = name.partition("::")
            if not (TESTS / file).is_file() or f"def {test}" not in (TESTS / file).read_text(encoding="utf-8"):
                wrong.append(f"{one.name}: no test {name}")
    assert not wrong
    assert len({one.name for one in mutants.MUTANTS}) == len(mutants.MUTANTS)
