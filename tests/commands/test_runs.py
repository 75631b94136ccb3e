"""`twoviews runs`: the list, the comparison over seeds, the best run, and the formats."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as small
from command_helpers import refused

from twoviews import runs
from twoviews.cli import main
from twoviews.probes.protocols import protocol
from twoviews.runs import formats, tables

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory, few: Path) -> Path:
    """A folder with two finished runs that differ in their seed."""
    runs_dir = tmp_path_factory.mktemp("two_seeds") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        small.make_fast(patch.setattr)
        assert main(["pretrain", *small.words(few, runs_dir, "max_steps=2", batch=small.FEW_BATCH), "seed=0,1", "--multirun"]) == 0
    return runs_dir


def headline(path: Path) -> float:
    """Return the accuracy by which runs are compared: kNN, k=10."""
    (accuracy,) = [r["accuracy"] for r in small.summary(path)["evaluations"] if r["of"] == "trained" and r.get("k") == 10]
    return float(accuracy)


def test_runs_lists_every_run_and_marks_unfinished_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path) -> None:
    assert main(["runs", f"runs_dir={two_seeds}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2
    assert all(path.name in "\n".join(lines) for path in two_seeds.iterdir())
    unfinished = runs.create(tmp_path / "runs", "half", "seed: 0\n")
    with runs.RunFolder(unfinished) as folder:
        folder.log([{"step": 6}])
    assert main(["runs", f"runs_dir={tmp_path / 'runs'}"]) == 0
    assert "no: at step 7" in capsys.readouterr().out
    assert "none finished: to finish one: twoviews pretrain resume=" in refused(capsys, "runs", "best", f"runs_dir={tmp_path / 'runs'}")


def test_runs_skips_a_damaged_run_and_reports_it(capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    first, second = sorted((tmp_path / "runs").iterdir())
    (first / runs.SUMMARY).write_text("{")
    assert main(["runs", f"runs_dir={tmp_path / 'runs'}"]) == 0
    out, err = capsys.readouterr()
    assert second.name in out
    assert first.name not in out
    assert f"skipped: {first / runs.SUMMARY}: not JSON" in err


def test_damaged_metrics_of_a_run_hide_no_other(capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    first, second = sorted((tmp_path / "runs").iterdir())
    (first / runs.SUMMARY).unlink()
    (first / runs.METRICS).write_bytes(b"noise\n" + (first / runs.METRICS).read_bytes())
    lines = shown(capsys, f"runs_dir={tmp_path / 'runs'}")
    assert "no: at step 2" in next(line for line in lines if first.name in line)
    assert any(second.name in line for line in lines)


def test_runs_compare_gives_mean_and_sample_deviation_over_seeds(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    accuracies = [100 * headline(path) for path in two_seeds.iterdir()]
    assert len(accuracies) == 2
    expected = f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}"
    for form, cell in (("markdown", f"| {expected} |"), ("latex", " " + expected.replace("±", r"$\pm$") + " &")):
        assert main(["runs", "compare", f"runs_dir={two_seeds}", f"format={form}"]) == 0
        assert cell in capsys.readouterr().out, form
    assert main(["runs", "compare", f"runs_dir={two_seeds}", "format=markdown"]) == 0
    head, _, row = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert dict(zip(head, row, strict=False))["seeds"] == "2"


def complete(capsys: pytest.CaptureFixture[str], runs_dir: Path) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["runs", "compare", "format=csv", f"runs_dir={runs_dir}"]) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def test_runs_compare_as_csv_has_every_protocol_and_baseline_with_its_origin(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    summaries = {small.summary(path)["seed"]: small.summary(path) for path in two_seeds.iterdir()}
    rows = complete(capsys, two_seeds)
    assert list(rows[0]) == (ROOT / "results/blood_cells.csv").read_text().splitlines()[0].split(","), "results/ has the same columns"
    assert len(rows) == len(summaries[0]["evaluations"])
    for printed, first, second in zip(rows, summaries[0]["evaluations"], summaries[1]["evaluations"], strict=True):
        accuracies = [100 * first["accuracy"], 100 * second["accuracy"]]
        expected = {"protocol": protocol(first), "mean": f"{np.mean(accuracies):.1f}", "std": f"{np.std(accuracies, ddof=1):.1f}"}
        expected |= {"of": first["of"], "features": first["features"], "split": "test", "runs": "2", "seeds": "0; 1"}
        assert expected.items() <= printed.items()
    origins = [runs.read_json(path, runs.MANIFEST) for path in two_seeds.iterdir()]
    assert "(cut at step 2 of " in rows[0]["epochs"]
    assert rows[0]["training_s"] == f"{np.mean([s['train']['seconds'] for s in summaries.values()]):.0f}"
    assert rows[0]["machine"] == origins[0]["machine"]
    assert rows[0]["torch"] == origins[0]["versions"]["torch"]
    assert rows[0]["command"] in [origin["command"] for origin in origins]


def test_runs_compare_as_csv_joins_different_origins_and_counts_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path
) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    paths = {small.summary(path)["seed"]: path for path in (tmp_path / "runs").iterdir()}
    for seed, path in paths.items():
        origin = {"commit": f"c{seed}", "machine": "one", "versions": {"torch": "2"}, "precision": None, "command": f"of {seed}"}
        with runs.RunFolder(path) as folder:
            folder.write(runs.MANIFEST, origin)
            summary = small.summary(path)
            folder.write(runs.SUMMARY, summary | {"evaluations": summary["evaluations"][: 3 - seed]})
    both, *_, single = complete(capsys, tmp_path / "runs")
    assert [both[key] for key in ("commit", "machine", "torch", "precision", "command")] == ["c0; c1", "one", "2", "", "of 0"]
    assert (single["runs"], single["std"], single["seeds"], single["commit"]) == ("1", "", "0", "c0")
    (paths[0] / runs.MANIFEST).unlink()
    assert complete(capsys, tmp_path / "runs")[0]["commit"] == "c1"


def add_run(
    runs_dir: Path,
    of: Path,
    name: str,
    accuracy: float,
    *,
    setting: tuple[str, str] = ("", ""),
    images: str = "",
    row: dict[str, Any] | None = None,
) -> Path:
    """Add a finished run: a copy of another with this accuracy, and another setting, other images, or another row."""
    path = runs.create(runs_dir, name, (of / runs.CONFIG).read_text().replace(*setting))
    manifest, summary = runs.read_json(of, runs.MANIFEST), small.summary(of)
    summary["evaluations"] = [{**row, "accuracy": accuracy} for row in summary["evaluations"]] + [row] * (row is not None)
    with runs.RunFolder(path) as folder:
        folder.write(runs.MANIFEST, manifest | ({"data_digest": images} if images else {}))
        folder.write(runs.SUMMARY, summary)
    return path


def test_runs_compare_counts_a_repeated_seed_once_and_takes_the_newest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path
) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    first, second = runs.folders(tmp_path / "runs")
    add_run(tmp_path / "runs", first, "again", 0.123)
    row = complete(capsys, tmp_path / "runs")[0]
    accuracy = 100 * small.summary(second)["evaluations"][0]["accuracy"]
    assert (row["runs"], row["mean"]) == ("2", f"{(12.3 + accuracy) / 2:.1f}")


def markdown(capsys: pytest.CaptureFixture[str], view: str, runs_dir: Path) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["runs", view, f"runs_dir={runs_dir}", "format=markdown"]) == 0
    head, _, *rows = (line.removeprefix("| ").removesuffix(" |").split(" | ") for line in capsys.readouterr().out.splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize("view", ["list", "compare", *tables.TABLES])
def test_rows_of_a_recipe_say_in_which_settings_and_images_they_differ(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path, view: str
) -> None:
    def differences() -> list[str]:
        return list(dict.fromkeys(row["differs by"] for row in markdown(capsys, view, tmp_path / "runs")))

    assert all("differs by" not in row for row in markdown(capsys, view, two_seeds))
    shutil.copytree(two_seeds, tmp_path / "runs")
    first, _ = runs.folders(tmp_path / "runs")
    own = re.search(r"^temperature: (.*)$", (first / runs.CONFIG).read_text(), flags=re.M)
    assert own is not None
    probe = {
        "probe": "linear_sgd",
        "of": "trained",
        "split": "test",
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "floor": 0.0,
        "weight_decay": 0.0,
    }
    probe |= {"momentum": 0.9, "epochs": 1, "accuracy": 0.5}  # p3i0t_settings has a second row for it
    add_run(tmp_path / "runs", first, "warm", 0.5, setting=(own[0], "temperature: 0.7"), row=probe)
    assert differences() == [f"temperature={own[1]}", "temperature=0.7"]
    add_run(tmp_path / "runs", first, "other", 0.5, images="0123456789")
    images = f"images {runs.read_json(first, runs.MANIFEST)['data_digest'][:8]}"
    assert differences() == [f"temperature={own[1]}, {images}", f"temperature=0.7, {images}", f"temperature={own[1]}, images 01234567"]


def test_runs_best_has_a_row_for_each_set_of_images_of_one_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path
) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    first, _ = runs.folders(tmp_path / "runs")
    best, other = add_run(tmp_path / "runs", first, "best", 1.0), add_run(tmp_path / "runs", first, "other", 0.5, images="0123456789")
    assert [row["run"] for row in markdown(capsys, "best", tmp_path / "runs")] == [best.name, other.name]


def test_runs_best_shows_the_run_with_the_highest_accuracy(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    assert main(["runs", "best", f"runs_dir={two_seeds}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1
    shown = next(path for path in two_seeds.iterdir() if path.name in lines[-1])
    assert headline(shown) == max(headline(path) for path in two_seeds.iterdir())


def test_latex_and_csv_are_well_formed(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    assert main(["runs", f"runs_dir={two_seeds}", "format=csv"]) == 0
    table = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert len({len(row) for row in table}) == 1
    assert len(table) == 1 + 2
    assert main(["runs", f"runs_dir={two_seeds}", "format=latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0][:15], lines[-1]) == (r"\begin{tabular}", r"\end{tabular}")
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines if line.endswith(r"\\")}) == 1
    assert not re.search(r"(?<!\\)[_%#]", "\n".join(lines))


# ---- the list: order, filters, width ----


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert main(["runs", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_list_is_sorted_and_filtered(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    by_accuracy = sorted(two_seeds.iterdir(), key=headline, reverse=True)
    lines = shown(capsys, f"runs_dir={two_seeds}", "sort=knn")
    assert [line.split()[0] for line in lines[1:]] == [path.name for path in by_accuracy]
    names = [line.split()[0] for line in shown(capsys, f"runs_dir={two_seeds}", "sort=name")[1:]]
    assert names == sorted(path.name for path in two_seeds.iterdir())
    for words in (["method=simclr"], ["dataset=fashion_mnist", "recipe=fashion_thin"]):
        assert len(shown(capsys, f"runs_dir={two_seeds}", *words)) == 3
    assert "holds no run with method=moco" in refused(capsys, "runs", f"runs_dir={two_seeds}", "method=moco")


def test_the_columns_are_aligned_and_fit_the_terminal() -> None:
    rows = [{"run": "a" * 60, "state": "x", "kNN": "9.1 ± 0.2", "s": "1,234"}, {"run": "b", "state": "yyyy", "kNN": "85.3", "s": "5"}]
    lines = formats.text(rows, 60).splitlines()
    assert max(map(len, lines)) == 60
    assert lines[1].startswith("aaaaaaa")
    assert ".." in lines[1]
    assert {line.rindex(end) + len(end) for line, end in zip(lines, ("s", "1,234", "5"), strict=True)} == {60}
    assert lines[1].index("x ") == lines[2].index("yyyy") == lines[0].index("state")
    assert max(map(len, formats.text(rows, None).splitlines())) > 70
    assert "9.1 ± 0.2" in formats.text(rows, 10), "columns keep some characters"
    short = formats.text(rows, 30, ["state", "s"]).splitlines()
    assert max(map(len, short)) <= 30
    assert " ".join(short[3:]) == "left out: state, s; format=csv and a wider terminal have them"


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_of_runs_fits_the_terminal_and_each_can_be_named(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, two_seeds: Path
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    for view in ("list", "compare"):
        lines = shown(capsys, view, f"runs_dir={two_seeds}")
        assert max(map(len, lines)) <= width
        assert "kNN k=10 cosine" in lines[0]
        if view == "list":
            for line in lines[1:3]:
                end = line.split()[0].split("..")[-1].rpartition("-")[2]
                assert runs.find(end, two_seeds).name.endswith(end)


# ---- one run ----


def test_a_run_is_shown_as_a_tree(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    path = next(two_seeds.iterdir())
    lines = shown(capsys, "show", f"run={path.name}", f"runs_dir={two_seeds}")
    assert lines[0] == str(path)
    text = "\n".join(lines)
    for part in (
        "method: simclr",
        "accuracy on test",
        f"{100 * headline(path):.1f} %  kNN k=10",
        "backbone.safetensors",
        "commit",
        "views/s",
    ):
        assert part in text
    assert lines[-1].startswith("   └─ ")
    unfinished = runs.create(two_seeds.parent / "half", "half", "seed: 0\n")
    assert "not finished: no step done" in "\n".join(shown(capsys, "show", f"run={unfinished}"))
    assert "expected run=<folder>" in refused(capsys, "runs", "show")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "gone"), [("yes", True), ("y", False), ("", False)])
def test_a_run_is_deleted_only_after_a_yes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, two_seeds: Path, answer: str, gone: bool
) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    first, second = sorted((tmp_path / "runs").iterdir())
    assert "no terminal to ask on: add sure=true" in refused(capsys, "runs", "delete", f"run={first}")
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    assert main(["runs", "delete", f"run={first}"]) == 0
    assert first.exists() != gone
    assert second.is_dir()
    assert len(list((tmp_path / "runs").iterdir())) == 2 - gone
    assert main(["runs", "delete", f"run={second}", "sure=true"]) == 0
    assert not second.exists()


def test_a_run_that_was_taken_up_meanwhile_is_not_deleted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, two_seeds: Path
) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    path = next((tmp_path / "runs").iterdir())
    with contextlib.ExitStack() as stack:

        def answer(question: str) -> str:
            stack.enter_context(runs.RunFolder(path))  # another command, before the answer
            return "yes"

        monkeypatch.setattr("sys.stdin", Terminal(""))
        monkeypatch.setattr("builtins.input", answer)
        assert "in use by" in refused(capsys, "runs", "delete", f"run={path}")
    assert path.is_dir()


def test_the_end_of_the_input_is_no_yes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, two_seeds: Path
) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    path = next((tmp_path / "runs").iterdir())
    monkeypatch.setattr("sys.stdin", Terminal(""))
    assert main(["runs", "delete", f"run={path}"]) == 0
    assert "nothing was deleted" in capsys.readouterr().out
    assert path.is_dir()


def test_a_run_in_use_is_not_deleted(capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    path = next((tmp_path / "runs").iterdir())
    with runs.RunFolder(path):
        assert "in use by" in refused(capsys, "runs", "delete", f"run={path}", "sure=true")
    assert path.is_dir()
