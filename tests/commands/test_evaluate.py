"""`twoviews evaluate`: which numbers it gives, which it keeps, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as small
import torch
from command_helpers import PLAIN, RECIPE, cut_mini, poisoned, pretrained, protocols_only, refused, weights

from twoviews import build, config, evaluation, inspection, runs, train
from twoviews.cli import main
from twoviews.data import READERS
from twoviews.data.dataset import load
from twoviews.data.idx import CLASSES
from twoviews.methods import METHODS
from twoviews.probes import protocols
from twoviews.report import page
from twoviews.runs import checkpoint, tables

pytestmark = pytest.mark.usefixtures("fast")
KINDS = ("raw_pixels", "random_initialisation", "trained")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small network on 320 images. Read it, never write it."""
    runs_dir = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        small.make_fast(patch.setattr)
        assert main(["pretrain", *small.words(data, runs_dir, "probes='knn,linear_precomp'")]) == 0
    return small.only_run(runs_dir)


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may write."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fashion_mini` has 1000 and 200 images in this test."""
    monkeypatch.setitem(READERS, "fashion_mini", lambda data_dir: cut_mini())


def evaluations(path: Path) -> list[dict[str, Any]]:
    return small.without_times(small.summary(path)["evaluations"])


def as_set(rows: list[dict[str, Any]]) -> set[str]:
    return {str(row) for row in rows}


# ---- rows ----


def test_evaluate_latest_replaces_rows_of_its_protocols_and_adds_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, few: Path
) -> None:
    path = pretrained(few, tmp_path / "runs")
    before, saved = small.summary(path), weights(path)
    argv = ["evaluate", "run=latest", f"runs_dir={tmp_path / 'runs'}", *PLAIN]
    assert main([*argv, "probes=knn"]) == 0
    assert evaluations(path) == small.without_times(before["evaluations"]), "the same numbers again"
    assert main([*argv, "probes=linear_precomp"]) == 0
    after = small.summary(path)
    assert [row["probe"] for row in after["evaluations"]] == ["knn"] * 4 * 3 + ["linear_precomp"] * 3
    assert {key: value for key, value in after.items() if key != "evaluations"} == {k: v for k, v in before.items() if k != "evaluations"}
    assert weights(path) == saved
    assert "| linear_precomp L-BFGS" in capsys.readouterr().out


def test_every_probe_leaves_the_run_as_it_is_and_test_labels_change_its_accuracy_alone(
    capsys: pytest.CaptureFixture[str], trained: Path, data: Path, tmp_path: Path
) -> None:
    found = []
    for name, folder in (("clean", data), ("wrong", poisoned(tmp_path / "poisoned", small.arrays(), test=True))):
        path = Path(shutil.copytree(trained, tmp_path / name))
        digest = load("fashion_mnist", str(folder), None).digest  # else the evaluation is refused
        small.change(path, runs.MANIFEST, data_digest=digest)
        assert (
            main(["evaluate", f"run={path}", "probes=all", "probe_epochs=4", "probe_learning_rate=0.1", f"data_dir={folder}", *PLAIN]) == 0
        )
        assert weights(path) == weights(trained)
        found.append(small.summary(path)["evaluations"])
    assert {(row["probe"], row.get("metric"), row.get("solver")) for row in found[0] if row["of"] == "trained"} == {
        *(("knn", "cosine", None), ("knn", "euclidean", None), ("linear_precomp", None, "lbfgs"), ("linear_precomp", None, "adam")),
        *(("low_label", None, "lbfgs"), *((name, None, None) for name in protocols.ON_IMAGES)),
    }
    assert {row["features"] for row in found[0]} == {"pixels", "h", "z"}
    assert all(not row["probe"].startswith("linear_") or "solver" in row or row["of"] == "trained" for row in found[0])
    lower = [wrong["accuracy"] < clean["accuracy"] for clean, wrong in zip(*found, strict=True)]
    assert sum(lower) > 0.9 * len(lower), "ten classes moved by one: most answers become wrong"
    assert not [row for low, row in zip(lower, found[0], strict=True) if row["of"] == "trained" and not low]
    assert protocols_only(found[0]) == protocols_only(found[1])
    out = capsys.readouterr().out
    for line in (
        "| kNN k=10 euclidean uniform |",
        "| linear_precomp Adam 0.1, 4 epochs, batch 1000 |",
        "| linear_sgd SGD 0.1, 4 epochs, batch 64 |",
    ):
        assert line in out


