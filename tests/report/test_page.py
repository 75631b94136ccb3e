"""The report of runs that are not like the others: many classes, labels that were trained on, large photos, steps that are left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twoviews import build, config, inspection, runs
from twoviews.data import dataset
from twoviews.data.arrays import Arrays
from twoviews.report import compare, html, page

CUT = ["threads=1", "device=cpu", "compile=false", "backbone=thin16", "max_steps=2"]


def photos(classes: int, size: int, *, test: int = 60) -> Arrays:
    """Return noise of some classes, the hardest picture to compress."""
    random = np.random.default_rng(0)

    def made(count: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(0, 256, (count, 3, size, size), np.uint8), np.arange(count) % classes

    (train, labels), (images, truth) = made(max(400, 2 * classes)), made(test)
    names = tuple(f"class {i}" for i in range(classes))
    return Arrays("photos", train, labels, images, truth, names)


def drawn(tmp_path: Path, arrays: Arrays, *words: str, **changes: Any) -> str:
    """Return the page of an untrained network, whose summary is made by hand."""
    cfg = config.load("pretrain", [*words, *CUT])
    parts = build.build(cfg, arrays)
    found = inspection.inspect(cfg, parts)
    count = len(arrays.classes)
    row = {
        "of": "trained",
        "split": "test",
        "probe": "knn",
        "features": "h",
        "k": 10,
        "metric": "cosine",
        "weights": "uniform",
        "accuracy": 0.5,
    }
    summary: dict[str, Any] = {
        **{"recipe": cfg.recipe, "method": cfg.method, "dataset": arrays.title, "backbone": cfg.backbone, "seed": 0},
        **{"uses_labels": parts.method.uses_labels, "train_on": cfg.train_on, "epochs": cfg.epochs, "batch_size": cfg.batch_size},
        "evaluations": [{**row, "confusion": np.random.default_rng(0).integers(0, 9, (count, count)).tolist()}] if count > 1 else [],
        "train": {"steps": 2, "planned_steps": 900, "sec_per_epoch": 1.0, "seconds": 2.0, "views_per_s": 9.0, "peak_bytes": 2**30},
        "wall_seconds": 3.0,
        **found,
        **changes,
    }
    path = runs.create(tmp_path, "a", "seed: 0\n", "x")
    with runs.RunFolder(path) as folder:
        folder.write(runs.SUMMARY, summary)
        folder.write(
            runs.MANIFEST, {"commit": None, "machine": "m", "versions": {}, "python": "3", "data_digest": "0" * 64, "command": "c"}
        )
        folder.log(
            [{"step": i, "epoch": i / 9, "loss": 1.0, "lr": 0.1, "val_knn10": 0.5, "z_spread": 0.9, "z_rankme": 9.0} for i in range(2)]
        )
        html.write(folder, parts.views, parts.dataset)
    return (path / runs.REPORT).read_text(encoding="utf-8")


def test_a_cut_run_says_so_and_what_is_left(tmp_path: Path) -> None:
    text = drawn(tmp_path, photos(3, 16), "recipe=cifar_thin", unfinished=["knn", "report"])
    assert "for 15 (cut at step 2 of 900) epochs" in text
    assert "2 of 900 steps" in text
    assert "Not done yet: knn." in text
    assert "RankMe of z over the epochs: from 9 to 9" in text


def test_a_supervised_run_has_no_z_and_its_curve_is_on_labels_that_were_trained_on(tmp_path: Path) -> None:
    text = drawn(tmp_path, photos(3, 16), "recipe=supervised")
    assert "kNN accuracy on val, % (whose labels are trained on)" in text
    assert "spread of h (1 is even" in text
    for false in ("projector", "projections", "of z"):
        assert false not in text, false


@pytest.mark.parametrize("classes", [1, 40])
def test_one_class_and_many_classes_have_a_page(classes: int, tmp_path: Path) -> None:
    text = drawn(tmp_path, photos(classes, 16), "recipe=cifar_thin")
    assert ("are taken for" in text) == (classes > 1)
    assert ("one of 8 of 40 classes" in text) == (classes > 1)
    assert "Map of the" in text
    assert '<table class="matrix">' not in text


@pytest.mark.long
def test_large_photos_fit_into_five_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "LEAST_UMAP", 2000)  # it may compile for 12 s, and its maps are as large as those of t-SNE
    text = drawn(tmp_path, photos(10, 128, test=1000), "recipe=cifar_thin", "dataset=folder", "data_dir=x", "image_size=128")
    assert len(text.encode()) < 5e6


def test_the_classes_of_the_neighbours_are_random_ones(tmp_path: Path) -> None:
    cfg = config.load("pretrain", ["recipe=cifar_thin", *CUT])
    parts = build.build(cfg, photos(40, 16))
    found = inspection.neighbours(parts, inspection.examine(cfg, parts))
    labels = parts.dataset.test_labels[found["queries"]].tolist()
    assert len(set(labels)) == inspection.SHOWN
    assert labels == sorted(labels) != list(range(inspection.SHOWN))


def test_a_tie_of_the_own_class_is_no_mistake() -> None:
    e = torch.eye(2)
    bank = torch.cat([e[:1].repeat(5, 1), e[1:].repeat(5, 1)])
    bank_labels = torch.tensor([0] * 5 + [1] * 5)
    examined = inspection.Examined("test", torch.arange(2), torch.tensor([1, 2]), torch.ones(2, 2), torch.arange(10), bank_labels, bank)
    found = inspection.mistakes(examined)
    assert (found["wrong"], found["rows"]) == (1, [1])


def test_a_comparison_names_cut_runs_and_runs_with_labels(tmp_path: Path) -> None:
    paths = []
    for number, recipe in enumerate(("cifar_thin", "supervised")):
        drawn(tmp_path / str(number), photos(3, 16), f"recipe={recipe}")
        paths += runs.folders(tmp_path / str(number))
    content = compare.content(paths)
    assert ("steps", ["2 of 900", "2 of 900"]) in content["numbers"]
    assert [name.endswith("(uses labels)") for name in content["names"]] == [False, True]
    text = html.comparison(paths)
    assert "(uses labels)" in text
    assert "cannot be compared" not in text
    with runs.RunFolder(paths[1]) as folder:
        folder.write(runs.MANIFEST, {**runs.read_json(paths[1], runs.MANIFEST), "data_digest": "1" * 64})
    assert "cannot be compared" in html.comparison(paths), "images of the same name differ"


def test_titles_of_curves_are_those_of_the_page() -> None:
    summary = {"uses_labels": False, "train_on": "train+val", "diagnostics": {"h": {}, "z": {}}}
    assert page.titles(summary) == page.CURVES


def test_the_data_of_a_page_can_lack_names() -> None:
    data = dataset.load("fashion_mini", None)
    assert page.neighbours({}, data) is page.mistakes({}, data) is page.duplicates({}, data) is page.embedding_map({}, data) is None
