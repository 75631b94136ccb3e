"""What a reader may return: arrays of another form are refused, and the digest covers pixels and labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from twoviews.data.arrays import Arrays

GOOD = Arrays("a", np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 1, 0, 1]), np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1]), ("x", "y"))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"train_images": np.zeros((4, 1, 2, 2), np.float32)}, "a, train images: expected uint8 of shape .*, got float32"),
        ({"train_images": np.zeros((4, 2, 2), np.uint8)}, r"train images: .*got uint8 \(4, 2, 2\)"),
        ({"test_images": np.zeros((2, 2), np.uint8)}, "test images"),
        ({"train_labels": np.array([0, 1, 0])}, "train labels: expected 4 integers"),
        ({"train_labels": np.array([0.0, 1, 0, 1])}, "train labels: expected 4 integers, got float64"),
        ({"train_labels": np.array([[0], [1], [0], [1]])}, "train labels"),
        ({"train_labels": np.array([0, 1, 2, 1])}, "train labels: expected 0 to 1, got 0 to 2"),
        ({"test_labels": np.array([-1, 1])}, "test labels: expected 0 to 1, got -1 to 1"),
        ({"train_images": np.zeros((4, 2, 2, 1), np.uint8)}, r"train images: .*\(N, C, H, W\), C 1 or 3, got uint8 \(4, 2, 2, 1\)"),
        ({"train_images": np.zeros((4, 2, 2, 2), np.uint8)}, "train images: .*C 1 or 3"),
        ({"test_images": np.zeros((2, 4, 2, 2), np.uint8)}, "test images: .*C 1 or 3"),
        ({"train_images": np.full((4, 1, 2, 2), 255.0)}, "train images: expected uint8 .*got float64"),
        ({"train_images": np.full((4, 1, 2, 2), np.nan)}, "train images: expected uint8 .*got float64"),
        ({"train_images": np.zeros((4, 1, 2, 2), np.int16)}, "train images: expected uint8 .*got int16"),
        ({"test_images": np.zeros((2, 1, 2, 2), bool)}, "test images: expected uint8 .*got bool"),
        ({"train_images": np.zeros((0, 1, 2, 2), np.uint8), "train_labels": np.zeros(0, int)}, "train images: expected at least one"),
        ({"test_images": np.zeros((2, 1, 3, 3), np.uint8)}, r"test images: expected .*\(1, 2, 2\), got uint8 \(1, 3, 3\)"),
        ({"test_images": np.zeros((2, 3, 2, 2), np.uint8)}, r"test images: expected .*\(1, 2, 2\), got uint8 \(3, 2, 2\)"),
        ({"train_labels": np.zeros(0, int)}, r"train labels: expected 4 integers, got int64 \(0,\)"),
        ({"train_labels": np.array(["x", "y", "x", "y"])}, "train labels: expected 4 integers"),
        ({"test_labels": np.array([0, np.nan])}, "test labels: expected 2 integers, got float64"),
        ({"unlabelled_images": np.zeros((2, 1, 3, 3), np.uint8)}, r"unlabelled images: expected .*\(1, 2, 2\), got uint8 \(1, 3, 3\)"),
        ({"unlabelled_images": np.zeros((2, 1, 2, 2))}, "unlabelled images: expected uint8 .*got float64"),
        ({"classes": ("x", "x")}, "classes: expected a printable name for each, different from all others, got 'x'"),
        ({"classes": ("x", "y\n")}, r"classes: .*got 'y\\n'"),
        ({"classes": ("x", "\udce9")}, r"classes: .*got '\\udce9'"),
    ],
)
def test_d3_arrays_of_another_form_are_refused_with_their_name(changed: dict[str, np.ndarray], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        dataclasses.replace(GOOD, **changed)


def test_the_digest_covers_pixels_and_labels() -> None:
    assert GOOD.digest() == dataclasses.replace(GOOD, title="b").digest()
    others = [
        dataclasses.replace(GOOD, train_labels=np.array([0, 1, 1, 0])),
        dataclasses.replace(GOOD, test_labels=np.array([1, 0])),
        dataclasses.replace(GOOD, train_images=GOOD.train_images + np.uint8(1)),
        dataclasses.replace(GOOD, test_images=GOOD.test_images + np.uint8(1)),
    ]
    others += [dataclasses.replace(GOOD, unlabelled_images=GOOD.test_images + np.uint8(n)) for n in (0, 1)]
    assert len({GOOD.digest(), *(other.digest() for other in others)}) == 7
