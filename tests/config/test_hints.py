"""The help of each command: its keys with value and comment, grouped by role, and the names that can be typed."""

from __future__ import annotations

import re

import pytest

from twoviews import config
from twoviews.cli import main
from twoviews.config.hints import comments, did_you_mean, recipes
from twoviews.config.schema import ROLES, RULES, show


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def shown(text: str) -> dict[str, tuple[str, str]]:
    """Return key: (value, comment) of each line of a help text."""
    return {key: (value, comment) for key, value, comment in re.findall(r"^  (\w+)=(\S+) +(\S.*)$", text, flags=re.M)}


@pytest.mark.parametrize("verb", config.VERBS)
def test_help_shows_each_key_of_the_verb_with_value_and_comment_and_no_other_key(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    text, cfg = help_of(capsys, verb, "--help"), config.load(verb, [])
    assert text.startswith(f"usage: twoviews {verb} key=value ...\n")
    assert shown(text) == {key: (show(value), comments(verb)[key]) for key, value in cfg.items()}


def test_help_groups_keys_by_role(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "pretrain", "--help").split("Keys and their values")[1].split("\nrecipes")[0]
    sections = re.split(r"^(\w+): .*$", text, flags=re.M)[1:]
    assert sections[::2] == list(ROLES)
    for role, text in zip(sections[::2], sections[1::2], strict=True):
        assert {RULES[key].role for key in shown(text)} == {role}


def test_help_of_pretrain_lists_recipes_methods_data_sets_backbones_and_probes(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "pretrain", "--help")
    for name, line in recipes().items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", text, flags=re.M)
    for title, key in (("methods", "method"), ("data sets", "dataset"), ("backbones", "backbone"), ("probes", "probes")):
        assert f"\n{title}: {', '.join(RULES[key].choices)}\n" in text
        assert f"\n{title}: " not in help_of(capsys, "doctor", "--help")


def test_help_with_a_recipe_shows_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    values = shown(help_of(capsys, "pretrain", "recipe=moco", "--help"))
    assert (values["queue_size"][0], values["epochs"][0], values["hidden_dims"][0]) == ("8192", "1000", "[512]")
    assert "queue_size" not in shown(help_of(capsys, "pretrain", "recipe=simclr", "-h"))


def test_a_verbs_own_file_explains_what_a_key_means_there(capsys: pytest.CaptureFixture[str]) -> None:
    values = shown(help_of(capsys, "evaluate", "--help"))
    assert values["seed"] == ("null", "random seed of the probes; null: the run's own")
    assert values["dataset"][1] != comments("pretrain")["dataset"]


def test_a_help_line_can_be_typed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    values = shown(help_of(capsys, "pretrain", "--help"))
    cfg = config.load("pretrain", [f"{key}={value}" for key, (value, _) in values.items()])
    assert dict(cfg) == dict(config.load("pretrain", []))


def test_comments_of_list_like_keys_name_every_choice() -> None:
    """A reader finds the accepted words in the help, not in the source."""
    listed_below = {"recipe", "method", "dataset", "backbone", "blur_kernel", "probes"}
    for key, rule in RULES.items():
        if rule.choices and key not in listed_below:
            names = [show(choice) for choice in rule.choices]
            text = comments(rule.verbs[0])[key]
            assert [name for name in names if name not in text] == [], key


def test_a_suggestion_is_near_or_completes_the_word() -> None:
    verbs = ["pretrain", "evaluate", "runs"]
    assert [did_you_mean(word, verbs) for word in ("pretrian", "eval", "run", "train", "cat")] == [
        *(": did you mean pretrain?", ": did you mean evaluate?", ": did you mean runs?", ": did you mean pretrain?", "")
    ]