def test_a_row_has_the_accuracy_of_each_class_and_the_summary_describes_the_features(trained: Path) -> None:
    summary = small.summary(trained)
    assert summary["classes"] == list(CLASSES)
    for row in summary["evaluations"]:
        assert sum(row["per_class"]) / 10 == pytest.approx(row["accuracy"]), "ten test images of each class"
        if (row["probe"], row.get("k")) in (("knn", 10), ("linear_precomp", None)):
            counts = np.array(row["confusion"])
            assert counts.sum() == small.TEST
            assert np.trace(counts) / small.TEST == pytest.approx(row["accuracy"])
        else:
            assert "confusion" not in row
    assert set(summary["diagnostics"]) == {"h", "z"}
    for features in summary["diagnostics"].values():
        assert features["rankme"] >= 1
        assert 0 < features["std"] <= 1.1
        assert -4 < features["uniformity"] < 0 < features["alignment"] < 4


def test_diagnosing_leaves_the_method_as_it_is_and_needs_no_label(tiny: list[str]) -> None:
    cfg = config.load("pretrain", tiny)
    parts = build.build(cfg)
    before = {name: tensor.clone() for name, tensor in parts.method.state_dict().items()}
    found = inspection.diagnose(cfg, parts)
    assert parts.method.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.method.state_dict().items())
    parts.dataset.labels.zero_()
    assert inspection.diagnose(cfg, parts) == found


@pytest.mark.parametrize("train_on", ["train+val", "train"])
def test_neighbours_are_the_nearest_training_images_of_one_image_per_class(tiny: list[str], train_on: str) -> None:
    cfg = config.load("pretrain", [*tiny, f"train_on={train_on}"])
    parts = build.build(cfg)
    before = {name: tensor.clone() for name, tensor in parts.method.state_dict().items()}
    found = inspection.neighbours(parts, inspection.examine(cfg, parts))
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.method.state_dict().items())
    data, split = parts.dataset, {"train+val": "test", "train": "val"}[train_on]
    images, labels = data.split(split)
    assert found["split"] == split
    queries = found["queries"]
    classes = labels[queries].tolist()
    assert classes == sorted(set(classes))
    assert len(classes) == 8 < len(data.classes)
    similarity = torch.cosine_similarity(images[queries].flatten(1).double()[:, None], data.images.flatten(1).double()[None], dim=2)
    if train_on == "train":
        similarity[:, data.val_rows] = -1.0
    assert found["raw_pixels"] == similarity.topk(6).indices.tolist()
    backbone = parts.method.modules_to_probe()["h"]
    h, bank = parts.embed(backbone, images[queries]).double(), parts.embed(backbone, data.images).double()
    similarity = torch.cosine_similarity(h[:, None], bank[None], dim=2)
    if train_on == "train":
        similarity[:, data.val_rows] = -1.0
    assert found["trained"] == similarity.topk(6).indices.tolist()


def queries_of(cfg: config.Config, parts: build.Parts) -> list[int]:
    rows: list[int] = inspection.neighbours(parts, inspection.examine(cfg, parts))["queries"]
    return rows


def test_neighbours_of_images_without_classes_are_of_several_images(tiny: list[str]) -> None:
    parts = build.build(cfg := config.load("pretrain", tiny))
    one = replace(parts.dataset, test_labels=torch.zeros_like(parts.dataset.test_labels))
    assert len(set(queries_of(cfg, replace(parts, dataset=one)))) == 8


