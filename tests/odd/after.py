"""What comes after training: odd names, images without labels, few images."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import tiny as small
import torch
from PIL import Image

from odd.odd import SIZE, Odd
from twoviews import runs
from twoviews.data.dataset import Dataset
from twoviews.report import html, plots
from twoviews.views import Views, ViewSpec

SHOWN = "€ä" + "狗" * 3


def images_without_classes_have_no_accuracies_and_no_empty_table(odd: Odd) -> None:
    odd.images(".", each=24)
    path, out = odd.trained()
    assert "nan" not in out.lower()
    assert "|" not in out, "an empty table"
    assert "features h: " in out
    assert "no classes, so there are no accuracies" in out
    summary = small.summary(path)
    assert summary["evaluations"] == []
    assert len(summary["map"]["rows"]) == len(summary["map"]["xy"]) > 10
    assert summary["neighbours"]["trained"]


def the_report_of_images_without_classes_has_a_map_and_words(odd: Odd) -> None:
    odd.images(".", each=24)
    path, _ = odd.trained()
    report = _report(odd, path)
    assert "Map of the" in report
    assert 'id="accuracy"' not in report
    assert "not collapsed" in report or "alike to the encoder" in report
    assert "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", report)


def _report(odd: Odd, path: Path) -> str:
    """Return the report of a run, drawn with its real function; a warning is an error."""
    summary = small.summary(path)
    images = torch.randint(0, 256, (24, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.zeros(24, dtype=torch.int64)
    data = Dataset("photos", images, labels, images[:4], labels[:4], ("images",), torch.arange(2), (0.5,) * 3, (0.2,) * 3, "x")
    specs = [ViewSpec(size=SIZE, **VIEW)] * 2
    views = Views(image_shape=(3, SIZE, SIZE), specs=specs, mean=data.mean, std=data.std)
    assert summary
    with runs.RunFolder(path) as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        REAL_WRITE(folder, views, data)
    return (path / runs.REPORT).read_text(encoding="utf-8")


def class_names_without_a_glyph_are_shown_escaped(odd: Odd) -> None:
    assert plots.printable(SHOWN) == "€ä" + "\\u72d7" * 3
    assert plots.printable("a$b$") == r"a\$b\$"
    assert plots.printable("x" * 100) == "x" * 21 + "..."
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    data = Dataset("photos", images, labels, images, labels, (SHOWN, "$"), torch.arange(2), (0.5,) * 3, (0.2,) * 3, "x")
    found = {"split": "test", "queries": [0, 1], "raw_pixels": [[1], [0]], "trained": [[0], [1]]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.png(plots.neighbours_grid(found, data))


def few_images_give_no_warning_of_a_collapse_by_their_number_alone(odd: Odd) -> None:
    odd.images("a", "b", each=10)
    _, out = odd.trained("probe_every=0.5", "batch_size=4")
    assert "collapsing" not in out or "RankMe 1." not in out


def classes_of_two_images_are_evaluated_by_leaving_one_out(odd: Odd) -> None:
    odd.images(*(f"class{i:02}" for i in range(12)), each=2)
    path, out = odd.trained("probes='knn,linear_precomp'")
    rows = small.summary(path)["evaluations"]
    assert {row["split"] for row in rows} == {"train+val, leaving one out"}
    assert {row["probe"] for row in rows} == {"knn"}
    assert "kNN leaves one image out at a time; linear_precomp skipped" in out
    assert {row["k"] for row in rows} == {1, 5, 10, 20}


def views_far_smaller_than_the_images_are_mentioned(odd: Odd) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (odd.data / name).mkdir()
        for i in range(12):
            Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(odd.data / name / f"{i}.png")
    _, out = odd.trained("image_size=64", "max_steps=1")
    assert "views of 20 pixels from images of 64: chosen for images of 32; view_sizes=[40,40] keeps the ratio" in out


def another_size_than_the_encoders_is_mentioned(odd: Odd) -> None:
    odd.images("a", "b")
    path, _ = odd.trained()
    plain = ("threads=1", "device=cpu", "probes=knn", "transfer=folder", f"data_dir={odd.data}", f"run={path}")
    code, out, err = odd.run("evaluate", *plain)
    assert code == 0, err
    assert "the encoder was trained on" not in out
    code, out, err = odd.run("evaluate", *plain, "image_size=32")
    assert code == 0, err
    assert f"image_size=32: the encoder was trained on images of {SIZE} pixels" in out


REAL_WRITE = html.write
VIEW = {
    **{
        "crop_scale": (0.5, 1.0),
        "crop_ratio": (0.75, 1.33),
        "interpolation": "bilinear",
        "flip_p": 0.5,
        "jitter_p": 0.0,
        "brightness": 0.0,
    },
    **{"contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale_p": 0.0, "blur_p": 0.0, "blur_kernel": 3, "blur_sigma": (0.1, 2.0)},
    "solarize_p": 0.0,
}
