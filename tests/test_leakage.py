"""No leakage: test images and labels, and labels of any kind, reach only what may see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny as small
from command_helpers import RECIPE, poisoned, pretrained, protocols_only, weights

from twoviews import build, config, runs
from twoviews.cli import main
from twoviews.methods import METHODS
from twoviews.runs import tables

pytestmark = pytest.mark.usefixtures("fast")
WITHOUT_LABELS = [name for name, method in METHODS.items() if not method.uses_labels]
every_method = pytest.mark.parametrize("method", METHODS)


def few_arrays() -> list[np.ndarray]:
    """Return what the fixture `few` has written."""
    return small.arrays(small.FEW, small.FEW_TEST)


def test_wrong_test_labels_change_the_final_accuracy_and_nothing_else(data: Path, tmp_path: Path) -> None:
    paths = []
    for name, folder in (("clean", data), ("wrong", poisoned(tmp_path / "poisoned", small.arrays(), test=True))):
        assert main(["pretrain", *small.words(folder, tmp_path / name, "probes='knn,linear_precomp'")]) == 0
        paths.append(small.only_run(tmp_path / name))
    clean, wrong = paths
    assert weights(wrong) == weights(clean)
    assert small.without_times(runs.read_metrics(wrong)) == small.without_times(runs.read_metrics(clean))
    rows = [small.summary(path)["evaluations"] for path in paths]
    assert all(w["accuracy"] < c["accuracy"] for c, w in zip(*rows, strict=True)), "classes moved by one: most answers become wrong"
    assert protocols_only(rows[1]) == protocols_only(rows[0])  # the chosen weight decay too


def test_with_train_on_train_the_test_set_stays_untouched(few: Path, tmp_path: Path) -> None:
    words = ("train_on=train", "probes=all", "probe_epochs=1", "probe_every=0.2", "max_steps=3")
    other = poisoned(tmp_path / "poisoned", few_arrays(), test=True, test_images=True)
    clean, wrong = pretrained(few, tmp_path / "clean", *words), pretrained(other, tmp_path / "wrong", *words)
    assert weights(wrong) == weights(clean)
    assert small.without_times(small.summary(wrong)["evaluations"]) == small.without_times(small.summary(clean)["evaluations"])
    assert {row["split"] for row in small.summary(clean)["evaluations"]} == {"val"}
    metrics = [small.without_times(runs.read_metrics(path)) for path in (wrong, clean)]
    assert metrics[0] == metrics[1]
    assert all("val_knn10" in row for row in metrics[0])


def test_test_images_may_be_trained_on_without_their_labels_and_every_number_says_so(
    capsys: pytest.CaptureFixture[str], few: Path, tmp_path: Path
) -> None:
    words = ("train_on=train+val+test", "max_steps=7")  # 60 images: seven batches of 8 per epoch
    clean = pretrained(few, tmp_path / "clean", *words)
    assert "Fashion-MNIST, test, its images trained on accuracy in per cent" in capsys.readouterr().out
    assert small.summary(clean)["train"]["planned_steps"] == 7
    wrong = pretrained(poisoned(tmp_path / "poisoned", few_arrays(), test=True), tmp_path / "wrong", *words)
    assert weights(wrong) == weights(clean)
    (row,) = tables.race([(small.summary(clean), runs.read_config(clean))])
    assert row["Data"] == "Fashion-MNIST, test, its images trained on"
    with pytest.raises(ValueError, match=r"train_on=train\+val\+test: supervised needs labels"):
        build.build(config.load("pretrain", small.words(few, tmp_path, "train_on=train+val+test", recipe="supervised")))


@every_method
def test_wrong_training_labels_reach_only_methods_that_use_labels(few: Path, tmp_path: Path, method: str) -> None:
    words = ("probe_every=0.2", "max_steps=3")
    clean = pretrained(few, tmp_path / "clean", *words, recipe=RECIPE[method])
    parts = few_arrays()
    parts[1] = np.roll(parts[1], 7)
    parts[1][:5] = 3  # uneven classes too, so that another val split is drawn
    other = small.write_idx(tmp_path / "wrong data", parts)
    wrong = pretrained(other, tmp_path / "wrong", *words, recipe=RECIPE[method])
    assert (weights(wrong) == weights(clean)) == (method in WITHOUT_LABELS)
    same_losses = [row["loss"] for row in runs.read_metrics(wrong)] == [row["loss"] for row in runs.read_metrics(clean)]
    assert same_losses == (method in WITHOUT_LABELS)
    probed = [[row["val_knn10"] for row in runs.read_metrics(path)] for path in (clean, wrong)]
    assert probed[0] != probed[1], "the labels were really other ones"


def test_labels_are_passed_only_to_methods_that_use_them(few: Path, tmp_path: Path) -> None:
    for method, name in RECIPE.items():
        parts = build.build(config.load("pretrain", small.words(few, tmp_path, recipe=name, batch=small.FEW_BATCH)))
        assert (parts.labels is not None) == METHODS[method].uses_labels


@every_method
def test_a_probe_at_every_step_leaves_the_weights_as_they_are(few: Path, tmp_path: Path, method: str) -> None:
    never = pretrained(few, tmp_path / "never", "probe_every=0", recipe=RECIPE[method])
    always = pretrained(few, tmp_path / "always", "probe_every=0.2", recipe=RECIPE[method])
    assert weights(always) == weights(never)
    probed = [[name for name in row if name.startswith("val_knn")] for row in runs.read_metrics(always)]
    assert probed == [["val_knn10"]] * 5
    assert not any(name.startswith("val_knn") for row in runs.read_metrics(never) for name in row)
