"""Every wrong command line gets one line on stderr and exit code 2, at once, and the right key for a typo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import environment

from twoviews import config
from twoviews.cli import main
from twoviews.config import schema
from twoviews.config.hints import ELSEWHERE, hint
from twoviews.config.schema import RULES

RECIPES = RULES["recipe"].choices
ONE_PER_METHOD = ("cifar_thin", *(name for name in RECIPES if name.endswith("_thin") and name != "cifar_thin"), "supervised")
COMMANDS = [("pretrain", f"recipe={name}") for name in ONE_PER_METHOD] + [(verb, "") for verb in config.VERBS if verb != "pretrain"]


def typos(key: str, known: set[str]) -> Iterator[str]:
    """Yield one edit at every position of a key: in turn a letter is lost, doubled, changed, or swapped with the next."""
    for i in range(len(key)):
        edits = (
            key[:i] + key[i + 1 :],
            key[: i + 1] + key[i:],
            key[:i] + ("x" if key[i] != "x" else "y") + key[i + 1 :],
            key[:i] + key[i : i + 2][::-1] + key[i + 2 :],
        )
        typo = edits[i % 4]
        if typo and typo not in known and typo[0].isalpha():
            yield typo


def bad_values(verb: str, key: str) -> Iterator[str]:
    """Yield values of a wrong type, and values out of range."""
    rule = schema.rule(verb, key)
    yield ""
    if key in config.PATH_KEYS:
        return  # any text is a path
    if not rule.null:
        yield "null"
    yield "{a:1}"
    if rule.items is None:
        yield "[1,2]"
    else:
        one = 8 if rule.type is int else 0.5
        yield from ("a", str(one), f"[{one},a]", f"[{one},true]")
        if rule.low >= 0:
            yield "[-1,1]"
        if rule.items:
            yield "[]"
        if rule.pair:
            yield from ("[0.9,0.2]", f"[{one}]", "[0.1,0.2,0.3]", *(["[0,1]"] if rule.above else []))
        return
    if rule.choices:
        yield from ("nosuch", "-1")
    elif rule.type is bool:
        yield from ("maybe", "3", "0.5")
    elif rule.type is str:
        yield from ("3", "true", "nosuch")
    else:
        yield from ("abc", "true", "nan", "inf", "1e9")
        yield str(rule.low if rule.above else rule.low - 1)
        if rule.type is int:
            yield "1.5"


def cases() -> list[dict[str, Any]]:
    """Return every wrong command line: its words, what kind of mistake it is, and the key that the answer must name.

    Each key of a verb occurs once, with the first of `COMMANDS` that has it.
    """
    out: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for verb, recipe in COMMANDS:
        known = set(config.load(verb, [recipe] if recipe else [])) | {"hydra"}
        start = [verb, recipe] if recipe else [verb]
        new = {key for key in known - {"hydra", "recipe"} if (verb, key) not in seen}
        seen |= {(verb, key) for key in new}
        for key in sorted(new):
            value = {bool: "true", int: "1", float: "1", str: "a", dict: "[{blur_p:1},{}]"}[RULES[key].type]
            wrong = [("typo", f"{typo}={value}") for typo in typos(key, known)]
            wrong += [("sign", f"{sign}{key}={value}") for sign in ("+", "++", "-", "--")] + [
                ("sign", f"~{key}"),
                ("sign", f"~{key}={value}"),
            ]
            wrong += [("value", f"{key}={bad}") for bad in bad_values(verb, key)]
            wrong += [("word", key), ("interpolation", f"{key}=${{seed}}")] * (key not in config.PATH_KEYS)
            out += [{"kind": kind, "key": key, "argv": [*start, word]} for kind, word in wrong]
    for typo in typos("recipe", set(RULES)):
        out.append({"kind": "typo", "key": "recipe", "argv": ["pretrain", f"{typo}={RECIPES[0]}"]})
    out += [{"kind": "value", "key": "recipe", "argv": ["pretrain", f"recipe={value}"]} for value in ("", "nosuch", "null", "../x", "[a]")]
    return out


# It runs in its own process, because only there can it show that torch was not imported.
RUN_CASES = """
import contextlib, io, json, sys
from twoviews.cli import main
answers = []
for case in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(case["argv"])
    answers.append({**case, "code": code, "out": out.getvalue(), "err": err.getvalue()})
