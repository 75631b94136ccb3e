"""The verbs from argv to files: what they print, what they leave behind, and what they must not see."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import payloads
import pytest
import tiny as small
import torch
from torch import nn

import twoviews
from twoviews import build, checkpoint, config, readout, rules, runs, tables, train
from twoviews.cli import USAGE, main
from twoviews.commands import pretrain, report
from twoviews.data.dataset import load
from twoviews.data.idx import CLASSES
from twoviews.methods import METHODS
from twoviews.probes import protocols
from twoviews.probes.embed import embed
from twoviews.progress import Clock, Progress

CARDS = reversed(rules.RULES["recipe"].choices)
RECIPE = {config.load("pretrain", [f"recipe={name}"]).method: name for name in CARDS}  # the first card of each method
WITHOUT_LABELS = [name for name, method in METHODS.items() if not method.uses_labels]


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a tiny run; the tests of the report do without this."""
    monkeypatch.setattr(report, "write", lambda folder, parts: None)


@pytest.fixture(scope="session")
def two_seeds(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder with two finished runs that differ in their seed."""
    runs_dir = tmp_path_factory.mktemp("seeds") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder, parts: None)
        assert main(["pretrain", *small.words(data, runs_dir, "max_steps=2"), "seed=0,1", "--multirun"]) == 0
    return runs_dir


def pretrained(data: Path, runs_dir: Path, *more: str, recipe: str = "fashion_thin") -> Path:
    """Run `pretrain` in this process; its folder."""
    assert main(["pretrain", *small.words(data, runs_dir, *more, recipe=recipe)]) == 0
    return small.only_run(runs_dir)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line and exit code 2 with which a command is refused."""
    capsys.readouterr()
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("twoviews: ")
    assert err.count("\n") == 1
    return err


def poisoned(tmp_path: Path, *, train: bool = False, test: bool = False, test_images: bool = False) -> Path:
    """The data with every chosen label moved by one class, or with other test images."""
    parts = small.arrays()
    parts[1] = (parts[1] + train) % 10
    parts[3] = (parts[3] + test) % 10
    if test_images:
        parts[2] = 255 - parts[2]
    return small.write_idx(tmp_path / "poisoned", parts)


def forget(row: dict[str, Any]) -> None:
    """A read-out's result, so that its protocol is left."""
    for key in ("accuracy", "per_class", "confusion", "seconds"):
        row.pop(key, None)


def weights(path: Path) -> bytes:
    """The backbone's tensors, bit for bit; the file also says what data the run was of."""
    from safetensors.torch import load_file

    return b"".join(x.numpy().tobytes() for _, x in sorted(load_file(path / runs.BACKBONE).items()))


def test_x3_the_tests_cannot_reach_the_network(tmp_path: Path) -> None:
    import socket

    with socket.socket() as here, pytest.raises(RuntimeError, match="reach the network"):
        here.connect(("127.0.0.1", 9))
    script = "import socket; socket.create_connection(('127.0.0.1', 9))"
    done = subprocess.run([sys.executable, "-c", script], env=small.environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert "RuntimeError: a test tried to reach the network" in done.stderr


# ---- what cannot run ----


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]], ids=str)
def test_nothing_and_help_print_the_usage(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out == USAGE
    assert all(f"twoviews {verb}" in USAGE for verb in config.VERBS)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"twoviews \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("dataset", ["cifar10", "fashion_mnist"])
def test_a_bad_data_folder_is_refused_and_leaves_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: str) -> None:
    words = small.words(tmp_path / "nowhere", tmp_path / "runs", f"dataset={dataset}")
    assert str(tmp_path / "nowhere") in refused(capsys, "pretrain", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("batch_size=321", "batch_size=321: Fashion-MNIST has 320 images in train+val"),
        ("min_learning_rate=1", "min_learning_rate=1: above the peak rate"),
        ("warmup_epochs=1", "warmup_epochs=1: as long as the run"),
        ("init=nowhere", "nowhere"),
        ("run=latest", "no key 'run'"),
        ("probes='knn,nosuch'", "probes"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: list[str], word: str, says: str
) -> None:
    words = [w for w in tiny if w.partition("=")[0] != word.partition("=")[0]]
    assert says in refused(capsys, "pretrain", *words, word)
    assert not (tmp_path / "runs").exists()


def test_c4_a_place_that_cannot_be_written_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be: root may write everywhere else")
    assert f"runs_dir={tmp_path / 'file'}: cannot be written" in refused(capsys, "pretrain", *small.words(data, tmp_path / "file"))


def test_c4_a_read_only_place_is_refused_before_anything_is_spent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    def read_only(*args: Any, **more: Any) -> None:  # root may write where others may not, so the system's answer is put in its mouth
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(train, "fit", fail_with)
    said = refused(capsys, "pretrain", *small.words(data, tmp_path / "runs"))
    assert f"runs_dir={tmp_path / 'runs'}: cannot be written (Read-only file system): choose another with runs_dir=" in said


def test_c4_any_name_of_a_folder_will_do(data: Path, tmp_path: Path, no_report: None) -> None:
    path = pretrained(data, tmp_path / f"läufe, 'a=b' $HOME 跑 {'x' * 180}")
    assert main(["evaluate", f"run={path}", "probes=knn"]) == 0


def test_c4_a_run_whose_folder_goes_away_says_so_and_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    taken = []

    def after_step(self: Any, progress: torch.Tensor) -> None:
        taken.append(progress)
        if len(taken) == 3:
            shutil.rmtree(small.only_run(tmp_path / "runs"))

    monkeypatch.setattr(METHODS["simclr"], "after_step", after_step)
    assert main(["pretrain", *small.words(data, tmp_path / "runs")]) == 1
    said = capsys.readouterr().err
    assert f"the folder is gone: '{tmp_path / 'runs'}" in said
    assert said.count("\n") == 1
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes. Error code 12"),
    ],
    ids=["Python", "CUDA", "CPU"],
)
def test_n3_out_of_memory_names_two_things_to_try_and_keeps_the_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, no_report: None, error: Exception
) -> None:
    simclr = METHODS["simclr"]
    forward, calls = simclr.forward, []

    def full(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise error
        return forward(self, *args)

    words = small.words(data, tmp_path / "runs", "checkpoint_every=0.4")
    with monkeypatch.context() as patch:
        patch.setattr(simclr, "forward", full)
        capsys.readouterr()
        assert main(["pretrain", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("twoviews: out of memory with batch_size=64, views of 20 and 20 pixels, precision=fp32: a new run with ")
    assert "batch_size=32 or view_sizes=[15,15] needs less" in said
    assert f"resume={small.only_run(tmp_path / 'runs')} goes on" in said
    assert said.count("\n") == 1
    path = small.only_run(tmp_path / "runs")
    assert checkpoint.load(path)["step"] == 2
    assert main(["pretrain", f"resume={path}"]) == 0
    monkeypatch.setattr(readout, "read_outs", lambda *args, **more: fail_with(error))
    assert main(["evaluate", f"run={path}"]) == 1
    assert capsys.readouterr().err.startswith(f"twoviews: out of memory: nothing of {path} is lost")


def fail_with(error: Any, *rest: Any) -> None:
    raise error


def test_x4_a_run_keeps_no_secret_of_its_environment(data: Path, tmp_path: Path) -> None:
    home = tmp_path / "home/jane-roe"
    home.mkdir(parents=True)
    private = {"HOME": str(home), "USER": "jane-roe", "LOGNAME": "jane-roe", "API_TOKEN": "hunter2-hunter2"}
    words = small.words(data, Path("runs"), "max_steps=2")
    done = subprocess.run(
        [sys.executable, "-m", "twoviews", "pretrain", *words],
        cwd=home,
        env=small.environment(tmp_path, **private),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    path = small.only_run(home / "runs")
    for file in path.iterdir():
        text = file.read_bytes()
        assert b"jane-roe" not in text, file.name
        assert b"hunter2" not in text, file.name


@pytest.mark.parametrize("verb", ["evaluate", "report", "runs"])
def test_verbs_that_need_a_run_say_so(capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str) -> None:
    assert "no run" in refused(capsys, verb, f"runs_dir={tmp_path}").lower()


def test_debug_gives_a_traceback_and_without_it_one_line(tmp_path: Path, tiny: list[str]) -> None:
    argv = ["pretrain", *tiny, "batch_size=10000"]
    argv.remove(f"batch_size={small.BATCH}")
    plain, debug = small.command(tmp_path, *argv), small.command(tmp_path, *argv, "debug=true")
    assert (plain.returncode, plain.stderr.count("\n")) == (2, 1)
    assert debug.returncode == 1
    assert debug.stderr.startswith("Traceback")


def test_a_failure_while_running_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: list[str]
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("of a kind\nnobody foresaw")

    monkeypatch.setattr(pretrain, "run", fail)
    assert main(["pretrain", *tiny]) == 1
    assert capsys.readouterr().err == "twoviews: RuntimeError: of a kind nobody foresaw (debug=true shows where)\n"


@pytest.mark.parametrize("kind", ["loss", "gradient", "input"])
@pytest.mark.parametrize("save_every", [0.4, 1], ids=["a save right after it", "no save before the next loss"])
def test_n1_what_is_not_finite_stops_the_run_keeps_the_last_good_weights_and_can_be_seen_again(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    data: Path,
    no_report: None,
    kind: str,
    save_every: float,
) -> None:
    simclr = METHODS["simclr"]
    forward, at = simclr.forward, 7  # of ten steps in two epochs

    def wrong(self: Any, views: list[torch.Tensor], labels: Any, progress: torch.Tensor) -> Any:
        now = progress.device.type != "meta" and round(progress.item() * 10) == at  # there operations are counted, without values
        if now and kind == "input":
            views = [view * float("nan") for view in views]
        loss, extras = forward(self, views, labels, progress)
        if now and kind == "loss":
            loss = loss * float("inf")
        if now and kind == "gradient":
            loss = loss + (0 * self.backbone.conv1.weight.sum()).sqrt()  # 0, with a gradient of 0 / 0
        return loss, extras

    monkeypatch.setattr(simclr, "forward", wrong)
    words = small.words(data, tmp_path / "runs", "epochs=2", f"checkpoint_every={save_every}", "log_interval=1")
    assert main(["pretrain", *words]) == 3
    said = capsys.readouterr().err
    path = small.only_run(tmp_path / "runs")
    step = at + (kind == "gradient" and save_every == 1)  # the gradient shows in the next loss, or in the weights before they are saved
    assert f"at step {step}, rate" in said
    assert said.count("\n") == 1
    assert not (path / runs.SUMMARY).exists()
    state = checkpoint.load(path)
    assert state["step"] == (6 if save_every == 0.4 else 5)
    assert all(torch.isfinite(x).all() for x in state["method"].values())
    assert [row["step"] for row in runs.metrics(path)] == list(range(step))

    replay = runs.read_json(path, runs.REPLAY)
    assert (replay["step"], replay["seed"], len(replay["losses_before"])) == (step, 0, step)
    assert replay["command"].startswith("twoviews pretrain resume=")
    assert replay["command"] in said
    assert main(shlex.split(replay["command"])[1:]) == 3
    assert f"at step {step}, rate" in capsys.readouterr().err
    assert runs.read_json(path, runs.REPLAY) == replay


def test_n1_a_rate_far_too_high_diverges_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Path) -> None:
    words = small.words(data, tmp_path / "runs", "optimizer=sgd", "learning_rate=1000", "min_learning_rate=0", "weight_decay=1")
    assert main(["pretrain", *words]) == 3
    assert "try a lower learning_rate" in capsys.readouterr().err


# ---- what a run leaves ----


def test_a_finished_run_holds_its_files_and_no_others(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()} - {".lock", "checkpoint.previous"}
    assert names == {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "checkpoint",
        "backbone.safetensors",
        "summary.json",
        "report.html",
    }
    assert re.fullmatch(r"fashion_thin-fashion_mnist-thin16-\d{8}-\d{6}-[0-9a-f]{6}", finished.name)


def test_the_summary_has_a_row_a_protocol_and_kind_of_features(finished: Path) -> None:
    summary = small.summary(finished)
    rows = summary["readouts"]
    keys = {"knn": {"k", "metric", "weights"}, "linear_precomp": {"solver", "weight_decay"}}
    for row in rows:
        assert set(row) - {"confusion"} == {"of", "probe", "features", "split", "accuracy", "per_class", "seconds"} | keys[row["probe"]]
        assert 0 <= row["accuracy"] <= 1
        assert row["split"] == "test"
        assert row["features"] == ("pixels" if row["of"] == "raw_pixels" else "h")
        assert row["seconds"] >= 0
    of_each = {of: [(row["probe"], row.get("k")) for row in rows if row["of"] == of] for of in ("raw_pixels", "untrained", "trained")}
    expected = [("knn", k) for k in (1, 5, 10, 20, 200)] + [("linear_precomp", None)]
    assert of_each == {"raw_pixels": expected, "untrained": expected, "trained": expected}
    assert {"sec_per_epoch", "loss", "views_per_s", "peak_bytes", "steps", "seconds"} <= set(summary["train"])
    assert summary["train"]["steps"] == 5
    assert all(value > 0 for value in summary["train"].values())
    about = {key: summary[key] for key in ("recipe", "method", "uses_labels", "backbone", "seed", "train_on", "epochs", "batch_size")}
    assert about == {
        "recipe": "fashion_thin",
        "method": "simclr",
        "uses_labels": False,
        "backbone": "thin16",
        "seed": 0,
        "train_on": "train+val",
        "epochs": 1,
        "batch_size": small.BATCH,
    }
    assert summary["wall_seconds"] >= summary["train"]["seconds"]


def test_the_manifest_says_where_and_how_it_ran(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["versions"].keys() == {"twoviews", "torch", "torchvision", "numpy"}
    assert (manifest["device"], manifest["threads"], manifest["precision"], manifest["compile"]) == ("cpu", 1, "fp32", False)
    assert re.fullmatch(r"[0-9a-f]{64}", manifest["data_digest"])
    assert {"command", "commit", "python", "system", "machine", "seed", "started"} <= set(manifest)


def test_the_metrics_have_a_row_a_step(finished: Path) -> None:
    rows = runs.metrics(finished)
    assert [row["step"] for row in rows] == list(range(5))
    assert [row["epoch"] for row in rows] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert all({"loss", "lr"} <= set(row) for row in rows)
    assert {"views_per_s", "seconds"} <= set(rows[-1])


class Links(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [(name, value or "") for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "poster")]


def test_the_report_is_one_file_with_command_tables_and_pictures(finished: Path) -> None:
    html = (finished / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(html)
    pictures = [value for name, value in links.found if name == "src"]
    assert len(pictures) == 3 + 2, "loss, kNN and views; which class was taken for which, by two probes"
    assert all(value.startswith("data:image/png;base64,") and len(value) > 2000 for value in pictures)
    assert [name for name, value in links.found if not value.startswith("data:")] == []  # no external request
    assert not re.search(r"@import|url\(", html)
    assert not {"script", "link", "iframe"} & set(links.tags)
    assert json.loads((finished / "manifest.json").read_text())["command"].split()[0] in html
    for row in small.summary(finished)["readouts"]:
        assert f"{100 * row['accuracy']:.1f}" in html
    assert html.count("<tr>") == 1 + 6 + 1 + 2, "read-outs, and how h and z lie"


def test_x2_names_in_the_report_are_escaped(tmp_path: Path, finished: Path) -> None:
    parts = build.build(config.Config(config.load("pretrain", ["threads=1", "compile=false", "dataset=fashion_mini"])))
    path = runs.create(tmp_path, "a", "title: <script>alert(1)</script>\n")
    with runs.RunFolder(path) as folder:
        for name in (runs.SUMMARY, runs.MANIFEST):
            text = json.dumps(runs.read_json(finished, name))
            content = json.loads(text.replace("Fashion-MNIST", "<img src=x onerror=alert(1)>"))
            if "classes" in content:
                content["classes"][:3] = ['"><img src=x>', "<script>alert(2)</script>", "../../x"]
            folder.write(name, content)
        folder.log(runs.metrics(finished))
        report.write(folder, parts)
    html = (path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html


# ---- the other verbs ----


def test_runs_lists_every_run_and_marks_unfinished_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path) -> None:
    assert main(["runs", f"runs_dir={two_seeds}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2
    assert all(path.name in "\n".join(lines) for path in two_seeds.iterdir())
    unfinished = runs.create(tmp_path / "runs", "half", "seed: 0\n")
    with runs.RunFolder(unfinished) as folder:
        folder.log([{"step": 6}])
    assert main(["runs", f"runs_dir={tmp_path / 'runs'}"]) == 0
    assert "unfinished, step 7" in capsys.readouterr().out


def test_runs_leaves_a_damaged_run_out_and_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path, two_seeds: Path) -> None:
    shutil.copytree(two_seeds, tmp_path / "runs")
    first, second = sorted((tmp_path / "runs").iterdir())
    (first / runs.SUMMARY).write_text("{")
    assert main(["runs", f"runs_dir={tmp_path / 'runs'}"]) == 0
    out, err = capsys.readouterr()
    assert second.name in out
    assert first.name not in out
    assert f"left out: {first / runs.SUMMARY}: not JSON" in err


def test_c5_weights_of_another_program_do_not_pass_for_a_runs(capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "run"
    shutil.copytree(finished, path)
    save_file({name: torch.zeros_like(x) for name, x in load_file(path / runs.BACKBONE).items()}, path / runs.BACKBONE)
    assert "of another run" in refused(capsys, "evaluate", f"run={path}", "probes=knn")


def test_runs_compare_gives_mean_and_sample_deviation_over_seeds(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    accuracies = []
    for path in two_seeds.iterdir():
        rows = small.summary(path)["readouts"]
        accuracies += [100 * row["accuracy"] for row in rows if row["of"] == "trained" and row.get("k") == 10]
    assert len(accuracies) == 2
    expected = f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}"
    for form, cell in (("markdown", f"| {expected} |"), ("csv", f",{expected},"), ("latex", " " + expected.replace("±", r"$\pm$") + " &")):
        assert main(["runs", "compare", f"runs_dir={two_seeds}", f"format={form}"]) == 0
        out = capsys.readouterr().out
        assert cell in out, form
    assert main(["runs", "compare", f"runs_dir={two_seeds}"]) == 0
    head, _, row = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert dict(zip(head, row, strict=False))["seeds"] == "2"


def test_runs_best_is_the_run_with_the_best_headline(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    def headline(path: Path) -> float:
        return next(r["accuracy"] for r in small.summary(path)["readouts"] if r["of"] == "trained" and r.get("k") == 10)

    assert main(["runs", "best", f"runs_dir={two_seeds}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1
    shown = next(path for path in two_seeds.iterdir() if path.name in lines[-1])
    assert headline(shown) == max(headline(path) for path in two_seeds.iterdir())


def test_latex_and_csv_are_well_formed(capsys: pytest.CaptureFixture[str], two_seeds: Path) -> None:
    import csv

    assert main(["runs", f"runs_dir={two_seeds}", "format=csv"]) == 0
    table = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert len({len(row) for row in table}) == 1
    assert len(table) == 1 + 2
    assert main(["runs", f"runs_dir={two_seeds}", "format=latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0][:15], lines[-1]) == (r"\begin{tabular}", r"\end{tabular}")
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines if line.endswith(r"\\")}) == 1
    assert not re.search(r"(?<!\\)[_%#]", "\n".join(lines))


def test_doctor_says_what_there_is_and_what_would_be_chosen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", f"runs_dir={tmp_path}", "threads=1", "device=cpu"]) == 0
    out = capsys.readouterr().out
    for word in ("chosen", "cpu (", "1 threads", torch.__version__, "GPU", "compiler", "GiB free", "Fashion-MNIST"):
        assert word in out


def test_evaluate_latest_replaces_rows_of_its_protocols_and_adds_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: list[str], no_report: None
) -> None:
    assert main(["pretrain", *tiny]) == 0
    path = small.only_run(tmp_path / "runs")
    before, files = small.summary(path), weights(path)
    argv = ["evaluate", "run=latest", f"runs_dir={tmp_path / 'runs'}", "threads=1", "precision=fp32", "compile=false", "device=cpu"]
    assert main([*argv, "probes=knn"]) == 0
    assert small.without_times(small.summary(path)["readouts"]) == small.without_times(before["readouts"])  # the same numbers again
    assert main([*argv, "probes=linear_precomp"]) == 0
    after = small.summary(path)
    assert [row["probe"] for row in after["readouts"]].count("linear_precomp") == 3
    assert [row["probe"] for row in after["readouts"]].count("knn") == 3 * 5
    assert {key: value for key, value in after.items() if key != "readouts"} == {k: v for k, v in before.items() if k != "readouts"}
    assert weights(path) == files
    assert "| linear_precomp L-BFGS" in capsys.readouterr().out


def test_c7_a_report_is_made_of_what_a_kill_left_of_the_metrics(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    (path / "report.html").unlink()
    whole = (path / runs.METRICS).read_bytes()
    (path / runs.METRICS).write_bytes(whole[:-20])
    assert main(["report", f"run={path}"]) == 0
    assert len(runs.metrics(path)) == len(runs.metrics(finished)) - 1
    assert (path / "report.html").is_file()


@pytest.mark.parametrize("form", payloads.FORMS)
def test_x1_code_is_not_run_wherever_a_file_is_read(
    capsys: pytest.CaptureFixture[str], finished: Path, data: Path, tmp_path: Path, form: str
) -> None:
    path, marker = tmp_path / "run", tmp_path / "ran"
    shutil.copytree(finished, path)
    (path / checkpoint.PREVIOUS).unlink(missing_ok=True)
    blob = payloads.make(form, marker)
    (path / checkpoint.LAST).write_bytes(payloads.sealed(blob))
    assert "more than tensors" in refused(capsys, "pretrain", f"resume={path}")
    assert "more than tensors" in refused(capsys, "evaluate", f"run={path}", "probes=moco_demo")
    (path / runs.BACKBONE).write_bytes(blob)
    other = tmp_path / "weights.safetensors"
    other.write_bytes(blob)
    for words in (["evaluate", f"run={path}"], ["pretrain", *small.words(data, tmp_path / "runs", f"init={other}")]):
        assert "not a safetensors file" in refused(capsys, *words)
    for weights_file in (path, other):
        with pytest.raises(ValueError, match="not a safetensors file"):
            twoviews.load_backbone(weights_file)
    assert not marker.exists()


def test_report_latest_writes_the_file_again(tmp_path: Path, tiny: list[str]) -> None:
    assert main(["pretrain", *tiny, "max_steps=1"]) == 0
    html = small.only_run(tmp_path / "runs") / "report.html"
    first = html.read_text(encoding="utf-8")
    html.unlink()
    assert main(["report", f"runs_dir={tmp_path / 'runs'}", "threads=1", "device=cpu"]) == 0
    again = html.read_text(encoding="utf-8")
    strip = re.compile(r"data:image/png;base64,[^\"]*")
    assert strip.sub("", again) == strip.sub("", first)


# ---- what must not be seen, and what must not change ----


def test_wrong_test_labels_change_the_final_accuracy_and_nothing_else(finished: Path, tmp_path: Path, no_report: None) -> None:
    other = pretrained(poisoned(tmp_path, test=True), tmp_path / "runs", "probes='knn,linear_precomp'")
    assert weights(other) == weights(finished)
    assert small.without_times(runs.metrics(other)) == small.without_times(runs.metrics(finished))
    clean, wrong = small.summary(finished)["readouts"], small.summary(other)["readouts"]
    assert all(
        w["accuracy"] < c["accuracy"] for c, w in zip(clean, wrong, strict=True)
    )  # ten classes moved by one: most answers turn wrong
    for row in clean + wrong:
        forget(row)
    assert wrong == clean  # the chosen weight decay too


def test_every_read_out_leaves_the_run_as_it_is_and_test_labels_change_its_accuracy_alone(
    capsys: pytest.CaptureFixture[str], finished: Path, data: Path, tmp_path: Path
) -> None:
    found = []
    for name, place in (("clean", data), ("wrong", poisoned(tmp_path, test=True))):
        shutil.copytree(finished, tmp_path / name)
        digest = load("fashion_mnist", str(place), None).digest  # or reading out is refused
        small.change(tmp_path / name, runs.MANIFEST, data_digest=digest)
        words = [
            "probes=all",
            "probe_epochs=20",
            "probe_learning_rate=0.1",
            f"data_dir={place}",
            "threads=1",
            "precision=fp32",
            "compile=false",
            "device=cpu",
        ]
        assert main(["evaluate", f"run={tmp_path / name}", *words]) == 0
        assert weights(tmp_path / name) == weights(finished)
        found.append(small.summary(tmp_path / name)["readouts"])
    names = {(row["probe"], row.get("metric"), row.get("solver")) for row in found[0] if row["of"] == "trained"}
    assert names == {
        *(("knn", "cosine", None), ("knn", "euclidean", None), ("linear_precomp", None, "lbfgs"), ("linear_precomp", None, "adam")),
        *(("low_label", None, "lbfgs"), *((name, None, None) for name in protocols.ON_IMAGES)),
    }
    assert {row["features"] for row in found[0]} == {"pixels", "h", "z"}
    assert all(not row["probe"].startswith("linear_") or "solver" in row or row["of"] == "trained" for row in found[0])
    lower = [w["accuracy"] < c["accuracy"] for c, w in zip(*found, strict=True)]
    assert sum(lower) > 0.9 * len(lower)
    ours = [row for low, row in zip(lower, found[0], strict=True) if row["of"] == "trained" and not low]
    assert not ours
    for row in found[0] + found[1]:
        forget(row)
    assert found[0] == found[1]
    out = capsys.readouterr().out
    for line in (
        "| kNN k=10 euclidean uniform |",
        "| linear_precomp Adam 0.1, 20 epochs, batch 1000 |",
        "| linear_sgd SGD 0.1, 20 epochs, batch 64 |",
    ):
        assert line in out


def test_the_summary_has_accuracies_of_each_class_and_says_how_the_features_lie(finished: Path) -> None:
    summary = small.summary(finished)
    assert summary["classes"] == list(CLASSES)
    for row in summary["readouts"]:
        assert sum(row["per_class"]) / 10 == pytest.approx(row["accuracy"]), "ten test images of each class"
        if (row["probe"], row.get("k")) in (("knn", 10), ("linear_precomp", None)):
            counts = np.array(row["confusion"])
            assert counts.sum() == small.TEST
            assert np.trace(counts) / small.TEST == pytest.approx(row["accuracy"])
        else:
            assert "confusion" not in row
    assert set(summary["diagnostics"]) == {"h", "z"}
    for found in summary["diagnostics"].values():
        assert found["rankme"] >= 1
        assert 0 < found["std"] <= 1.1
        assert -4 < found["uniformity"] < 0 < found["alignment"] < 4


def test_diagnosing_leaves_the_method_as_it_is_and_needs_no_label(tiny: list[str]) -> None:
    cfg = config.load("pretrain", tiny)
    parts = build.build(cfg)
    before = {name: tensor.clone() for name, tensor in parts.method.state_dict().items()}
    found = readout.diagnose(cfg, parts)
    assert parts.method.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.method.state_dict().items())
    parts.dataset.labels.zero_()
    assert readout.diagnose(cfg, parts) == found


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_other_data_than_the_runs_are_refused(capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path, verb: str) -> None:
    shutil.copytree(finished, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    words = [f"run={tmp_path / 'run'}", f"data_dir={poisoned(tmp_path, test=True)}", "threads=1", "device=cpu"]
    assert "the data differ from the run's" in refused(capsys, verb, *words)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_projections_are_read_out_from_the_run_and_again_from_its_checkpoint(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, no_report: None
) -> None:
    path = pretrained(data, tmp_path / "runs", "probes='moco_demo,wmse'", recipe="moco_thin")
    first = small.without_times(small.summary(path)["readouts"])
    assert [(row["of"], row["features"], row["k"]) for row in first] == [
        *(("raw_pixels", "pixels", 5), ("untrained", "h", 5), ("untrained", "z", 200)),
        *(("trained", "h", 5), ("trained", "z", 200)),
    ]
    assert "kNN k=200 cosine exp(s/0.1) on z" in capsys.readouterr().out
    words = [f"run={path}", "threads=1", "precision=fp32", "compile=false", "device=cpu"]
    assert main(["evaluate", *words, "probes=moco_demo"]) == 0
    key = str
    assert sorted(small.without_times(small.summary(path)["readouts"]), key=key) == sorted(first, key=key)
    assert "an epoch's file has no projector" in refused(capsys, "evaluate", *words, "probes=moco_demo", "load_epoch=1")


def test_few_labels_are_stratified_seeded_and_all_that_is_seen(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, no_report: None
) -> None:
    path = pretrained(data, tmp_path / "runs", "probes='low_label,low_label_finetune,finetune'", "probe_epochs=1")
    rows = small.summary(path)["readouts"]
    assert [(row["of"], row["probe"], row.get("labels")) for row in rows] == [
        *((of, "low_label", labels) for of in ("raw_pixels", "untrained", "trained") for labels in (10, 32)),  # of 320, ten at the least
        *((of, "low_label_finetune", labels) for of in ("untrained", "trained") for labels in (10, 32)),
        *((of, "finetune", None) for of in ("untrained", "trained")),
    ]
    out = capsys.readouterr().out
    assert "| low_label L-BFGS, decay chosen on a fifth, 32 labels |" in out
    assert "| low_label_finetune SGD 0.0125, 1 epochs, batch 64, 10 labels |" in out
    parts = build.build(config.load("pretrain", small.words(data, tmp_path)))
    labels, split = parts.dataset.labels, parts.dataset.split("val")
    few = [readout._Job(parts, split, split, split, 10, lambda: None, seed, None).labelled(labels, 0.1) for seed in (0, 0, 1)]
    assert torch.equal(few[0], few[1])
    assert not torch.equal(few[0], few[2])
    assert set(labels[few[0]].bincount().tolist()) <= {3, 4}


def test_a_run_is_read_out_on_another_data_set(capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    words = [f"run={tmp_path / 'run'}", "threads=1", "precision=fp32", "compile=false", "device=cpu"]
    assert main(["evaluate", *words, "transfer=fashion_mini", "probes=wmse"]) == 0
    assert weights(tmp_path / "run") == weights(finished)
    old, new = small.summary(finished)["readouts"], small.summary(tmp_path / "run")["readouts"]
    assert new[: len(old)] == old, "its own rows stay"
    assert [(row["of"], row["on"]) for row in new[len(old) :]] == [
        *(("raw_pixels", "Fashion-MNIST mini"), ("untrained", "Fashion-MNIST mini"), ("trained", "Fashion-MNIST mini")),
    ]
    assert "| kNN k=5 euclidean uniform, on Fashion-MNIST mini |" in capsys.readouterr().out
    assert main(["evaluate", *words, "transfer=fashion_mini"]) == 0
    assert "k = 200" not in capsys.readouterr().out
    transferred = small.summary(tmp_path / "run")
    assert {row["on"] for row in transferred["readouts"][len(old) :]} == {"Fashion-MNIST mini"}
    for of in ("raw_pixels", "untrained", "trained"):
        assert tables.headline(transferred, of) == tables.headline(small.summary(finished), of), "no table has another data set's number"
    assert tables.linear(transferred) == tables.linear(small.summary(finished))
    assert "of the run's own data" in refused(capsys, "evaluate", *words, "transfer=fashion_mini", "table=race")


def test_the_untrained_net_of_a_transfer_is_the_runs_own(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stem is whitened on the run's images, not on those that it is read out on."""
    shutil.copytree(finished, tmp_path / "run")
    made: list[dict[str, torch.Tensor]] = []
    real = readout._modules

    def watched(*args: Any) -> Any:
        modules = real(*args)
        made.append(modules["untrained"]["h"].state_dict())
        return modules

    monkeypatch.setattr(readout, "_modules", watched)
    words = [f"run={tmp_path / 'run'}", "threads=1", "precision=fp32", "compile=false", "device=cpu", "probes=wmse"]
    assert main(["evaluate", *words]) == main(["evaluate", *words, "transfer=fashion_mini"]) == 0
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items())


def test_a_run_is_read_out_again_to_the_same_numbers(data: Path, tmp_path: Path, no_report: None) -> None:
    """By its own seed and precision, whatever the command's defaults are: probes that are trained too."""
    path = pretrained(data, tmp_path / "runs", "seed=1", "probes=all", "probe_epochs=1")
    first = {str(row) for row in small.without_times(small.summary(path)["readouts"])}
    words = [f"run={path}", "threads=1", "compile=false", "device=cpu", "probe_epochs=1"]
    assert main(["evaluate", *words, "probes=all"]) == 0
    assert {str(row) for row in small.without_times(small.summary(path)["readouts"])} == first
    assert main(["evaluate", *words, "seed=2", "probes=linear_sgd"]) == 0
    again = {str(row) for row in small.without_times(small.summary(path)["readouts"])}
    assert len(again - first) == 1


def test_a_read_out_that_failed_can_be_left_out(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    real = protocols.read_out

    def failing(probe: str, **how: Any) -> Any:
        if probe == "low_label":
            raise FloatingPointError("the loss is nan")
        return real(probe, **how)

    monkeypatch.setattr(protocols, "read_out", failing)
    words = small.words(data, tmp_path / "runs", "probes='knn,low_label'")
    assert main(["pretrain", *words]) != 0
    path = small.only_run(tmp_path / "runs")
    assert "not finished" in refused(capsys, "evaluate", f"run={path}", "probes=knn")
    assert main(["pretrain", f"resume={path}", "probes=knn"]) == 0
    assert {row["probe"] for row in small.summary(path)["readouts"]} == {"knn"}


def test_a_probe_without_a_step_is_refused_before_training(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    """Test images in SSL make a batch possible that the labelled ones do not fill."""
    words = small.words(data, tmp_path / "runs", "train_size=100", "train_on=train+val+test", "batch_size=128", "probes='knn,linear_sgd'")
    said = refused(capsys, "pretrain", *words)
    assert "linear_sgd has the run's batch of 128" in said
    assert "100 images" in said
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_weights_are_never_beside_the_summary_of_others(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    path = pretrained(data, tmp_path / "runs", "max_steps=2")
    assert small.summary(path)["train"]["steps"] == 2

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(readout, "read_outs", stopped)
        assert main(["pretrain", f"resume={path}"]) != 0
    assert not (path / runs.SUMMARY).exists()
    assert main(["pretrain", f"resume={path}"]) == 0
    assert small.summary(path)["train"]["steps"] == 5


def test_a_k_above_the_bank_is_said(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, no_report: None) -> None:
    path = pretrained(data, tmp_path / "runs", "train_size=100", "probes='lightly,wmse'", "batch_size=50")
    assert "kNN with k = 200 is left out: the bank has 100 rows" in capsys.readouterr().out
    assert {row["k"] for row in small.summary(path)["readouts"]} == {5}


def test_projections_of_another_step_than_the_summarys_are_refused(
    capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run")
    checkpoint.save(tmp_path / "run", {**state, "step": state["step"] + 1})
    err = refused(capsys, "evaluate", f"run={tmp_path / 'run'}", "probes=moco_demo", "threads=1", "device=cpu")
    assert "its checkpoint is of step 6, its summary of step 5" in err


def test_a_method_without_a_projector_has_no_read_out_of_one(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, no_report: None
) -> None:
    path = pretrained(data, tmp_path / "runs", "probes='knn,moco_demo'", recipe="supervised")
    assert "supervised has no projector: what reads z is left out" in capsys.readouterr().out
    assert {row["features"] for row in small.summary(path)["readouts"]} == {"pixels", "h"}


def test_a_run_that_tunes_never_touches_the_test_set(data: Path, tmp_path: Path, no_report: None) -> None:
    words = ("train_on=train", "probes=all", "probe_epochs=1", "probe_every=0.2", "max_steps=3")
    clean = pretrained(data, tmp_path / "clean", *words)
    wrong = pretrained(poisoned(tmp_path, test=True, test_images=True), tmp_path / "wrong", *words)
    assert weights(wrong) == weights(clean)
    assert small.without_times(small.summary(wrong)["readouts"]) == small.without_times(small.summary(clean)["readouts"])
    assert {row["split"] for row in small.summary(clean)["readouts"]} == {"val"}
    probed = [small.without_times(runs.metrics(path)) for path in (wrong, clean)]
    assert probed[0] == probed[1]
    assert all("val_knn10" in row for row in probed[0])


def test_test_images_may_be_trained_on_without_their_labels_and_every_number_says_so(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, no_report: None
) -> None:
    words = ("train_on=train+val+test", "probes=fast", "max_steps=7")  # 420 images: six batches of 64 an epoch
    clean = pretrained(data, tmp_path / "clean", *words)
    assert "Fashion-MNIST, test, its images trained on accuracy in per cent" in capsys.readouterr().out
    assert small.summary(clean)["train"]["planned_steps"] == 6 * small.summary(clean)["epochs"]
    wrong = pretrained(poisoned(tmp_path, test=True), tmp_path / "wrong", *words)
    assert weights(wrong) == weights(clean)
    (row,) = tables.race([(small.summary(clean), runs.config(clean))])
    assert row["Data"] == "Fashion-MNIST, test, its images trained on"
    with pytest.raises(ValueError, match=r"train_on=train\+val\+test: supervised learns from labels"):
        build.build(config.load("pretrain", small.words(data, tmp_path, "train_on=train+val+test", recipe="supervised")))


@pytest.mark.parametrize("method", METHODS)
def test_wrong_training_labels_reach_only_methods_that_use_labels(data: Path, tmp_path: Path, no_report: None, method: str) -> None:
    words = ("probe_every=0.2", "max_steps=3")
    clean = pretrained(data, tmp_path / "clean", *words, recipe=RECIPE[method])
    parts = small.arrays()
    parts[1] = np.roll(parts[1], 7)
    parts[1][:5] = 3  # uneven classes too, so that another val split is drawn
    wrong = pretrained(small.write_idx(tmp_path / "wrong data", parts), tmp_path / "wrong", *words, recipe=RECIPE[method])
    assert (weights(wrong) == weights(clean)) == (method in WITHOUT_LABELS)
    same_losses = [row["loss"] for row in runs.metrics(wrong)] == [row["loss"] for row in runs.metrics(clean)]
    assert same_losses == (method in WITHOUT_LABELS)
    probed = [[row[f"val_knn{10}"] for row in runs.metrics(path)] for path in (clean, wrong)]
    assert probed[0] != probed[1]  # the labels were other ones


def test_labels_are_handed_only_to_methods_that_use_them(data: Path, tmp_path: Path) -> None:
    for method, name in RECIPE.items():
        parts = build.build(config.load("pretrain", small.words(data, tmp_path, recipe=name)))
        assert (parts.labels is not None) == METHODS[method].uses_labels


@pytest.mark.parametrize("method", METHODS)
def test_probing_at_every_step_trains_to_the_same_weights(data: Path, tmp_path: Path, no_report: None, method: str) -> None:
    never = pretrained(data, tmp_path / "never", "probe_every=0", recipe=RECIPE[method])
    always = pretrained(data, tmp_path / "always", "probe_every=0.2", recipe=RECIPE[method])
    assert weights(always) == weights(never)
    probed = [[name for name in row if name.startswith("val_knn")] for row in runs.metrics(always)]
    assert probed == [["val_knn10"]] * 5
    assert not any(name.startswith("val_knn") for row in runs.metrics(never) for name in row)


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_backbone_is_frozen(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None, method: str) -> None:
    """And every read-out can be had of every method; 10 and 320 images leave short batches, which MoCo's parts do not divide."""
    compared: list[str] = []

    def state(parts: build.Parts) -> dict[str, Any]:
        modes = {name: module.training for name, module in parts.method.named_modules()}
        grads = {name: p.requires_grad for name, p in parts.method.named_parameters()}
        return {"modes": modes, "grads": grads, **{name: t.clone() for name, t in parts.method.state_dict().items()}}

    def watched(name: str, real: Callable[..., Any], parts_at: int) -> Callable[..., Any]:
        def wrapper(*args: Any, **more: Any) -> Any:
            before = state(args[parts_at])
            out = real(*args, **more)
            after = state(args[parts_at])
            assert before.keys() == after.keys()
            assert all(torch.equal(b, after[k]) if isinstance(b, torch.Tensor) else b == after[k] for k, b in before.items()), name
            assert any("running_mean" in k for k in before)
            compared.append(name)
            return out

        return wrapper

    monkeypatch.setattr(train, "monitor", watched("monitor", train.monitor, 0))
    monkeypatch.setattr(readout, "read_outs", watched("read-outs", readout.read_outs, 1))
    pretrained(data, tmp_path / "runs", "probe_every=0.4", "probes=all", "probe_epochs=1", recipe=RECIPE[method])
    assert compared == ["monitor", "monitor", "read-outs"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_r4_the_same_seed_gives_the_same_run_and_another_seed_another(data: Path, tmp_path: Path, no_report: None, precision: str) -> None:
    words = f"precision={precision}"
    one, same, other = (weights(pretrained(data, tmp_path / name, words, f"seed={seed}")) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert one == same != other


def test_the_backbone_is_kept_every_so_many_epochs(data: Path, tmp_path: Path, no_report: None) -> None:
    path = pretrained(data, tmp_path / "runs", "epochs=2", "log_interval=1")
    kept = sorted(p.name for p in path.glob("epoch-*"))
    assert kept == ["epoch-1.safetensors", "epoch-2.safetensors"]
    assert (path / kept[1]).read_bytes() == (path / runs.BACKBONE).read_bytes() != (path / kept[0]).read_bytes()


def test_an_epoch_is_kept_whether_or_not_its_step_is_saved_probed_or_logged(data: Path, tmp_path: Path, no_report: None) -> None:
    path = pretrained(data, tmp_path / "runs", "epochs=3", "log_interval=1", "checkpoint_every=3")
    assert sorted(p.name for p in path.glob("epoch-*")) == [f"epoch-{n}.safetensors" for n in (1, 2, 3)]


# ---- what a person is told while it trains ----


def constant(self: nn.Flatten, x: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(x), 8) + 1e-6 * torch.arange(len(x))[:, None]


def test_a_collapse_is_said_while_it_happens(tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = build.build(config.load("pretrain", tiny))
    with Progress("train", 5, "views") as bar:
        monkeypatch.setattr(parts.method, "features", lambda: {"h": parts.method.backbone, "z": nn.Flatten()})
        healthy = train.monitor(parts, bar, 5)
        assert "warning" not in capsys.readouterr().out
        monkeypatch.setattr(nn.Flatten, "forward", constant)
        collapsed = train.monitor(parts, bar, 5)
    out = capsys.readouterr().out
    assert "warning: z is collapsing: its spread is 0.00 of 1" in out
    assert healthy["z_spread"] > 0.25 > collapsed["z_spread"]
    assert healthy["z_rankme"] > 2 > collapsed["z_rankme"]


@pytest.mark.parametrize(
    ("changes", "left", "says"),
    [
        ([], 100, "512 views/s: about 100 s to go, probes not counted\n"),
        (
            [],
            5000,
            "about 83 min to go, probes not counted\nover an hour: Ctrl-C keeps a checkpoint; about ten minutes: the same command with",
        ),
        (["epochs=100"], 100_000, "about 27.8 h to go"),
        (["epochs=1000"], 1_000_000, "about 11.6 days to go"),
        (["epochs=1000"], 100_000, "the same command with epochs=6\n"),
        (["epochs=1000", "warmup_epochs=10"], 100_000, "the same command with max_steps=600\n"),  # six epochs would not end the warm-up
        (["epochs=1000"], 1_000_000, "the same command with max_steps=600\n"),  # an epoch is longer than ten minutes
    ],
)
def test_the_time_is_predicted_and_a_shorter_command_named(
    tiny: list[str], capsys: pytest.CaptureFixture[str], changes: list[str], left: int, says: str
) -> None:
    keys = {word.partition("=")[0] for word in changes}
    cfg = config.load("pretrain", [word for word in tiny if word.partition("=")[0] not in keys] + changes)
    clock = Clock()
    clock.steady, clock.steady_steps = 20.0, 20  # a second a step
    with Progress("train", left + 20, "views") as bar:
        train._predict(bar, clock, cfg, 512, left)
    assert says in capsys.readouterr().out


# ---- the Python interface ----


def test_the_names_of_the_python_interface_are_there() -> None:
    from twoviews import Views, knn, linear, load_backbone, nt_xent, pretrain

    assert set(twoviews.__all__) == {"Views", "nt_xent", "knn", "linear", "load_backbone", "pretrain"}
    assert all(map(callable, (Views, nt_xent, knn, linear, load_backbone, pretrain)))
    with pytest.raises(AttributeError, match="nosuch"):
        twoviews.nosuch  # noqa: B018 - the look-up is the test


def test_pretrain_from_python_is_the_command(finished: Path, data: Path, tmp_path: Path, no_report: None) -> None:
    path = twoviews.pretrain(
        "fashion_thin",
        dataset="fashion_mnist",
        data_dir=str(data),
        backbone="thin16",
        batch_size=64,
        epochs=1,
        probes="knn,linear_precomp",
        probe_every=0,
        threads=1,
        compile=False,
        precision="fp32",
        device="cpu",
        max_steps=None,
        crop_scale=[0.3, 1.0],
        runs_dir=tmp_path / "a, b=c",
    )
    assert path.parent == tmp_path / "a, b=c"
    assert weights(path) == weights(finished)
    with pytest.raises(ValueError, match="did you mean epochs"):
        twoviews.pretrain("fashion_thin", epoch=1)


def test_load_backbone_gives_the_runs_own_features(finished: Path, data: Path) -> None:
    module = twoviews.load_backbone(finished)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    parts = build.build(config.load("pretrain", small.words(data, finished.parent, f"init={finished}")))
    images = parts.dataset.test_images
    with torch.no_grad():
        h = module((images.float() / 255 - module.mean) / module.std)
    torch.testing.assert_close(h, parts.embed(parts.method.backbone, images), rtol=1e-4, atol=1e-5)
    mean, std = module.mean.flatten().tolist(), module.std.flatten().tolist()
    again = embed(module, images, mean=mean, std=std, device=torch.device("cpu"), autocast=parts.machine.autocast)
    row = twoviews.knn(again[:50], parts.dataset.test_labels[:50], again[50:], parts.dataset.test_labels[50:], ks=[1])
    assert 0 <= row[1] <= 1


@pytest.mark.parametrize("form", ["missing", "of another program"])
def test_load_backbone_refuses_what_is_not_ours(tmp_path: Path, form: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    if form != "missing":
        save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"no such file|not a file of TwoViews"):
        twoviews.load_backbone(path)


def test_init_reaches_the_momentum_copy_too(tiny: list[str], finished: Path) -> None:
    cfg = config.load(
        "pretrain", [*(w for w in tiny if not w.startswith("recipe=")), "recipe=moco", f"init={finished}", "queue_size=128", "bn_splits=4"]
    )
    method = build.build(cfg).method
    loaded = build.load_backbone(finished).state_dict()
    for key, value in method.momentum_encoder[0].state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, loaded[key].to(value.dtype)), key
