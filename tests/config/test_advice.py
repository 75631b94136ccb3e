"""Warnings: values far from those of the recipes, and what to change when a method collapses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from twoviews import config
from twoviews.config.advice import AGAINST_COLLAPSE
from twoviews.config.schema import RULES
from twoviews.methods import METHODS


@pytest.mark.parametrize("name", RULES["recipe"].choices)
def test_a_recipe_as_it_is_gives_no_warning(name: str) -> None:
    cfg = config.load("pretrain", [f"recipe={name}"])
    cfg.given = tuple(cfg)  # as if the user had typed every value
    assert config.warnings(cfg) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["recipe=simclr", "temperature=20"],
            "temperature=20 is far from the recipes of simclr (0.1 to 0.5): it may learn little, or diverge",
        ),
        (["recipe=moco_thin", "temperature=0.001"], "temperature=0.001 is far from the recipes of moco"),
        (["recipe=simclr", "base_learning_rate=30"], "the rate for a batch of 256, 30, is far from the recipes with optimizer=sgd"),
        (
            ["recipe=simclr", "learning_rate=0.0001", "min_learning_rate=0"],
            "the rate for a batch of 256, 5e-05, is far from the recipes with optimizer=sgd",
        ),
        (
            ["recipe=byol_thin", "optimizer=adamw", "nesterov=false"],
            "the rate for a batch of 256, 0.1, is far from the recipes with optimizer=adam",
        ),
        (["recipe=cifar_thin", "optimizer=lars"], "optimizer=lars was made for large batches and networks"),
    ],
)
def test_values_far_from_the_recipes_give_one_warning(words: list[str], said: str) -> None:
    found = config.warnings(config.load("pretrain", words))
    assert any(line.startswith(said) for line in found), found


@pytest.mark.parametrize("word", ["temperature=0.3", "base_learning_rate=0.2", "learning_rate=0.2", "optimizer=sgd"])
def test_usual_values_give_none(word: str) -> None:
    assert config.warnings(config.load("pretrain", ["recipe=simclr", word])) == []


def test_every_method_says_what_to_change_when_it_collapses() -> None:
    assert set(AGAINST_COLLAPSE) <= set(METHODS)
    for name in METHODS:
        advice = config.against_collapse(name)
        assert any(key in advice for key in RULES), advice


def test_the_page_gives_the_same_advice() -> None:
    page = (Path(__file__).parent.parent.parent / "docs/methods.md").read_text(encoding="utf-8")
    table = page.split("| method | change |")[1]
    rows = dict(re.findall(r"^\| (`.*`) \| (.*) \|$", table, flags=re.M))
    shown = {name: advice.replace("`", "") for names, advice in rows.items() for name in re.findall(r"`(\w+)`", names)}
    assert shown == {name: config.against_collapse(name) for name in METHODS if name != "supervised"}
