"""`config.load`: values arrive as they were typed, sweeps run once per value, and a stored configuration gives the same run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import FEW_BATCH, environment, only_run, words

from twoviews import config, runs
from twoviews.cli import main
from twoviews.commands import pretrain
from twoviews.config import Config
from twoviews.config.schema import RULES

LOAD = sys.modules["twoviews.config.load"]  # the module; `config.load` is the function
FILES = sys.modules["twoviews.config.files"]
RECIPES = RULES["recipe"].choices
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
    "a~/x",
    "50%",
    "a:b;c|d",
    "#1",
    "?",
    "choice(1,2)",
    "1.5",
    "true",
]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """Return the configurations with which `pretrain` is called in this test; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    configs: list[Config] = []
    monkeypatch.setattr(pretrain, "run", lambda cfg: configs.append(cfg) or 0)
    return configs


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_literally(path: str) -> None:
    keys = ("runs_dir", "data_dir", "init")
    cfg = config.load("pretrain", [f"{key}={path}" for key in keys])
    assert [cfg[key] for key in keys] == [path] * 3


def test_a_path_is_taken_literally_in_a_sweep(seen: list[Config]) -> None:
    paths = ["été, 'a=b' \"c\"/[d]{e}(f) ${seed} ${oc.env:HOME} ~ 50% x:y;z|#1? choice(1,2)\\", "a\\b", "1.5", "true"]
    for path in paths:
        assert main(["pretrain", f"runs_dir={path}", "seed=1,2", "--multirun"]) == 0
    assert [cfg.runs_dir for cfg in seen] == [path for path in paths for _ in range(2)]


def test_quotes_around_a_path_belong_to_the_shell() -> None:
    assert config.load("pretrain", ["runs_dir='a b'"]).runs_dir == "a b"
    assert config.load("pretrain", ["data_dir=null"]).data_dir is None


def test_a_sweep_calls_the_command_once_per_seed_and_leaves_no_folder(seen: list[Config], tmp_path: Path) -> None:
    assert main(["pretrain", "seed=0,1,2", "epochs=3", "--multirun"]) == 0
    assert [(cfg.seed, cfg.epochs) for cfg in seen] == [(0, 3), (1, 3), (2, 3)]
    assert all(set(cfg.given) == {"seed", "epochs"} for cfg in seen)
    assert not list(tmp_path.iterdir())


def test_a_sweep_over_recipes_composes_each_of_them(seen: list[Config]) -> None:
    names = ("demo", "moco_thin", "supervised")
    assert main(["pretrain", f"recipe={','.join(names)}", "--multirun"]) == 0
    assert [dict(cfg) for cfg in seen] == [dict(config.load("pretrain", [f"recipe={name}"])) for name in names]


def test_a_sweep_stops_at_the_first_failure_with_its_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seeds: list[int] = []
    monkeypatch.setattr(pretrain, "run", lambda cfg: seeds.append(cfg.seed) or (130 if cfg.seed == 1 else 0))
    with pytest.raises(SystemExit) as left:
        raise SystemExit(main(["pretrain", "seed=0,1,2", "--multirun"]))
    assert left.value.code == 130
    assert seeds == [0, 1]


def test_a_refused_sweep_prints_one_line_and_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        raise SystemExit(main(["pretrain", "dataset=cifar10", "data_dir=nowhere", "seed=0,1", "--multirun"]))
    out, err = capsys.readouterr()
    assert left.value.code == 2
    assert err.count("\n") == 1
    assert str(tmp_path) not in out
    assert not list(tmp_path.iterdir())


