"""One rule per key: `base.yaml` and `RULES` agree, constructors ask for keys that exist, and roles decide what a key is for."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from twoviews import build, config, data, methods, runs
from twoviews.commands import pretrain
from twoviews.config import Config, schema
from twoviews.config.hints import comments
from twoviews.config.schema import CONFIG_DIR, ROLES, RULES, Rule, keys, show
from twoviews.models import resnet
from twoviews.runs import tables
from twoviews.views.spec import Views, ViewSpec

BASE = yaml.safe_load((CONFIG_DIR / "base.yaml").read_text(encoding="utf-8"))


def another_value(key: str) -> Any:
    """Return a value that the key accepts and that `base.yaml` does not have."""
    rule = RULES[key]
    one = {int: 16, float: 0.25, bool: True, str: "another", dict: {"grayscale_p": 0.25}}[rule.type]
    candidates = [*rule.choices, one, not one if rule.type is bool else one, rule.high, [one, one], [one]]
    return next(value for value in candidates if rule.accepts(value) and value != BASE[key])


# ---- base.yaml and RULES ----


def test_every_key_of_base_yaml_has_a_rule_and_every_rule_a_key() -> None:
    assert set(BASE) == set(RULES)


def test_every_key_of_base_yaml_is_explained() -> None:
    assert {key for key, text in comments("pretrain").items() if text} == set(BASE)


def test_the_values_of_base_yaml_are_accepted() -> None:
    chosen_by_a_recipe = {"recipe", "method", "dataset", "backbone"}
    refused = {key for key, value in BASE.items() if value != "???" and not RULES[key].accepts(value)}
    assert refused == chosen_by_a_recipe


def test_a_key_without_a_value_belongs_to_a_method() -> None:
    of_methods = {key for method in methods.METHODS.values() for key in methods.arguments(method)}
    assert {key for key, value in BASE.items() if value == "???"} == of_methods & set(RULES) - {"backbone", "batch_size", "drop_last"}


def test_a_verb_takes_its_own_keys_only() -> None:
    for verb in ("evaluate", "runs", "report", "bench", "doctor"):
        assert set(config.load(verb, [])) == set(keys(verb=verb)), verb
    without_unset = {key for key in keys(verb="pretrain") if BASE[key] != "???"}
    assert set(config.load("pretrain", ["recipe=supervised"])) == without_unset | {"one_forward"}
    assert not {"run", "view", "small", "transfer"} & set(keys(verb="pretrain"))


def test_choices_are_what_the_package_has() -> None:
    assert set(RULES["method"].choices) == set(methods.METHODS)
    assert set(RULES["backbone"].choices) == set(resnet.BACKBONES)
    assert set(RULES["dataset"].choices) == {*data.READERS, "folder"}
    assert set(RULES["recipe"].choices) == {path.stem for path in (CONFIG_DIR / "recipes").glob("*.yaml")}
    assert set(schema.REFERENCE_TABLES) == set(tables.TABLES)


# ---- constructors ----


@pytest.mark.parametrize("name", RULES["recipe"].choices)
def test_a_recipe_has_the_keys_that_its_method_takes_and_no_others(name: str) -> None:
    every = {key for method in methods.METHODS.values() for key in methods.arguments(method)}
    from_parts = set(build.FROM_DATA)
    of_the_loop = {"batch_size", "drop_last"}  # every recipe has them
    cfg = config.load("pretrain", [f"recipe={name}"])
    takes = set(methods.arguments(methods.METHODS[cfg.method])) - from_parts
    assert takes <= set(cfg)
    assert (every - from_parts - takes - of_the_loop) & set(cfg) == set()
    assert set(inspect.signature(ViewSpec).parameters) - {"size"} <= set(cfg)


@pytest.mark.parametrize("constructor", [*methods.METHODS.values(), Views], ids=lambda c: c.__name__)
def test_constructors_take_hyper_parameters_keyword_only_and_without_defaults(constructor: type) -> None:
    parameters = list(inspect.signature(constructor.__init__).parameters.values())[1:]  # type: ignore[misc]
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) and p.default is p.empty for p in parameters)


# ---- roles ----


def test_every_rule_has_a_role_and_verbs() -> None:
    assert {rule.role for rule in RULES.values()} == set(ROLES)
    assert all(rule.verbs and set(rule.verbs) <= set(config.VERBS) for rule in RULES.values())
    assert sorted(key for role in ROLES for key in keys(role)) == sorted(RULES)


@pytest.fixture
def stored() -> dict[str, Any]:
    """Return a resolved configuration with every key of `pretrain`."""
    return {key: None if value == "???" else value for key, value in BASE.items() if key in keys(verb="pretrain")}


def test_runs_are_grouped_over_seeds_by_their_science_keys(stored: dict[str, Any]) -> None:
    summary = {"dataset": "CIFAR-10", "train": {"steps": 1}}
    pairs = {key: [(summary, stored), (summary, {**stored, key: another_value(key)})] for key in stored}
    separate = {key for key, pair in pairs.items() if len(tables.groups(pair)) == 2}
    assert separate == set(keys("science", verb="pretrain")) - {"seed"}
    assert tables.groups(pairs["seed"]) == [pairs["seed"]]
    other_data = {**summary, "manifest": {"data_digest": "of other images"}}
    assert len(tables.groups([(summary, stored), (other_data, stored)])) == 2


def test_a_run_is_identified_by_its_science_keys(stored: dict[str, Any], tmp_path: Path) -> None:
    def identity(cfg: dict[str, Any]) -> str:
        return runs.identity(runs.create(tmp_path, "run", yaml.safe_dump(cfg), None, "digest"))

    same = identity(stored)
    assert {key for key in stored if identity({**stored, key: another_value(key)}) != same} == set(keys("science", verb="pretrain"))


def test_output_and_probe_keys_may_change_on_resume_and_no_others(stored: dict[str, Any], tmp_path: Path) -> None:
    path = runs.create(tmp_path, "run", yaml.safe_dump(stored), None, "digest")
    with runs.RunFolder(path) as folder:
        folder.write(runs.MANIFEST, {"seed": stored["seed"]})
    refused = {}
    for key in set(stored) - {"resume"}:
        cfg = Config({**stored, "resume": str(path), key: another_value(key)})
        cfg.given = (key,)
        try:
            assert pretrain._resumed(cfg, path, 1)[key] == another_value(key)
        except ValueError as error:
            refused[key] = str(error)
    assert set(refused) == set(keys("science", "machine", verb="pretrain"))
    assert all(f"({key}: " in text for key, text in refused.items())


# ---- rules ----


@pytest.mark.parametrize(
    ("rule", "good", "bad", "text"),
    [
        (Rule(int, 1, 5), [1, 5], [0, 6, 1.5, True, "1", None], "an integer in [1, 5]"),
        (Rule(float, 0, 1, above=True), [1, 0.5], [0, 1.1, float("nan"), True], "a number above 0, at most 1"),
        (Rule(int, 1, null=True), [None, 7], [0], "an integer of at least 1 or null"),
        (Rule(bool), [True, False], [0, 1, "true", None], "true or false"),
        (Rule(str), ["a"], ["", 3, None], "a text"),
        (Rule(str, choices=("auto", True, False)), ["auto", True], [1, "true"], "auto or true or false"),
        (Rule(int, 1, 9, items=0), [[], [1, 2]], [1, [0], "a"], "a list in brackets, each item an integer in [1, 9]"),
        (Rule(int, 1, 9, items=1), [[1]], [[]], "a list in brackets, not empty, each item an integer in [1, 9]"),
        (Rule(float, 0, 1, items=2, pair=True), [[0, 1]], [[1, 0], [0.5], [0, 0.5, 1]], "a list [low,high], each item a number"),
        (Rule(str, choices=("a", "b"), words=True), ["a", "a,b", "b, a"], ["c", "a,c", ""], "a or b, or several with commas, in quotes"),
    ],
)
def test_a_rule_accepts_its_values_and_says_what_it_expects(rule: Rule, good: list[Any], bad: list[Any], text: str) -> None:
    assert [value for value in good if not rule.accepts(value)] == []
    assert [value for value in bad if rule.accepts(value)] == []
    assert str(rule).startswith(text)


def test_values_are_shown_as_they_are_typed() -> None:
    assert [show(value) for value in (True, None, [1, 0.5, True], "a", 3)] == ["true", "null", "[1,0.5,true]", "a", "3"]