json.dump({"answers": answers, "torch": "torch" in sys.modules}, sys.stdout)
"""


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the program answers to every wrong command line."""
    tmp = tmp_path_factory.mktemp("cases")
    done = subprocess.run(
        [sys.executable, "-c", RUN_CASES],
        input=json.dumps(cases()),
        env=environment(tmp),
        cwd=tmp,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {**json.loads(done.stdout), "left": sorted(p.name for p in tmp.iterdir() if p.name != "guard")}


def test_k2_every_wrong_word_is_answered_with_one_line_and_exit_code_2(answered: dict[str, Any]) -> None:
    assert {answer["key"] for answer in answered["answers"]} == set(RULES)
    assert len(answered["answers"]) > 20 * len(RULES)
    wrong = [a for a in answered["answers"] if a["code"] != 2 or a["out"] or a["err"].count("\n") != 1 or not a["err"].endswith("\n")]
    assert not wrong, f"{len(wrong)} of {len(answered['answers'])}: {wrong[:5]}"
    assert answered["left"] == []  # no outputs/, no run folder


def test_k2_the_answer_to_every_wrong_word_but_a_typo_names_its_key(answered: dict[str, Any]) -> None:
    silent = [a for a in answered["answers"] if a["kind"] != "typo" and not re.search(rf"\b{a['key']}\b", a["err"])]
    assert not silent, silent[:5]


def test_k2_typos_of_one_letter_are_answered_with_the_right_key(answered: dict[str, Any]) -> None:
    typed = [a for a in answered["answers"] if a["kind"] == "typo"]
    missed = [a for a in typed if f"did you mean {a['key']}?" not in a["err"]]
    assert len(typed) > 500
    assert len(missed) <= 0.05 * len(typed), [(a["argv"][-1], a["err"]) for a in missed]


def test_k2_wrong_words_are_answered_without_importing_torch(answered: dict[str, Any]) -> None:
    assert not answered["torch"]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the one line with which a command line is refused."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        # names of other tools
        ("pretrain lr=0.1", "lr=0.1: pretrain has no key 'lr': type learning_rate=, or base_learning_rate="),
        ("pretrain gpus=2", "gpus=2: pretrain has no key 'gpus': not needed, because torchrun starts one process for each GPU"),
        ("pretrain wandb=true", "wandb=true: pretrain has no key 'wandb': type track=tensorboard, wandb"),
        ("pretrain arch=resnet18", "arch=resnet18: pretrain has no key 'arch': type backbone="),
        ("pretrain +lr=1", "+lr=1: keys cannot be added or removed: type learning_rate="),
        # a key of another verb or method
        ("evaluate epochs=3", "epochs=3: evaluate has no key 'epochs': it is a key of pretrain"),
        ("pretrain view=list", "view=list: pretrain has no key 'view': it is a key of runs"),
        ("pretrain recipe=supervised temperature=1", "recipe=supervised has no key 'temperature': method=supervised does not use it"),
        # the grammar
        ("pretrain recipe", "recipe: expected recipe=<value>"),
        ("pretrain demo", "demo: expected key=value: type recipe=demo"),
        ("pretrain resnet18", "resnet18: expected key=value: type backbone=resnet18"),
        ("pretrain epoch", "epoch: expected key=value: did you mean epochs?"),
        ("pretrain --epochs=3", "--epochs=3: no such flag: type epochs=3"),
        ("pretrain --epochs 3", "--epochs: no such flag: type epochs=<value>"),
        ("pretrain --verbose", "--verbose: no such flag: expected --multirun, --cfg job or --help"),
        ("pretrain +epochs=3", "+epochs=3: keys cannot be added or removed: type epochs=<value>"),
        ("pretrain probes=knn,linear_precomp", "need --multirun; one run with a list: \"probes='knn,linear_precomp'\""),
        ("pretrain seed=0,1", "seed=0,1: several values need --multirun\n"),
        ("pretrain seed=1 seed=2", "seed is given 2 times: give it once\n"),
        # values
        ("pretrain recipe=dem", "got 'dem': did you mean demo?"),
        ("pretrain epochs=null", "epochs expects an integer in [1, 100000], got 'null'"),
        ("pretrain hidden_dims=512", "expects a list in brackets, each item an integer in [1, 65536], got '512'"),
        ("pretrain crop_scale=[1,0.2]", "expects a list [low,high], each item a number above 0"),
        ("runs compar", "got 'compar': did you mean compare?"),
        # verbs
        ("pretain", "pretain: no such verb: did you mean pretrain?"),
        ("eval", "eval: no such verb: did you mean evaluate?"),
        ("run", "run: no such verb: did you mean runs?"),
        ("docter", "docter: no such verb: did you mean doctor?"),
        ("recipe=demo", "recipe=demo: expected a verb before the key: type twoviews pretrain recipe=demo (or after runs)\n"),
        ("--run=a", "--run=a: expected a verb before the key: type twoviews evaluate run=a (or after embed, export, runs, report)"),
        ("demo", "demo: no such verb: type twoviews pretrain recipe=demo"),
    ],
)
def test_near_misses_are_told_what_to_type(capsys: pytest.CaptureFixture[str], argv: str, says: str) -> None:
    assert says in refused(capsys, *argv.split())