def test_projections_are_evaluated_after_training_and_again_from_the_checkpoint(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    assert main(["pretrain", *small.words(data, tmp_path / "runs", "probes='moco_demo,wmse'", recipe="moco_thin")]) == 0
    path = small.only_run(tmp_path / "runs")
    first = evaluations(path)
    assert [(row["of"], row["features"], row["k"]) for row in first] == [
        *(("raw_pixels", "pixels", 5), ("random_initialisation", "h", 5), ("random_initialisation", "z", 200)),
        *(("trained", "h", 5), ("trained", "z", 200)),
    ]
    assert "kNN k=200 cosine exp(s/0.1) on z" in capsys.readouterr().out
    argv = ["evaluate", f"run={path}", *PLAIN, "probes=moco_demo"]
    assert main(argv) == 0
    assert as_set(evaluations(path)) == as_set(first)
    assert "an epoch's file has no projector" in refused(capsys, *argv, "load_epoch=1")


def test_baselines_are_left_out_on_request_and_added_by_a_later_evaluation(few: Path, tmp_path: Path) -> None:
    path = pretrained(few, tmp_path / "runs", "probes=knn", "baselines=false")
    alone = evaluations(path)
    assert {row["of"] for row in alone} == {"trained"}
    assert "of the images." in page.in_words(small.summary(path)), "the report has no bracket for baselines"
    assert main(["evaluate", f"run={path}", *PLAIN, "probes=knn"]) == 0
    assert {row["of"] for row in evaluations(path)} == set(KINDS)
    assert as_set([row for row in evaluations(path) if row["of"] == "trained"]) == as_set(alone)


def test_a_method_without_a_projector_has_no_probe_of_one(capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path) -> None:
    path = pretrained(few, tmp_path / "runs", "probes='knn,moco_demo'", recipe="supervised")
    assert "supervised has no projector" in capsys.readouterr().out
    assert {row["features"] for row in small.summary(path)["evaluations"]} == {"pixels", "h"}


def test_few_labels_are_stratified_seeded_and_all_that_a_probe_sees(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    words = small.words(data, tmp_path / "runs", "probes='low_label,low_label_finetune,finetune'", "probe_epochs=1")
    assert main(["pretrain", *words]) == 0
    rows = small.summary(small.only_run(tmp_path / "runs"))["evaluations"]
    assert (
        [(row["of"], row["probe"], row.get("labels")) for row in rows]
        == [
            *((of, "low_label", labels) for of in KINDS for labels in (10, 32)),  # of 320, and at least ten
            *((of, "low_label_finetune", labels) for of in KINDS[1:] for labels in (10, 32)),
            *((of, "finetune", None) for of in KINDS[1:]),
        ]
    )
    out = capsys.readouterr().out
    assert "| low_label L-BFGS, decay chosen on a fifth, 32 labels |" in out
    assert "| low_label_finetune SGD 0.0125, 1 epochs, batch 64, 10 labels |" in out
    parts = build.build(config.load("pretrain", small.words(data, tmp_path)))
    labels, split = parts.dataset.labels, parts.dataset.split("val")
    few = [evaluation.Evaluation(parts, split, split, split, 10, lambda: None, seed, None).labelled(labels, 0.1) for seed in (0, 0, 1)]
    assert torch.equal(few[0], few[1])
    assert not torch.equal(few[0], few[2])
    assert set(labels[few[0]].bincount().tolist()) <= {3, 4}


def test_a_k_above_the_number_of_bank_images_is_reported(capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path) -> None:
    path = pretrained(few, tmp_path / "runs", "probes='lightly,wmse'")
    assert "kNN with k = 200 is skipped: the bank has 40 rows" in capsys.readouterr().out
    assert {row["k"] for row in small.summary(path)["evaluations"]} == {5}


# ---- other data ----


def test_a_run_is_evaluated_on_another_data_set(capsys: pytest.CaptureFixture[str], trained: Path, copy: Path, other_data: None) -> None:
    argv = ["evaluate", f"run={copy}", *PLAIN, "transfer=fashion_mini"]
    assert main([*argv, "probes=wmse"]) == 0
    assert weights(copy) == weights(trained)
    old, new = small.summary(trained)["evaluations"], small.summary(copy)["evaluations"]
    assert new[: len(old)] == old, "its own rows stay"
    assert [(row["of"], row["on"]) for row in new[len(old) :]] == [(of, "Fashion-MNIST mini") for of in KINDS]
    assert "| kNN k=5 euclidean uniform, on Fashion-MNIST mini |" in capsys.readouterr().out
    assert main([*argv, "probes=knn"]) == 0
    assert "k = 200" not in capsys.readouterr().out
    transferred = small.summary(copy)
    assert {row["on"] for row in transferred["evaluations"][len(old) :]} == {"Fashion-MNIST mini"}
    for of in KINDS:
        assert tables.headline(transferred, of) == tables.headline(small.summary(trained), of), "no table has another data set's number"
    assert tables.linear(transferred) == tables.linear(small.summary(trained))
    assert "shows the run's own data" in refused(capsys, *argv, "table=race")


def test_the_random_initialisation_of_a_transfer_is_the_runs_own(copy: Path, monkeypatch: pytest.MonkeyPatch, other_data: None) -> None:
    """Its first convolution is whitened on the run's images, not on those that it is evaluated on."""
    built: list[dict[str, torch.Tensor]] = []
    modules_of = evaluation._modules

    def watched(*args: Any) -> Any:
        modules = modules_of(*args)
        built.append(modules["random_initialisation"]["h"].state_dict())
        return modules

    monkeypatch.setattr(evaluation, "_modules", watched)
    argv = ["evaluate", f"run={copy}", *PLAIN, "probes=wmse"]
    assert main(argv) == main([*argv, "transfer=fashion_mini"]) == 0
    assert all(torch.equal(tensor, built[1][name]) for name, tensor in built[0].items())


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_other_data_than_the_runs_are_refused(capsys: pytest.CaptureFixture[str], copy: Path, tmp_path: Path, verb: str) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    other = poisoned(tmp_path / "poisoned", small.arrays(), test=True)
    assert "the data differ from the run's" in refused(capsys, verb, f"run={copy}", f"data_dir={other}", "threads=1", "device=cpu")
    assert {path.name: path.read_bytes() for path in copy.iterdir() if not path.name.startswith(".")}.items() <= before.items()


# ---- the same run again ----


def test_an_evaluation_repeated_gives_the_same_numbers(few: Path, tmp_path: Path) -> None:
    """It uses the run's own seed and precision, whatever the command's defaults are; that holds for probes that are trained too."""
    path = pretrained(few, tmp_path / "runs", "seed=1", "probes=all", "probe_epochs=1")
    first = as_set(evaluations(path))
    argv = ["evaluate", f"run={path}", "threads=1", "compile=false", "device=cpu", "probe_epochs=1"]
    assert main([*argv, "probes=all"]) == 0
    assert as_set(evaluations(path)) == first
    assert main([*argv, "seed=2", "probes=linear_sgd"]) == 0
    assert len(as_set(evaluations(path)) - first) == 1


def test_c5_weights_of_another_run_are_refused(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: torch.zeros_like(x) for name, x in load_file(copy / runs.BACKBONE).items()}, copy / runs.BACKBONE)
    assert "another run" in refused(capsys, "evaluate", f"run={copy}", "probes=knn")


def test_projections_of_another_step_than_the_summarys_are_refused(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    state = checkpoint.load(copy)
    checkpoint.save(copy, {**state, "step": state["step"] + 1})
    said = refused(capsys, "evaluate", f"run={copy}", "probes=moco_demo", "threads=1", "device=cpu")
    assert "its checkpoint is at step 6, its summary at step 5" in said


SHORT = ("simclr", "moco", "dino", "supervised")  # projector, sub-batches, a teacher, labels


@pytest.mark.parametrize("method", [*SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name not in SHORT)])
def test_a_frozen_backbone_is_frozen(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """And each method has every probe. Ten labels leave a batch of two, which is no multiple of MoCo's `bn_splits`."""
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
    monkeypatch.setattr(evaluation, "evaluate", watched("evaluate", evaluation.evaluate, 1))
    pretrained(few, tmp_path / "runs", "probe_every=0.4", "probes=all", "probe_epochs=1", recipe=RECIPE[method])
    assert compared == ["monitor", "monitor", "evaluate"]
