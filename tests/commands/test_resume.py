"""`resume=`, `run_id=` and `init=`: what a resumed run keeps, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny as small
from compare import differences, result
from safetensors.torch import load_file

from twoviews import build, config, runs
from twoviews.cli import main
from twoviews.runs import checkpoint

pytestmark = pytest.mark.usefixtures("fast")


def words(few: Path, runs_dir: Path, *more: str) -> list[str]:
    """Return the words of a run of five steps."""
    return small.words(few, runs_dir, *more, batch=small.FEW_BATCH)


@pytest.fixture
def cut_short(fast: None, tmp_path: Path, few: Path) -> Path:
    """A run that `max_steps` ended after two of its five steps."""
    assert main(["pretrain", *words(few, tmp_path / "runs", "max_steps=2")]) == 0
    return small.only_run(tmp_path / "runs")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, few: Path) -> dict[str, Any]:
    """The result of the same run without interruption."""
    place = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        small.make_fast(patch.setattr)
        assert main(["pretrain", *words(few, place)]) == 0
    return result(small.only_run(place))


def test_fewer_steps_than_were_run_are_refused(cut_short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (cut_short / runs.METRICS).read_bytes()
    assert main(["pretrain", f"resume={cut_short}", "max_steps=1"]) == 2
    assert f"max_steps=1: {cut_short} has run 2 steps already" in capsys.readouterr().err
    assert (cut_short / runs.METRICS).read_bytes() == before


def test_resume_latest_continues_the_newest_unfinished_run(
    cut_short: Path, few: Path, straight: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    runs_dir = cut_short.parent
    assert main(["pretrain", "resume=latest", f"runs_dir={runs_dir}"]) == 2
    assert f"resume=latest: no unfinished run in {runs_dir}; {runs_dir} holds {cut_short.name}\n" in capsys.readouterr().err
    (cut_short / runs.SUMMARY).unlink()
    assert main(["pretrain", *words(few, runs_dir, "max_steps=1", "seed=1")]) == 0  # newer, but finished
    assert main(["pretrain", "resume=latest", f"runs_dir={runs_dir}", "max_steps=null"]) == 0
    assert differences(result(cut_short), straight) == []


def test_a_resumed_run_adds_up_the_time_of_its_processes_and_keeps_its_other_evaluations(cut_short: Path) -> None:
    first = small.summary(cut_short)
    assert main(["evaluate", f"run={cut_short}", "probes=knn_euclidean"]) == 0
    state = checkpoint.load(cut_short)
    state["clock"]["wall"] = 1000.0
    checkpoint.save(cut_short, state)
    assert main(["pretrain", f"resume={cut_short}", "max_steps=2"]) == 0  # they have been run: nothing is trained
    again = small.summary(cut_short)
    assert 1000 < again["wall_seconds"] < 2000
    assert "earlier_seconds" not in again["train"]
    assert {row["metric"] for row in again["evaluations"]} == {"cosine", "euclidean"}
    assert len(again["evaluations"]) == 2 * len(first["evaluations"])
    assert main(["pretrain", f"resume={cut_short}"]) == 0  # to its end: other weights, so the old rows are dropped
    assert {row["metric"] for row in small.summary(cut_short)["evaluations"]} == {"cosine"}


def test_a_run_whose_data_moved_continues(cut_short: Path, tmp_path: Path) -> None:
    moved = small.write_idx(tmp_path / "moved", small.arrays(small.FEW, small.FEW_TEST))
    assert main(["pretrain", f"resume={cut_short}", f"data_dir={moved}", "device=cpu"]) == 0
    assert small.summary(cut_short)["train"]["steps"] == 5


def test_a_changed_recipe_is_refused_with_what_differs(cut_short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in cut_short.iterdir()}
    capsys.readouterr()
    resume = [f"resume={cut_short}", f"runs_dir={cut_short.parent}"]
    assert main(["pretrain", *resume, "temperature=0.3", "seed=4", f"batch_size={small.FEW_BATCH}"]) == 2
    err = capsys.readouterr().err
    assert re.search(r"temperature: 0\.\d+ in the run, 0\.3 now", err)
    assert "seed: 0 in the run, 4 now" in err
    assert "batch_size" not in err  # the same as in the run
    assert f"init={cut_short}" in err
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in cut_short.iterdir()} == before


def test_the_same_command_with_the_same_run_id_continues(
    tmp_path: Path, few: Path, straight: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", *words(few, tmp_path / "runs", "run_id=170017")]
    half = tmp_path / "runs/fashion_thin-fashion_mnist-thin16-170017"
    half.mkdir(parents=True)
    (half / runs.CONFIG).write_text("seed: 0\n")  # killed before its first step
    assert main([*command, "max_steps=2"]) == 0
    path = small.only_run(tmp_path / "runs")
    assert path == half
    capsys.readouterr()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"run_id=170017: continuing {path}\n" in out
    assert f"resuming {path} at step 2 of 5" in out
    assert differences(result(path), straight) == []
    assert main([*command, "temperature=0.3"]) == 2
    assert "a resumed run keeps its recipe (temperature" in capsys.readouterr().err
    with runs.RunFolder(path):
        assert main(command) == 2
    assert "in use by process" in capsys.readouterr().err
    (path / runs.MANIFEST).unlink()
    assert main(command) == 2
    assert (path / runs.LAST).exists(), "a folder with a checkpoint is never removed"


@pytest.mark.parametrize("run_id", ["../x", "a/b", ".hidden", "a" * 65, "ä", "a b"])
def test_a_run_id_is_a_plain_word(tmp_path: Path, few: Path, capsys: pytest.CaptureFixture[str], run_id: str) -> None:
    assert main(["pretrain", *words(few, tmp_path / "runs", f"run_id={run_id}")]) == 2
    assert "run_id=" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_changed_data_are_refused(cut_short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = small.arrays(small.FEW, small.FEW_TEST)
    parts[0][0, 0, 0] ^= 1
    other = small.write_idx(tmp_path / "other", parts)
    capsys.readouterr()
    assert main(["pretrain", f"resume={cut_short}", f"data_dir={other}"]) == 2
    assert "the data differ from the run's" in capsys.readouterr().err


def test_a_resumed_run_continues_to_its_end_with_the_machine_keys_of_the_manifest(
    cut_short: Path, straight: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = build.build
    monkeypatch.setattr(build, "build", lambda cfg, data=None: seen.append(cfg) or real(cfg, data))
    manifest = small.read_json(cut_short, runs.MANIFEST)
    assert main(["pretrain", f"resume={cut_short}"]) == 0
    assert all(seen[0][key] == manifest[key] for key in ("device", "threads", "precision", "compile"))
    assert small.summary(cut_short)["train"]["steps"] == 5
    assert differences(result(cut_short), straight) == []


def test_what_auto_became_does_not_change_on_resume(
    cut_short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(cfg: config.Config, data: None) -> None:
        raise ValueError(f"threads={cfg.threads}, precision={cfg.precision}")

    small.change(cut_short, runs.MANIFEST, threads=3, precision="fp64")  # as on a machine that chose these
    monkeypatch.setattr(build, "build", stop)
    assert main(["pretrain", f"resume={cut_short}"]) == 2
    assert capsys.readouterr().err == "twoviews: threads=3, precision=fp64\n"


def test_resume_falls_back_to_the_previous_checkpoint(
    cut_short: Path, straight: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", f"resume={cut_short}"]
    assert main([*command, "max_steps=3"]) == 0
    (cut_short / runs.LAST).write_bytes(b"noise")
    capsys.readouterr()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "continuing from checkpoint.previous" in out
    assert f"resuming {cut_short} at step 2 of 5" in out
    assert differences(result(cut_short), straight) == []


def test_a_run_without_a_usable_checkpoint_is_refused(cut_short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cut_short / runs.LAST).write_bytes(b"noise")
    (cut_short / runs.PREVIOUS).unlink(missing_ok=True)
    capsys.readouterr()
    assert main(["pretrain", f"resume={cut_short}"]) == 2
    assert "not a TwoViews checkpoint" in capsys.readouterr().err


def test_init_starts_a_new_run_from_the_weights_of_another(cut_short: Path, few: Path, tmp_path: Path) -> None:
    cfg = config.load("pretrain", words(few, tmp_path / "new", f"init={cut_short}", "seed=5"))
    stored = load_file(cut_short / runs.BACKBONE)
    assert differences(dict(build.build(cfg).method.backbone.state_dict()), stored) == []
    plain = build.build(config.load("pretrain", words(few, tmp_path / "new", "seed=5")))
    assert differences(dict(plain.method.backbone.state_dict()), stored) != []
    assert main(["pretrain", *words(few, tmp_path / "new", f"init={cut_short}", "max_steps=1")]) == 0
    new = small.only_run(tmp_path / "new")
    assert runs.read_metrics(new)[0]["loss"] != runs.read_metrics(cut_short)[0]["loss"]
    random = [[row for row in small.summary(path)["evaluations"] if row["of"] == "random_initialisation"] for path in (new, cut_short)]
    assert small.without_times(random[0]) == small.without_times(random[1])  # `init` does not change this baseline


@pytest.mark.parametrize(("stored", "printed"), [(None, False), ("0.1", True)])
def test_another_version_of_torch_is_reported(
    cut_short: Path, capsys: pytest.CaptureFixture[str], stored: str | None, printed: bool
) -> None:
    manifest = small.read_json(cut_short, runs.MANIFEST)
    if stored:
        small.change(cut_short, runs.MANIFEST, versions={**manifest["versions"], "torch": stored})
    assert main(["pretrain", f"resume={cut_short}", "max_steps=3"]) == 0
    assert ("continues a run of torch" in capsys.readouterr().out) == printed