@pytest.mark.parametrize("word", ["banana", "xyzzy", "hello", "kitchen", "tensorflow", "q"])
def test_an_unrelated_word_gets_no_suggestion(capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert refused(capsys, word) == f"twoviews: {word}: no such verb (twoviews --help lists them)\n"
    assert refused(capsys, "pretrain", f"{word}=1") == f"twoviews: {word}=1: pretrain has no key '{word}'\n"
    assert hint(word, RULES) == hint(f"{word}=1", RULES) == ""


def test_every_hint_leads_to_a_key() -> None:
    assert not set(ELSEWHERE) & set(RULES)
    for word, advice in ELSEWHERE.items():
        named = re.findall(r"(\w+)=", advice)
        assert set(named) <= set(RULES), word
        assert named or advice.startswith("not "), word
    assert "learning_rate" not in hint("lr=1", config.load("evaluate", [])), "not a key of evaluate"


@pytest.mark.parametrize(
    "word",
    [
        "_target_=os.system",
        "+_target_=os.system",
        "probes=${oc.env:HOME}",
        "backbone=${oc.env:HOME}",
        "seed=${oc.decode:1}",
        "hydra.run.dir=x",
        "hydra/launcher=basic",
        "hydra.launcher._target_=os.system",
        "recipe@x=y",
        "recipes=demo",
        "recipe=../../x",
        "backbone=__import__('os').system('true')",
        "seed=glob(*)",
        "seed=extend_list(1)",
    ],
)
def test_k5_only_plain_values_of_plain_keys_are_accepted(capsys: pytest.CaptureFixture[str], word: str) -> None:
    refused(capsys, "pretrain", word)


@pytest.mark.parametrize(
    "flags",
    [
        ["--config-dir=x", "--cfg", "job"],
        ["--config-path=x", "--multirun"],
        ["--cfg", "nosuch"],
        ["--nosuch", "--cfg", "job"],
        ["--cfg"],
        ["--run"],
        ["-x"],
    ],
    ids=" ".join,
)
def test_hydras_other_flags_are_refused(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    refused(capsys, "pretrain", *flags)


@pytest.mark.parametrize(
    "word", ["seed@x=1", "seed=interval(0,3)", "seed=glob(*)", "seed=tag(a,1,2)", "job", "recipe=glob(*)", "seed=range(0,1,0)"]
)
@pytest.mark.parametrize("sweep", [False, True])
def test_k2_hydras_own_grammar_is_answered_in_one_line_too(capsys: pytest.CaptureFixture[str], word: str, sweep: bool) -> None:
    assert "HydraException" not in refused(capsys, "pretrain", word, *["--multirun"] * sweep)


def test_a_key_that_one_recipe_of_a_sweep_lacks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for recipes in ("simclr,supervised", "supervised,simclr"):
        said = refused(capsys, "pretrain", f"recipe={recipes}", "temperature=0.2", "--multirun")
        assert said.startswith("twoviews: temperature=0.2: pretrain with recipe=supervised has no key 'temperature'")


def test_multirun_is_for_verbs_that_run_once_per_value(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--multirun: report runs once" in refused(capsys, "report", "--multirun")
