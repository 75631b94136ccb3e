"""The commands of the reference projects, word for word: their YAML files, their keys, and the runs that they create and find."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny as small
import torch
import yaml
from safetensors.torch import load_file

from twoviews import config, runs
from twoviews.cli import script
from twoviews.commands import evaluate
from twoviews.config import reference
from twoviews.config.schema import RULES

pytestmark = pytest.mark.usefixtures("fast")
ROOT = Path(__file__).parent.parent.parent
# Every key of the two YAML files of p3i0t/SimCLR-CIFAR10.
SIMCLR = {"projection_dim", "temperature"}
MOCO = {"moco_dim", "moco_k", "moco_m", "moco_t"}
BOTH = {
    *("backbone", "batch_size", "epochs", "seed", "log_interval", "dataset", "data_dir", "workers", "optimizer", "learning_rate"),
    *("min_learning_rate", "momentum", "weight_decay", "finetune_epochs", "finetune_learning_rate", "finetune_momentum"),
    *("finetune_weight_decay", "load_epoch"),
}


def run(name: str, *argv: str) -> int:
    return script(str(ROOT / name), argv)


def small_words(data: Path, tmp_path: Path, *more: str) -> list[str]:
    """Return the words of a run that takes less than a second."""
    words = ["dataset=fashion_mnist", f"data_dir={data}", "backbone=thin16", "batch_size=8", "epochs=1", "max_steps=2", "finetune_epochs=1"]
    words += ["threads=1", "compile=false", "precision=fp32", "device=cpu", f"runs_dir={tmp_path / 'runs'}"]
    keys = {word.partition("=")[0] for word in more}
    return [word for word in words if word.partition("=")[0] not in keys] + list(more)


def loaded(name: str, *argv: str) -> config.Config:
    """Return the configuration that a command of a reference project stands for."""
    verb, words, typed = reference.translate(ROOT / name, argv)
    return config.load(verb, words, typed)


def refused(capsys: pytest.CaptureFixture[str], name: str, *argv: str) -> str:
    """Return the one line with which a command is refused."""
    capsys.readouterr()
    assert run(name, *argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("twoviews: ")
    assert err.count("\n") == 1
    return err


def cells(out: str, column: str) -> list[str]:
    """Return the cells of a column in the last Markdown table that was printed."""
    table = [[cell.strip() for cell in line.strip("| ").split("|")] for line in re.findall(r"^\|.*\|$", out.split("\n\n")[-1], flags=re.M)]
    return [row[table[0].index(column)] for row in table[2:]]


# ---- files and words ----


def test_both_files_have_every_key_of_the_project() -> None:
    assert set(yaml.safe_load((ROOT / "simclr_config.yml").read_text())) == BOTH | SIMCLR
    assert set(yaml.safe_load((ROOT / "moco_config.yml").read_text())) == BOTH | MOCO


@pytest.mark.parametrize(
    ("name", "rate", "decay", "temperature", "batch", "nesterov"),
    [
        ("simclr.py", 0.6, 1e-6, 0.5, 512, True),
        ("moco.py", 0.03, 1e-4, 0.2, 256, True),
        ("simclr-cifar10.py", 0.12, 5e-4, 0.5, 1024, False),
    ],
)
def test_a_command_without_words_does_what_its_readme_says(
    name: str, rate: float, decay: float, temperature: float, batch: int, nesterov: bool
) -> None:
    cfg = loaded(name)
    recipe = config.load("pretrain", [f"recipe={cfg.recipe}"])
    assert {key for key in recipe if cfg[key] != recipe[key]} <= {"table", "probes", "solver"}, "the file and the recipe say the same"
    assert (cfg.base_learning_rate * cfg.batch_size / 256, cfg.learning_rate) == (pytest.approx(rate), None)
    assert (cfg.weight_decay, cfg.temperature, cfg.batch_size, cfg.nesterov) == (decay, temperature, batch, nesterov)
    assert (cfg.dataset, cfg.backbone, cfg.epochs, cfg.out_dim, cfg.momentum) == ("cifar10", "resnet18", 1000, 128, 0.9)
    assert cfg.min_learning_rate == (0.0 if name == "simclr-cifar10.py" else 0.001)
    if name == "moco.py":
        assert (cfg.queue_size, cfg.ema_decay) == (8192, 0.999)


def test_linear_evaluation_without_words_does_what_its_readme_says() -> None:
    cfg = loaded("simclr_lin.py", "backbone=resnet18")
    assert (cfg.probes, cfg.run, cfg.dataset, cfg.backbone, cfg.batch_size) == ("linear_sgd", "latest", "cifar10", "resnet18", 512)
    assert (cfg.probe_epochs, cfg.probe_learning_rate, cfg.probe_momentum, cfg.probe_weight_decay) == (100, None, 0.9, 0.0)


def test_an_evaluation_uses_the_seed_of_its_run_unless_one_is_typed() -> None:
    assert loaded("simclr_lin.py").seed is None
    assert loaded("simclr_lin.py", "seed=3").seed == 3
    assert loaded("simclr.py").seed == 0


def test_the_readmes_moco_command_reaches_our_keys() -> None:
    cfg = loaded("moco.py", "backbone=resnet18", "batch_size=256", "moco_k=4096", "moco_t=0.2")
    assert (cfg.recipe, cfg.queue_size, cfg.temperature, cfg.batch_size) == ("moco", 4096, 0.2, 256)


@pytest.mark.parametrize(
    ("name", "word", "key", "value"),
    [
        ("moco.py", "moco_k=777", "queue_size", 777),
        ("moco.py", "moco_m=0.77", "ema_decay", 0.77),
        ("moco.py", "moco_t=0.77", "temperature", 0.77),
        ("moco.py", "moco_dim=77", "out_dim", 77),
        ("simclr.py", "projection_dim=77", "out_dim", 77),
        ("simclr_lin.py", "finetune_epochs=77", "probe_epochs", 77),
        ("simclr_lin.py", "finetune_learning_rate=0.77", "probe_learning_rate", 0.77),
        ("simclr_lin.py", "finetune_momentum=0.77", "probe_momentum", 0.77),
        ("simclr_lin.py", "finetune_weight_decay=0.77", "probe_weight_decay", 0.77),
        ("simclr_lin.py", "load_epoch=77", "load_epoch", 77),
    ],
)
def test_every_key_name_of_the_project_reaches_our_key_and_no_other(name: str, word: str, key: str, value: float) -> None:
    plain, changed = loaded(name), loaded(name, word)
    assert {k: v for k, v in changed.items() if plain[k] != v} == {key: value}


@pytest.mark.parametrize(("name", "key", "value"), [("moco.py", "hidden_dims", [2048]), ("simclr-cifar10.py", "batch_size", 512)])
def test_resnet50_changes_what_it_changes_in_its_project(name: str, key: str, value: object) -> None:
    assert loaded(name, "backbone=resnet50")[key] == value
    typed = 64 if key == "batch_size" else [64]
    assert loaded(name, "backbone=resnet50", f"{key}={typed}")[key] == typed


def test_every_name_leads_to_a_key_that_exists() -> None:
    assert set(reference.NAMES.values()) <= set(RULES)
    assert {path.name for path in ROOT.glob("*.py")} == set(reference.SCRIPTS)


def test_typed_words_have_precedence_over_the_file(tmp_path: Path) -> None:
    for name in ("simclr.py", "simclr_config.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    file = tmp_path / "simclr_config.yml"
    file.write_text(file.read_text().replace("temperature: 0.5", "temperature: 0.7").replace("epochs: 1000", "epochs: 9"))
    verb, words, _ = reference.translate(tmp_path / "simclr.py", ["temperature=0.9"])
    cfg = config.load(verb, words)
    assert (cfg.temperature, cfg.epochs) == (0.9, 9)


def test_workers_and_keys_of_another_script_are_accepted_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    reference.translate(ROOT / "simclr.py", ["workers=16", "finetune_epochs=3"])
    reference.translate(ROOT / "simclr_lin.py", ["epochs=3"])
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in out] == ["workers", "finetune_epochs", "epochs"]


# ---- what cannot run ----


@pytest.mark.parametrize(
    ("name", "word", "says"),
    [
        ("moco.py", "moco_kk=4096", "did you mean moco_k?"),
        ("simclr.py", "projection_dm=64", "did you mean projection_dim?"),
        ("simclr.py", "finetune_epoch=1", "did you mean finetune_epochs?"),
        ("moco.py", "moco_k=0", "moco_k=0: queue_size expects an integer in [1, 10000000] or null"),
        ("moco.py", "moco_t=-1", "moco_t=-1: temperature expects"),
        ("simclr.py", "finetune_epochs=none", "finetune_epochs=none: probe_epochs expects"),
        ("simclr_lin.py", "epochs=0", "epochs=0: epochs expects"),
        ("simclr_lin.py", "load_epoch=x", "load_epoch=x: load_epoch expects"),
        ("simclr.py", "moco_k=4096", "moco_k=4096: pretrain with recipe=simclr has no key 'queue_size'"),
        ("simclr.py", "+epochs=1", "keys cannot be added or removed: type epochs=<value>"),
        ("simclr.py", "epochs", "expected epochs=<value>"),
        ("simclr.py", "lr=0.1", "lr=0.1: simclr.py has no key 'lr': type learning_rate="),
        ("simclr-cifar10.py", "seed=0,1", "several values need --multirun"),
    ],
)
def test_a_wrong_word_is_refused_in_the_users_own_words(capsys: pytest.CaptureFixture[str], name: str, word: str, says: str) -> None:
    assert says in refused(capsys, name, word)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3\n", "simclr_config.yml: no such key 'epoch': did you mean epochs?"),
        ("epochs: many\n", "simclr_config.yml: epochs=many: epochs expects an integer"),
        ("[1, 2]\n", "holds no keys"),
        ("a: b: c\n", "not YAML"),
        (None, "no such file"),
    ],
)
def test_a_wrong_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "simclr_config.yml").write_text(text)
    capsys.readouterr()
    assert script(str(tmp_path / "simclr.py"), []) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_without_the_packages_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))  # as if this were the project's own environment
    assert "has no torch: run make demo once: it creates .venv" in refused(capsys, "simclr.py")


def test_a_python_without_torch_is_replaced_by_the_projects_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Replaced(Exception):
        pass

    def replace(program: Path, argv: list[str]) -> None:
        raise Replaced(str(program), *argv)

    own = tmp_path / ".venv/bin/python"
    own.parent.mkdir(parents=True)
    own.write_text("")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(os, "execv", replace)
    with pytest.raises(Replaced) as went:
        script(str(tmp_path / "simclr.py"), ["epochs=1"])
    assert went.value.args == (str(own), str(own), str(tmp_path / "simclr.py"), "epochs=1")
    assert f"has no torch: continuing with {own}" in capsys.readouterr().out


def test_help_shows_the_yaml_file_and_our_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("moco.py", "--help") == 0
    out = capsys.readouterr().out
    assert (ROOT / "moco_config.yml").read_text() in out
    assert "twoviews pretrain recipe=moco" in out
    assert run("simclr-cifar10.py", "-h") == 0
    assert "twoviews pretrain recipe=simclr_cifar10" in capsys.readouterr().out


# ---- the commands ----


def test_the_scripts_run_from_a_clone(tmp_path: Path) -> None:
    command = [sys.executable, "simclr.py", "temperature=0.7", "--cfg", "job"]
    done = subprocess.run(command, cwd=ROOT, env=small.environment(tmp_path), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    cfg = yaml.safe_load(done.stdout)
    assert (cfg["recipe"], cfg["temperature"], cfg["table"]) == ("simclr", 0.7, "p3i0t")


def test_a_run_records_the_command_as_it_was_typed(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = small_words(few, tmp_path, "probes=knn", "max_steps=1")
    monkeypatch.setattr(sys, "argv", ["simclr.py", *words])
    monkeypatch.setattr(sys, "orig_argv", ["python", "simclr.py", *words])
    assert script(str(ROOT / "simclr.py")) == 0
    manifest = small.read_json(small.only_run(tmp_path / "runs"), runs.MANIFEST)
    assert manifest["command"].startswith("python simclr.py dataset=fashion_mnist data_dir=")


def test_the_commands_of_p3i0t_print_its_table(capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path) -> None:
    assert run("simclr.py", *small_words(few, tmp_path)) == 0
    out = capsys.readouterr().out
    assert (cells(out, "Batch Size"), cells(out, "Projection Dim")) == (["8"], ["128"])
    assert cells(out, "Evaluation") == ["linear_precomp L-BFGS (backbone frozen)"]
    assert run("moco.py", *small_words(few, tmp_path, "moco_k=32", "batch_size=16", "min_learning_rate=0")) == 0
    assert cells(capsys.readouterr().out, "Recipe") == ["moco"]
    for batch, method in ((8, "simclr"), (16, "moco")):  # whatever the method, and not the newest of all
        assert run("simclr_lin.py", *small_words(few, tmp_path, f"batch_size={batch}", "max_steps=1")) == 0
        out = capsys.readouterr().out
        folder = re.search(r"the newest finished run with .*batch_size=\d+: (\S+) \((\w+), 1 epochs\)", out)
        assert folder is not None
        assert folder[2] == method
        assert cells(out, "Evaluation") == ["linear_sgd 1 epochs, cut at step 1 (backbone frozen)"]
        (row,) = [row for row in small.summary(Path(folder[1]))["evaluations"] if row["probe"] == "linear_sgd"]
        expected = {"of": "trained", "optimizer": "sgd", "learning_rate": 0.1 * batch / 256, "epochs": 1, "batch_size": batch, "steps": 1}
        assert expected.items() <= row.items()
        assert cells(out, "Test Acc") == [f"{100 * row['accuracy']:.1f}"]


def test_the_command_of_dkobak_prints_its_table_with_every_probe(capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path) -> None:
    assert run("simclr-cifar10.py", *small_words(few, tmp_path)) == 0
    out = capsys.readouterr().out
    rows = small.summary(small.only_run(tmp_path / "runs"))["evaluations"]
    trained = [row for row in rows if row["of"] == "trained"]
    assert {(row["probe"], row.get("metric"), row.get("solver")) for row in trained} == {
        ("knn", "cosine", None),
        ("knn", "euclidean", None),
        ("linear_precomp", None, "adam"),
        ("linear_augm", None, None),
    }
    for column, wanted in (
        ("kNN k=5", {"probe": "knn", "k": 5, "metric": "cosine"}),
        ("kNN k=10", {"probe": "knn", "k": 10, "metric": "cosine"}),
        ("lin precomp", {"probe": "linear_precomp"}),
        ("lin augm", {"probe": "linear_augm"}),
    ):
        (accuracy,) = [row["accuracy"] for row in trained if wanted.items() <= row.items()]
        remark = " (1 epochs)" if column.startswith("lin") else ""  # not 100, as in its README
        assert cells(out, column) == [f"{100 * accuracy:.1f}{remark}"], column
    assert cells(out, "Batch") == ["8"]


def test_the_table_shows_the_latest_evaluation(capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path) -> None:
    assert run("simclr.py", *small_words(few, tmp_path, "probes=knn")) == 0
    for epochs in (30, 1):
        assert run("simclr_lin.py", *small_words(few, tmp_path, f"finetune_epochs={epochs}", "max_steps=1000")) == 0
        out = capsys.readouterr().out
        rows = small.summary(small.only_run(tmp_path / "runs"))["evaluations"]
        (accuracy,) = [row["accuracy"] for row in rows if row["probe"] == "linear_sgd" and row["epochs"] == epochs]
        assert cells(out, "Test Acc") == [f"{100 * accuracy:.1f}"]
        assert cells(out, "Evaluation") == [f"linear_sgd {epochs} epochs (backbone frozen)"]


def test_a_command_resumes_its_run(capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path) -> None:
    assert run("simclr.py", *small_words(few, tmp_path, "probes=knn", "max_steps=2")) == 0
    path = small.only_run(tmp_path / "runs")
    capsys.readouterr()
    assert run("simclr.py", f"resume={path}") == 0
    out = capsys.readouterr().out
    assert "at step 2 of 5" in out
    assert cells(out, "Training Epochs") == ["1"]
    assert "temperature: 0.5 in the run, 0.9 now" in refused(capsys, "simclr.py", f"resume={path}", "temperature=0.9")


def test_other_probes_than_the_scripts_own_need_no_solver() -> None:
    assert loaded("simclr-cifar10.py", "probes=knn").solver is None


def test_linear_evaluation_lists_existing_runs_when_none_matches(capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path) -> None:
    lin = ["max_steps=1", "finetune_epochs=1"]
    assert "no finished run" in refused(capsys, "simclr_lin.py", *small_words(few, tmp_path, *lin))
    assert run("simclr.py", *small_words(few, tmp_path, "probes=knn")) == 0
    said = refused(capsys, "simclr_lin.py", *small_words(few, tmp_path, "batch_size=16", *lin))
    path = small.only_run(tmp_path / "runs")
    assert f"{path.name} (method=simclr, dataset=fashion_mnist, backbone=thin16, batch_size=8)" in said
    assert "with dataset=fashion_mnist, backbone=thin16, batch_size=16" in said


def test_run_and_load_epoch_choose(capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = small_words(few, tmp_path, "epochs=2", "max_steps=10", "log_interval=1", "probes=knn")
    assert run("simclr.py", *words) == 0
    path = small.only_run(tmp_path / "runs")
    lin = [word for word in small_words(few, tmp_path, "max_steps=1", f"run={path.name}") if not word.startswith(("batch", "backbone"))]
    assert run("simclr_lin.py", *lin) == 0, "a named run need not match the defaults of the file"
    capsys.readouterr()
    assert run("simclr_lin.py", *lin, "load_epoch=1") == 0
    out = capsys.readouterr().out
    (saved,) = [row["accuracy"] for row in small.summary(path)["evaluations"] if row["of"] == "epoch_1"]
    assert (cells(out, "Training Epochs"), cells(out, "Test Acc")) == (["1"], [f"{100 * saved:.1f}"])
    assert "load_epoch=7" in refused(capsys, "simclr_lin.py", *lin, "load_epoch=7")
    assert "saved epochs: 1, 2" in refused(capsys, "simclr_lin.py", *lin, "load_epoch=7")
    assert "has batch_size=8, not 16" in refused(capsys, "simclr_lin.py", *lin, "batch_size=16")
    rows = [row for row in small.summary(path)["evaluations"] if row["probe"] == "linear_sgd"]
    assert [row["of"] for row in rows] == ["trained", "epoch_1"]
    seen: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(evaluate, "evaluate", lambda cfg, parts, *a, **k: seen.append(parts.method.backbone.state_dict()) or [])
    assert run("simclr_lin.py", *lin, "load_epoch=1", "table=null") == 0
    first = load_file(path / "epoch-1.safetensors")
    assert all(torch.equal(tensor, first[name]) for name, tensor in seen[0].items()), "the weights of that epoch are evaluated"
    assert (path / "epoch-1.safetensors").read_bytes() != (path / runs.BACKBONE).read_bytes()
    assert (path / "epoch-2.safetensors").read_bytes() == (path / runs.BACKBONE).read_bytes()


def test_latest_is_the_run_that_was_trained_last_not_the_one_evaluated_last(tmp_path: Path) -> None:
    for i, name in enumerate(("old", "new")):
        folder = tmp_path / name
        folder.mkdir()
        for file in (runs.CONFIG, runs.SUMMARY, runs.BACKBONE):
            (folder / file).write_text("{}" if file != runs.CONFIG else "dataset: cifar10\n")
            os.utime(folder / file, (1000 + i, 1000 + i))
    os.utime(tmp_path / "old" / runs.SUMMARY, (2000, 2000))
    assert runs.find("latest", tmp_path).name == "new"
    assert runs.find("latest", tmp_path, dataset="cifar10").name == "new"


def test_several_seeds_in_one_command(capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path) -> None:
    assert run("simclr.py", *small_words(few, tmp_path, "max_steps=1", "probes=knn"), "seed=0,1", "--multirun") == 0
    found = runs.folders(tmp_path / "runs")
    assert [small.summary(path)["seed"] for path in found] == [0, 1]
