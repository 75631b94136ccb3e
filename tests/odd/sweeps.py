"""Sweeps: all of it is checked before the first run, and one that stops says how to go on."""

from __future__ import annotations

import re
import shlex
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from odd.odd import Odd
from twoviews import config
from twoviews.cli import main, script
from twoviews.commands import evaluate, pretrain


def _recorded(odd: Odd, argv: list[str]) -> tuple[int, list[dict[str, Any]], str]:
    """Return the exit code of a sweep, the configurations of the runs that began, and its messages; one with out_dim 13 or 130 fails."""
    seen: list[dict[str, Any]] = []

    def record(cfg: config.Config) -> int:
        seen.append(dict(cfg))
        return 3 if cfg.get("out_dim") == 13 else 130 if cfg.get("out_dim") == 130 else 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "run", record)
        patch.setattr(evaluate, "run", record)
        code, _, err = odd.said(lambda: main(argv))
    return code, seen, err


def _commands(err: str) -> list[list[str]]:
    """Return the words of the commands that a stopped sweep printed."""
    return [shlex.split(line)[1:] for line in re.findall(r"^  (twoviews .*)$", err, flags=re.M)]


def a_combination_that_cannot_be_trained_stops_a_sweep_before_its_first_run(odd: Odd) -> None:
    for words, says in (
        (["epochs=20,5", "warmup_epochs=10"], "warmup_epochs=10: as long as the run (5 epochs): choose less (in the run epochs=5)"),
        (
            ["learning_rate=1,0.1", "min_learning_rate=0.5"],
            "min_learning_rate=0.5: above the peak rate 0.1: choose at most that (in the run learning_rate=0.1)",
        ),
        (["batch_size=8,64", "train_size=50"], "batch_size=64: train_size=50 leaves fewer images"),
        (["recipe=moco,simclr", "method=moco"], "method=moco: needs the key queue_size, which recipe=simclr does not set"),
        (["seed=0,1", "run_id=7"], "run_id=7: names one run"),
        (["seed=0,1", "resume=latest"], "resume=latest: names one run"),
        (["seed=0,1", f"data_dir={odd.root / 'nowhere'}"], "nowhere: no such file or folder"),
        (["seed=0,1", "dataset=folder"], "dataset=folder: expected data_dir="),
        (["seed=range(0,0)"], "seed=range(0,0): no value"),
        (["seed=range(0,1000000000)"], "more than 1000 values"),
    ):
        code, seen, err = _recorded(odd, ["pretrain", *words, "--multirun"])
        assert (code, seen) == (2, []), words
        assert says in err, err
        assert err.count("\n") == 1, err


def an_evaluation_of_a_run_that_does_not_exist_stops_a_sweep_before_its_first_run(odd: Odd) -> None:
    code, seen, err = _recorded(odd, ["evaluate", f"run={odd.root / 'nowhere'}", "seed=0,1", "--multirun"])
    assert (code, seen, err.count("\n")) == (2, [], 1)
    assert "no such run folder" in err


def a_sweep_that_a_run_stops_prints_what_is_done_and_the_command_for_the_rest(odd: Odd) -> None:
    code, seen, err = _recorded(odd, ["pretrain", "out_dim=16,13,32,64", "epochs=3", "data_dir=/", "--multirun"])
    assert code == 3, "the exit code of the run that failed"
    assert [cfg["out_dim"] for cfg in seen] == [16, 13]
    assert "stopped in run 2 of 4 (out_dim=13); done: out_dim=16\n" in err
    assert "  twoviews pretrain out_dim=13,32,64 epochs=3 data_dir=/ --multirun\n" in err


def a_sweep_that_ctrl_c_stops_keeps_its_exit_code(odd: Odd) -> None:
    code, _, err = _recorded(odd, ["pretrain", "seed=0,1", "out_dim=130", "--multirun"])
    assert code == 130
    assert "done: none\n" in err
    assert _commands(err) == [["pretrain", "seed=0,1", "out_dim=130", "--multirun"]]


def the_commands_for_the_rest_do_what_was_left_and_nothing_twice(odd: Odd) -> None:
    keys = {"seed": [0, 1], "epochs": [3, 4, 5], "momentum": [0.5], "batch_size": [8, 16, 32]}
    argv = ["pretrain", "seed=0,1", "epochs=range(3,6)", "momentum=0.5", "batch_size=8,16,32", "probes='knn,lightly'", "--multirun"]
    runs = list(product(*keys.values()))
    whole = config.sweep.expand("pretrain", argv[1:])
    assert [tuple(cfg[key] for key in keys) for cfg in whole.configs] == runs
    for first in range(len(runs)):
        left: list[tuple[Any, ...]] = []
        commands = whole.commands_from(first, ["twoviews", *argv])
        for line in commands:
            words = shlex.split(line)
            assert words[:2] == ["twoviews", "pretrain"]
            left += [tuple(cfg[key] for key in keys) for cfg in config.sweep.expand("pretrain", words[2:]).configs]
        assert left == runs[first:], first
        assert len(commands) <= 3


def a_sweep_of_a_reference_project_goes_on_with_its_own_key_names(odd: Odd) -> None:
    root = Path(__file__).parent.parent.parent
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "run", lambda cfg: seen.append(cfg.queue_size) or (1 if cfg.queue_size == 512 else 0))
        code, _, err = odd.said(lambda: script(str(root / "moco.py"), ["moco_k=256,512,1024", "seed=3", "--multirun"]))
    assert (code, seen) == (1, [256, 512])
    assert "  python moco.py moco_k=512,1024 seed=3 --multirun\n" in err


def a_value_with_commas_in_quotes_is_one_value_of_a_sweep(odd: Odd) -> None:
    code, seen, _ = _recorded(odd, ["pretrain", "probes='knn,lightly',knn", "seed=4", "--multirun"])
    assert code == 0
    assert [cfg["probes"] for cfg in seen] == ["knn,lightly", "knn"]


def the_configurations_of_a_sweep_are_printed_one_after_another(odd: Odd) -> None:
    code, out, _ = odd.said(lambda: main(["pretrain", "seed=5,6", "--multirun", "--cfg", "job"]))
    assert code == 0
    assert re.findall(r"^seed: (\d)$", out, flags=re.M) == ["5", "6"]
    assert out.count("\n---\n") == 1