def test_help_and_cfg_import_no_torch_and_leave_nothing_behind(tmp_path: Path) -> None:
    script = """
import sys
from twoviews.cli import main
for words in sys.argv[1:]:
    assert main(words.split()) == 0, words
assert not {"torch", "numpy"} & set(sys.modules)
"""
    commands = ["", "--help", "pretrain seed=7 --cfg job", "pretrain --help", "evaluate -h", "doctor -c job"]
    done = subprocess.run(
        [sys.executable, "-c", script, *commands], env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [p.name for p in tmp_path.iterdir()] == ["guard"]


def test_cfg_prints_the_resolved_configuration_as_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("pretrain", "evaluate", "doctor"):
        assert main([verb, "debug=true", "--cfg", "job"]) == 0
        assert yaml.safe_load(capsys.readouterr().out) == dict(config.load(verb, ["debug=true"]))
    assert main(["runs", "compare", "-c", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["view"] == "compare"


def test_k4_a_stored_configuration_typed_as_words_gives_the_same_run(few: Path, tmp_path: Path, fast: None) -> None:
    assert main(["pretrain", *words(few, tmp_path / "first", batch=FEW_BATCH)]) == 0
    first = only_run(tmp_path / "first")
    stored = yaml.safe_load((first / "config.yaml").read_text(encoding="utf-8"))
    again = {**stored, "runs_dir": str(tmp_path / "again"), "max_steps": 2}
    assert main(["pretrain", *(config.word(key, value) for key, value in again.items())]) == 0
    losses = [[row["loss"] for row in runs.read_metrics(path)] for path in (first, only_run(tmp_path / "again"))]
    assert losses[1] == losses[0][:2]


def test_k4_the_stored_configuration_is_the_resolved_one(finished: Path, data: Path) -> None:
    stored = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    assert stored == dict(config.load("pretrain", words(data, finished.parent, "probes='knn,linear_precomp'")))
    assert all(RULES[key].accepts(value) for key, value in stored.items())


class Recording(Config):
    """A configuration that notes each key that is read."""

    read: set[str]

    def __getitem__(self, key: str) -> Any:
        self.__dict__.setdefault("read", set()).add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.__dict__.setdefault("read", set()).add(key)
        return super().get(key, default)


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_of_a_recipe_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, few: Path, fast: None, name: str) -> None:
    configs: list[Recording] = []

    def record(*args: Any) -> Recording:
        configs.append(Recording(*args))
        return configs[-1]

    monkeypatch.setattr(LOAD, "Config", record)
    more = ("max_steps=1", "warmup_epochs=0", "min_learning_rate=0")
    assert main(["pretrain", *words(few, tmp_path / "runs", *more, recipe=name, batch=FEW_BATCH)]) == 0
    read = set().union(*(cfg.__dict__.get("read", set()) for cfg in configs))
    assert set(configs[-1]) - read == {"debug"}  # it is read where an error is reported, see test_cli.py
    assert (only_run(tmp_path / "runs") / "summary.json").is_file()


def change_files(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, old: str, new: str) -> None:
    """Use a copy of the YAML files in which one of them has another text."""
    shutil.copytree(FILES.CONFIG_DIR, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    file = folder / name
    assert file.read_text(encoding="utf-8").count(old) == 1
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    monkeypatch.setattr(FILES, "CONFIG_DIR", folder)


def test_a_key_without_a_rule_is_reported_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_files(monkeypatch, tmp_path / "config", "base.yaml", "\nrecipe: null", "\nbrandnew: 1\nrecipe: null")
    assert main(["pretrain", "seed=1"]) == 2
    said = capsys.readouterr().err
    assert said == f"twoviews: {tmp_path / 'config/base.yaml'}: brandnew: RULES in config/schema.py has no rule for this key\n"


def test_a_value_of_a_recipe_that_is_out_of_range_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_files(monkeypatch, tmp_path / "config", "recipes/simclr.yaml", "temperature: 0.5", "temperature: 0")
    assert main(["pretrain", "recipe=simclr"]) == 2
    file = tmp_path / "config/recipes/simclr.yaml"
    assert capsys.readouterr().err == f"twoviews: {file}: temperature is '0', expected a number above 0, at most 1000\n"
