"""`twoviews methods`: every method with its paper and its recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from twoviews.cli import main
from twoviews.config.schema import RULES
from twoviews.methods import METHODS


def test_every_method_and_every_recipe_is_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = lines[::2], lines[1::2]
    assert [line.split()[0] for line in first] == list(METHODS)
    listed = [name for line in second for name in line.strip().removeprefix("recipe=").split(", ")]
    assert sorted(listed) == sorted(RULES["recipe"].choices)


def test_papers_have_authors_year_and_address(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods"])
    said = capsys.readouterr().out
    assert "SimCLR, Chen et al. 2020, https://arxiv.org/abs/2002.05709\n" in said
    assert "SupCon, Khosla et al. 2020, https://arxiv.org/abs/2004.11362, uses labels\n" in said
    assert said.count("https://") == len(METHODS) - 1, "all but supervised training have a paper"


def test_every_method_has_a_section_on_the_page() -> None:
    page = (Path(__file__).parent.parent.parent / "docs/methods.md").read_text(encoding="utf-8")
    described = re.findall(r"^### .*\(`(\w+)`\)", page, flags=re.M)
    assert sorted([*described, "supervised"]) == sorted(METHODS)
