"""What follows training can fail without harm: weights, rows, exit code, message, and a command that completes the run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny as small
from command_helpers import PLAIN, fail_with, pretrained, weights

from twoviews import evaluation, finish, inspection, load_backbone, runs
from twoviews.cli import main
from twoviews.probes import protocols
from twoviews.report import html

PROBES = "probes='knn,linear_precomp,low_label'"
# Where a fault is injected: the step's name in the message, what is replaced, what the summary says is left, and rows that are kept.
FAULTS: dict[str, tuple[str, Any, str, list[str], int]] = {
    "evaluation": ("the evaluation", evaluation, "evaluate", ["knn", "linear_precomp", "low_label"], 0),
    "last probe": ("the evaluation", protocols, "predict", ["linear_precomp", "low_label"], 12),
    "statistics": ("the statistics of the features", inspection, "diagnose", ["statistics"], 21),
    "neighbours": ("the statistics of the features", inspection, "neighbours", ["statistics"], 21),
    "map": ("the statistics of the features", inspection, "embedding_map", ["statistics"], 21),
    "report": ("the report", html, "write", ["report"], 21),
}
pytestmark = pytest.mark.usefixtures("fast")


def words(few: Path, runs_dir: Path, *more: str) -> list[str]:
    return small.words(few, runs_dir, PROBES, *more, batch=small.FEW_BATCH)


@pytest.fixture(scope="module")
def whole(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a fault."""
    with pytest.MonkeyPatch.context() as patch:
        small.make_fast(patch.setattr)
        return pretrained(few, tmp_path_factory.mktemp("whole"), PROBES)


def comparable(path: Path) -> dict[str, Any]:
    """Return a summary without times; its rows in a fixed order."""
    summary = small.summary(path)
    rows = sorted(str(row) for row in small.without_times(summary["evaluations"]))
    return {
        **summary,
        "train": summary["train"]["loss"],
        "evaluations": rows,
        "wall_seconds": 0,
        "evaluation_seconds": summary["evaluation_seconds"] > 0,
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_after_training_that_fails_harms_nothing_and_its_command_completes_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, few: Path, tmp_path: Path, whole: Path, fault: str
) -> None:
    step, module, name, left, kept = FAULTS[fault]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *args, **more: fail_with(RuntimeError("a fault")))
        assert main(["pretrain", *words(few, tmp_path / "runs")]) == 4
    err = capsys.readouterr().err
    path = small.only_run(tmp_path / "runs")
    assert err.startswith(f"twoviews: {step} failed (RuntimeError: a fault); the weights and {kept} accuracies are kept; to repeat this: ")
    assert err.count("\n") == 1
    assert weights(path) == weights(whole)
    load_backbone(path)
    summary = small.summary(path)
    assert summary["unfinished"] == left
    assert len(summary["evaluations"]) == kept
    command = shlex.split(err.rpartition("to repeat this: ")[2])
    assert command[:2] == ["twoviews", "pretrain"]
    assert main(command[1:]) == 0
    assert comparable(path) == comparable(whole)
    assert small.summary(path)["unfinished"] == []
    assert weights(path) == weights(whole)


def test_only_what_is_left_is_repeated(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(protocols, "predict", lambda *args, **more: fail_with(RuntimeError("a fault")))
        assert main(["pretrain", *words(few, tmp_path / "runs")]) == 4
    asked: list[tuple[str, ...]] = []
    evaluate = evaluation.evaluate
    monkeypatch.setattr(
        evaluation, "evaluate", lambda cfg, parts, probes, **more: [asked.append(probes), evaluate(cfg, parts, probes, **more)]
    )
    assert main(["pretrain", "resume=latest", f"runs_dir={tmp_path / 'runs'}"]) == 0
    assert asked == [("linear_precomp", "low_label")]


@pytest.mark.parametrize("verb", ["pretrain", "evaluate"])
def test_ctrl_c_keeps_the_probes_that_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, few: Path, tmp_path: Path, verb: str
) -> None:
    typed = ["pretrain", *words(few, tmp_path / "runs")]
    if verb == "evaluate":
        path = pretrained(few, tmp_path / "runs", "probes=wmse")
        typed = ["evaluate", f"run={path}", *PLAIN, PROBES]
    predict = protocols.predict

    def pressed(name: str, **more: Any) -> Any:
        return fail_with(KeyboardInterrupt()) if name == "low_label" else predict(name, **more)

    monkeypatch.setattr(protocols, "predict", pressed)
    assert main(typed) == 130
    path = small.only_run(tmp_path / "runs")
    done = {row["probe"] for row in small.summary(path)["evaluations"]}
    assert done == {"knn", "linear_precomp"}
    out, err = capsys.readouterr()
    assert err == "twoviews: interrupted\n"
    says = {
        "evaluate": "stopped: 2 of 3 probes are stored",
        "pretrain": "stopped in the evaluation: the weights and 15 accuracies are kept",
    }
    assert says[verb] in out


def test_a_run_whose_evaluation_failed_can_be_evaluated_by_other_probes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, few: Path, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", lambda *args, **more: fail_with(RuntimeError("a fault")))
        assert main(["pretrain", *words(few, tmp_path / "runs")]) == 4
    path = small.only_run(tmp_path / "runs")
    assert main(["evaluate", f"run={path}", *PLAIN, "probes=linear_precomp"]) == 0
    assert small.summary(path)["unfinished"] == ["knn", "low_label"]
    assert main(["runs", f"runs_dir={tmp_path / 'runs'}"]) == 0
    assert "without knn, low_label" in capsys.readouterr().out


def test_which_probe_of_how_many_runs_and_how_long_all_take_is_printed_first(
    capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path
) -> None:
    pretrained(few, tmp_path / "runs", PROBES)
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("evaluating"))
    assert re.fullmatch(r"evaluating 3 probes: about \d+ s \(predicted\)", lines[at])
    assert [line for line in lines[at:] if line.startswith("probe ")] == [
        "probe 1 of 3: knn",
        "probe 2 of 3: linear_precomp",
        "probe 3 of 3: low_label",
    ]


def test_debug_shows_where_a_step_failed(monkeypatch: pytest.MonkeyPatch, few: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(finish.inspection, "diagnose", lambda *args: fail_with(ZeroDivisionError("here")))
    with pytest.raises(ZeroDivisionError, match="here"):
        main(["pretrain", *words(few, tmp_path / "runs", "debug=true")])
    assert small.summary(small.only_run(tmp_path / "runs"))["evaluations"]
    assert (small.only_run(tmp_path / "runs") / runs.BACKBONE).is_file()
