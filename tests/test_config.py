"""The command line: every key of every verb, and every way to get one wrong."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import command, environment, only_run, words

from twoviews import backbones, config, data, methods, runs
from twoviews.cli import main
from twoviews.commands import pretrain, report
from twoviews.config import Config
from twoviews.rules import RULES

PACKAGE = Path(config.__file__).parent
RECIPES = RULES["recipe"].choices
CARDS = [("pretrain", f"recipe={name}") for name in RECIPES] + [(verb, "") for verb in config.VERBS if verb != "pretrain"]
ONE_LINE_WITHIN = 1.5  # seconds


def card(verb: str, recipe: str) -> Config:
    """The keys and values of a verb."""
    return config.load(verb, [recipe] if recipe else [])


def typos(key: str, known: set[str]) -> Iterator[str]:
    """One edit at every place of a key: a letter lost, doubled, changed, or two swapped, in turn."""
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
    """Values of a wrong type, and values out of range."""
    rule = config.rule(verb, key)
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
        yield from ("a", str(one), f"[{one},a]", f"[{one},true]", "[-1,1]")
        if rule.items:
            yield "[]"
        if rule.pair:
            yield from ("[0.9,0.2]", f"[{one}]", "[0.1,0.2,0.3]", "[0,1]")
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
    """Every wrong command line: its words, what kind of wrong it is, and the key that the answer must name. Every key of a verb, at the
    first card that has it."""
    out: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for verb, recipe in CARDS:
        known = set(card(verb, recipe)) | {"hydra"}
        start = [verb, recipe] if recipe else [verb]
        new = {key for key in known - {"hydra", "recipe"} if (verb, key) not in seen}
        seen |= {(verb, key) for key in new}
        for key in sorted(new):
            value = {bool: "true", int: "1", float: "1", str: "a"}[RULES[key].type]
            wrong = [("typo", f"{typo}={value}") for typo in typos(key, known)]
            wrong += [("sign", f"{sign}{key}={value}") for sign in ("+", "++")] + [("sign", f"~{key}"), ("sign", f"~{key}={value}")]
            wrong += [("value", f"{key}={bad}") for bad in bad_values(verb, key)]
            wrong += [("word", key), ("interpolation", f"{key}=${{seed}}")] * (key not in config.PATH_KEYS)
            out += [{"kind": kind, "key": key, "argv": [*start, word]} for kind, word in wrong]
    for typo in typos("recipe", set(RULES)):
        out.append({"kind": "typo", "key": "recipe", "argv": ["pretrain", f"{typo}={RECIPES[0]}"]})
    out += [{"kind": "value", "key": "recipe", "argv": ["pretrain", f"recipe={value}"]} for value in ("", "nosuch", "null", "../x", "[a]")]
    return out


# Runs in a process of its own, because only there does it mean something that torch was not imported.
# Composing a card is pure and slow (20 ms), so it is done once a card; the first case of each card is timed with it.
RUN_CASES = """
import contextlib, copy, functools, io, json, sys, time
from twoviews import config
from twoviews.cli import main
compose = functools.cache(lambda verb, words, real=config._compose: real(verb, list(words)))
config._compose = lambda verb, words: copy.deepcopy(compose(verb, tuple(words)))
answers = []
for case in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(case["argv"])
    answers.append({**case, "code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.perf_counter() - began})
json.dump({"answers": answers, "torch": "torch" in sys.modules}, sys.stdout)
"""


@pytest.fixture(scope="session")
def answered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program answers to every wrong command line."""
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
    assert len(answered["answers"]) > 20 * len(RULES)
    wrong = [a for a in answered["answers"] if a["code"] != 2 or a["out"] or a["err"].count("\n") != 1 or not a["err"].endswith("\n")]
    assert not wrong, f"{len(wrong)} of {len(answered['answers'])}: {wrong[:5]}"
    assert answered["left"] == []  # no outputs/, no run folder


def test_k2_every_wrong_word_but_a_typo_is_answered_with_its_key(answered: dict[str, Any]) -> None:
    silent = [a for a in answered["answers"] if a["kind"] != "typo" and not re.search(rf"\b{a['key']}\b", a["err"])]
    assert not silent, silent[:5]


def test_k2_typos_of_one_letter_are_answered_with_the_right_key(answered: dict[str, Any]) -> None:
    typed = [a for a in answered["answers"] if a["kind"] == "typo"]
    missed = [a for a in typed if f"did you mean {a['key']}?" not in a["err"]]
    assert len(typed) > 500
    assert len(missed) <= 0.05 * len(typed), [(a["argv"][-1], a["err"]) for a in missed]


def test_k2_wrong_words_are_answered_at_once_and_without_torch(answered: dict[str, Any]) -> None:
    slow = [a for a in answered["answers"] if a["seconds"] > ONE_LINE_WITHIN]
    assert not slow, slow[:5]
    assert not answered["torch"]


def seconds_of(tmp_path: Path, *argv: str, code: int) -> float:
    """Of a real command, the best of three."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        assert command(tmp_path, *argv).returncode == code
        took.append(time.perf_counter() - began)
    return min(took)


@pytest.mark.parametrize(
    "argv", [["pretrain", "epoch=1"], ["pretrain", "temperature=-1"], ["evaluate", "+run=a"], ["pretrian"]], ids=lambda argv: " ".join(argv)
)
def test_k2_a_real_command_with_a_typo_answers_within_one_and_a_half_seconds(tmp_path: Path, argv: list[str]) -> None:
    assert seconds_of(tmp_path, *argv, code=2) <= ONE_LINE_WITHIN


@pytest.mark.parametrize(
    "argv", [[], ["--help"], ["pretrain", "--help"], ["pretrain", "--cfg", "job"]], ids=lambda argv: " ".join(argv) or "nothing"
)
def test_help_and_cfg_answer_within_a_second(tmp_path: Path, argv: list[str]) -> None:
    assert seconds_of(tmp_path, *argv, code=0) <= 1.0


def test_help_and_cfg_print_the_keys_without_torch_and_leave_nothing_behind(tmp_path: Path) -> None:
    script = "import sys\nfrom twoviews.cli import main\ncode = 0\ntry:\n    code = main(sys.argv[1:])\n"
    script += "finally:\n    print('torch' in sys.modules, code)\n"
    for argv in (["pretrain", "seed=7", "--cfg", "job"], ["pretrain", "--help"], ["evaluate", "-h"], ["doctor", "-c", "job"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *argv], env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, ""), argv
        assert done.stdout.endswith("False 0\n")
        shown = yaml.safe_load(re.sub(r"^Keys and their values.*$", "", done.stdout.rsplit("\n", 2)[0], flags=re.M))
        assert set(shown) == set(card(argv[0], "")), argv
        assert argv[1] != "seed=7" or shown["seed"] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["guard"]


def test_every_key_has_a_rule_and_every_rule_a_card() -> None:
    used = {key for verb, recipe in CARDS for key in card(verb, recipe)}
    assert used == set(RULES)


def test_choices_are_what_the_package_has() -> None:
    assert set(RULES["method"].choices) == set(methods.METHODS)
    assert set(RULES["backbone"].choices) == set(backbones.BACKBONES)
    assert set(RULES["dataset"].choices) == {*data.READERS, "folder"}
    assert set(RULES["recipe"].choices) == {path.stem for path in (PACKAGE / "conf/recipe").glob("*.yaml")}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_called_as_its_file_and_is_flat(name: str) -> None:
    stored = yaml.safe_load((PACKAGE / f"conf/recipe/{name}.yaml").read_text())
    assert stored["recipe"] == name
    stored.pop("defaults", None)  # a card may start from another one
    assert all(RULES[key].accepts(value) for key, value in stored.items())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_its_command_source_and_results(name: str) -> None:
    comment = "\n".join(re.findall(r"^#(.*)$", (PACKAGE / f"conf/recipe/{name}.yaml").read_text(), flags=re.M))
    for part in (f"recipe={name}", "Source:", "Published:", "Measured:"):
        assert part in comment, part


PATHS = [
    "with spaces/here",
    "été/ŝajn/データ",
    "a=b",
    "a,b",
    "it's",
    'say "so"',
    "${seed}",
    "${oc.env:HOME}",
    "[a]{b}(c)",
    "a\\b",
    "trailing\\",
    "~/x",
    "50%",
    "a:b;c|d",
    "#1",
    "?",
    "choice(1,2)",
    "1.5",
    "true",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["runs_dir", "data_dir", "init"])
def test_a_path_arrives_as_it_is(key: str, path: str) -> None:
    assert config.load("pretrain", [f"{key}={path}"])[key] == path


@pytest.mark.parametrize("path", PATHS)
def test_a_path_arrives_as_it_is_in_a_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Config] = []
    monkeypatch.setattr(pretrain, "run", lambda cfg: seen.append(cfg) or 0)
    assert main(["pretrain", f"runs_dir={path}", "seed=1,2", "--multirun"]) == 0
    assert [cfg.runs_dir for cfg in seen] == [path, path]


def test_quotes_around_a_path_are_the_shells() -> None:
    assert config.load("pretrain", ["runs_dir='a b'"]).runs_dir == "a b"
    assert config.load("pretrain", ["data_dir=null"]).data_dir is None


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
        "recipe=../../x",
        "backbone=__import__('os').system('true')",
        "seed=glob(*)",
        "seed=extend_list(1)",
    ],
)
def test_k5_nothing_but_plain_values_of_plain_keys_is_taken(capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert main(["pretrain", word]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
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
def test_flags_that_are_not_ours_are_refused_in_one_line(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert main(["pretrain", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_key_given_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "seed=1", "seed=2"]) == 2
    assert capsys.readouterr().err == "twoviews: seed is given 2 times: give it once\n"


def test_several_values_need_multirun(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "seed=0,1"]) == 2
    assert capsys.readouterr().err == "twoviews: seed=0,1: several values need --multirun\n"


@pytest.mark.parametrize(("verb", "near"), [("pretain", "pretrain"), ("eval", "evaluate"), ("run", "runs"), ("docter", "doctor")])
def test_an_unknown_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str], verb: str, near: str) -> None:
    assert main([verb]) == 2
    assert f"{verb}: no such verb: did you mean {near}?" in capsys.readouterr().err


def test_a_sweep_calls_once_a_seed_and_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Config] = []
    monkeypatch.setattr(pretrain, "run", lambda cfg: seen.append(cfg) or 0)
    assert main(["pretrain", "seed=0,1,2", "epochs=3", "--multirun"]) == 0
    assert [(cfg.seed, cfg.epochs) for cfg in seen] == [(0, 3), (1, 3), (2, 3)]
    assert all(set(cfg.given) == {"seed", "epochs"} for cfg in seen)
    assert not list(tmp_path.iterdir())


def test_a_sweep_over_recipes_composes_each_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Config] = []
    monkeypatch.setattr(pretrain, "run", lambda cfg: seen.append(cfg) or 0)
    assert main(["pretrain", f"recipe={','.join(RECIPES)}", "--multirun"]) == 0
    assert [dict(cfg) for cfg in seen] == [dict(card("pretrain", f"recipe={name}")) for name in RECIPES]


def test_a_key_that_one_recipe_of_a_sweep_lacks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for recipes in ("simclr,supervised", "supervised,simclr"):
        assert main(["pretrain", f"recipe={recipes}", "temperature=0.2", "--multirun"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("twoviews: temperature=0.2: pretrain with recipe=supervised has no key 'temperature'")
        assert err.count("\n") == 1


def test_a_sweep_stops_at_the_first_failure_with_its_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []
    monkeypatch.setattr(pretrain, "run", lambda cfg: seen.append(cfg.seed) or (130 if cfg.seed == 1 else 0))
    with pytest.raises(SystemExit) as left:
        raise SystemExit(main(["pretrain", "seed=0,1,2", "--multirun"]))
    assert left.value.code == 130
    assert seen == [0, 1]


@pytest.mark.parametrize("value", ["true", "True", "TRUE"])
def test_debug_gives_a_traceback_however_it_is_written(tmp_path: Path, value: str) -> None:
    argv = ["pretrain", "dataset=cifar10", f"data_dir={tmp_path / 'nowhere'}", f"runs_dir={tmp_path / 'runs'}"]
    assert main(argv) == 2
    with pytest.raises(ValueError, match="cifar10"):
        main([*argv, f"debug={value}"])


@pytest.mark.parametrize(
    "words",
    [["seed@x=1"], ["seed=interval(0,3)"], ["seed=glob(*)"], ["seed=tag(a,1,2)"], ["job"], ["recipe=glob(*)"], ["seed=range(0,1,0)"]],
    ids=str,
)
@pytest.mark.parametrize("sweep", [False, True])
def test_k2_hydras_own_grammar_is_answered_in_one_line_too(capsys: pytest.CaptureFixture[str], words: list[str], sweep: bool) -> None:
    assert main(["pretrain", *words, *["--multirun"] * sweep]) == 2
    err = capsys.readouterr().err
    assert err.startswith("twoviews: ")
    assert err.count("\n") == 1
    assert "HydraException" not in err


def test_k4_the_words_of_a_saved_configuration_give_the_same_run(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "write", lambda folder, parts: None)
    stored = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8")) | {"runs_dir": str(tmp_path), "max_steps": 2}
    assert main(["pretrain", *(config.word(key, value) for key, value in stored.items())]) == 0
    again, first = runs.metrics(only_run(tmp_path)), runs.metrics(finished)
    assert [row["loss"] for row in again] == [row["loss"] for row in first[:2]]


def test_k4_the_saved_configuration_is_the_resolved_one(finished: Path, data: Path) -> None:
    stored = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    again = config.load("pretrain", words(data, finished.parent, "probes='knn,linear_precomp'"))
    assert stored == dict(again)
    assert all(RULES[key].accepts(value) for key, value in stored.items())


class Recording(Config):
    """Notes every key that is read."""

    read: set[str]

    def __getitem__(self, key: str) -> Any:
        self.__dict__.setdefault("read", set()).add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.__dict__.setdefault("read", set()).add(key)
        return super().get(key, default)


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_of_a_recipe_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path, name: str) -> None:
    made: list[Recording] = []

    def record(*args: Any) -> Recording:
        made.append(Recording(*args))
        return made[-1]

    monkeypatch.setattr(config, "Config", record)
    assert main(["pretrain", *words(data, tmp_path / "runs", "max_steps=1", "warmup_epochs=0", recipe=name)]) == 0
    read = set().union(*(cfg.__dict__.get("read", set()) for cfg in made))
    assert set(made[-1]) - read == {"debug"}  # read where an error is reported, see above
    assert (only_run(tmp_path / "runs") / "summary.json").is_file()


@pytest.mark.parametrize("name", RECIPES)
def test_a_card_has_the_keys_that_its_method_takes_and_no_others(name: str) -> None:
    import inspect

    from twoviews.views import Views

    every = {key for method in methods.METHODS.values() for key in inspect.signature(method.__init__).parameters}
    from_parts = {"self", "backbone", "embed_dim", "num_classes", "num_images"}
    loops = {"batch_size", "drop_last"}  # of the loop too, so every card has them
    keys = card("pretrain", f"recipe={name}")
    takes = set(inspect.signature(methods.METHODS[keys.method].__init__).parameters) - from_parts
    assert takes <= set(keys)
    assert (every - from_parts - takes - loops) & set(keys) == set()
    assert set(inspect.signature(Views.__init__).parameters) - {"self", "image_shape", "mean", "std"} <= set(keys)


@pytest.mark.parametrize("method", methods.METHODS)
def test_constructors_take_hyper_parameters_keyword_only_and_without_defaults(method: str) -> None:
    import inspect

    parameters = list(inspect.signature(methods.METHODS[method].__init__).parameters.values())[1:]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)


def test_k5_the_package_holds_nothing_that_runs_what_it_reads() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen") or name.split(".")[-1] in (
                    "instantiate",
                    "unsafe_load",
                ):
                    found.append(f"{path.name}:{node.lineno} {name}")
                # pickles.py reads CIFAR's files with an unpickler that knows five names (test_cifar.py)
                if (name.startswith("pickle.") and name != "pickle.UnpicklingError") or name in ("yaml.load", "yaml.full_load"):
                    found.append(f"{path.name}:{node.lineno} {name}")
                safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if name == "torch.load" and safe.get("weights_only") != "True":
                    found.append(f"{path.name}:{node.lineno} torch.load")
                if name.split(".")[-1] == "load" and name.startswith(("np.", "numpy.")) and safe.get("allow_pickle") != "False":
                    found.append(f"{path.name}:{node.lineno} {name}")
                if safe.get("shell") == "True":
                    found.append(f"{path.name}:{node.lineno} shell")
    assert not found


def test_no_folder_of_hydras_is_left_by_a_real_sweep(tmp_path: Path) -> None:
    done = command(tmp_path, "pretrain", "dataset=cifar10", "data_dir=nowhere", "seed=0,1", "--multirun")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["guard"]
    assert os.fspath(tmp_path) not in done.stdout
