"""Equal and nearly equal images are found, and different ones are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from twoviews.data import READERS, duplicates

PHOTOS = 300


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Different images of cells: (N, C, H, W) uint8."""
    return READERS["blood_cells"](None).train_images[:: 10_000 // PHOTOS]


def test_equal_images_are_found_and_the_first_of_several_is_named() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, 3, 4, 4), np.uint8)
    others = np.concatenate([random.integers(0, 256, (5, 3, 4, 4), np.uint8), images[[3, 7, 3]]])
    assert duplicates.equal_images(images, others) == [(3, 5), (7, 6)]
    assert duplicates.equal_images(images[:0], others) == []
    one_value_differs = images.copy()
    one_value_differs[:, 0, 0, 0] ^= 1
    assert duplicates.equal_images(one_value_differs, images) == []


def test_equal_images_of_other_classes_are_found_and_those_of_one_class_are_not() -> None:
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(2, 0)
    labels = np.array([0, 0, 0, 1] + [0] * 8)
    assert duplicates.equal_of_other_classes(images, labels) == [(3, 2)]


def changed(image: np.ndarray, kind: str) -> np.ndarray:
    """Return an image as another program could have stored it."""
    picture = Image.fromarray(image.transpose(1, 2, 0))
    buffer = io.BytesIO()
    if kind == "jpeg":
        picture.save(buffer, "JPEG", quality=50)
        picture = Image.open(buffer)
    elif kind == "brighter":
        picture = picture.point(lambda value: min(255, value + 12))
    elif kind == "contrast":
        picture = picture.point(lambda value: int(40 + value * 0.8))
    elif kind == "shifted":
        return np.concatenate([image[:, :1], image[:, :-1]], axis=1)
    elif kind == "size":
        picture = picture.resize((64, 64), Image.Resampling.BICUBIC).resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["jpeg", "brighter", "contrast", "size", "shifted"])
def test_images_that_were_stored_again_are_nearly_equal(photos: np.ndarray, kind: str) -> None:
    copies = torch.from_numpy(np.stack([changed(image, kind) for image in photos]))
    found = duplicates.near_images(copies, torch.from_numpy(photos))
    assert sum(i == j for i, j in found) >= 0.98 * len(photos)


def test_different_images_are_not_nearly_equal() -> None:
    photos = torch.from_numpy(READERS["blood_cells"](None).train_images)
    assert duplicates.near_images(photos[:4000:10], photos[4000:]) == []
    assert duplicates.near_images(torch.full((5, 3, 8, 8), 7, dtype=torch.uint8), torch.full((5, 3, 8, 8), 7, dtype=torch.uint8)) == []


def test_nearly_equal_images_of_other_classes_are_found_once(photos: np.ndarray) -> None:
    images = torch.from_numpy(np.concatenate([photos[:10], photos[:10]]))
    labels = torch.tensor([0] * 10 + [0] * 5 + [1] * 5)
    found = duplicates.near_images(images, images, labels)
    assert found == [(i + 10, i) for i in range(5, 10)]
