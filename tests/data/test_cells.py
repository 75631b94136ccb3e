"""The bundled blood cells."""

from __future__ import annotations

import hashlib
import importlib
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import twoviews
from twoviews.data import cells
from twoviews.data.arrays import OWN_IMAGES

ROOT = Path(__file__).parents[2]
ASSETS = Path(twoviews.__file__).parent / "assets"


def test_the_cells_are_twelve_thousand_colour_images_in_seven_megabytes() -> None:
    data = cells.read(None)
    assert data.train_images.shape == (10_000, 3, 32, 32)
    assert data.test_images.shape == (2_000, 3, 32, 32)
    assert len(data.classes) == 8
    assert (ASSETS / "blood_cells.jpg").stat().st_size <= 7_000_000
    shares = [np.bincount(labels, minlength=8) / len(labels) for labels in (data.train_labels, data.test_labels)]
    assert np.abs(shares[0] - shares[1]).max() < 0.001  # stratified
    with pytest.raises(ValueError, match=rf"leave data_dir out, .*; {re.escape(OWN_IMAGES)}$"):
        cells.read("somewhere")


def test_the_file_is_the_one_that_the_script_writes() -> None:
    """Its digest was compared with that of a second run of the script, with Pillow 13.0, on the same archive."""
    digest = hashlib.sha256((ASSETS / "blood_cells.jpg").read_bytes()).hexdigest()
    assert digest in (ROOT / "scripts/make_blood_cells.py").read_text()


def test_no_cell_is_twice_in_the_data() -> None:
    data = cells.read(None)
    digests = {hashlib.sha256(image.tobytes()).digest() for images in (data.train_images, data.test_images) for image in images}
    assert len(digests) == 12_000


@pytest.mark.parametrize("number", [0, 121, 9_999, 10_000, 11_999])
def test_an_image_is_its_tile_of_the_picture(number: int) -> None:
    data = cells.read(None)
    with Image.open(ASSETS / "blood_cells.jpg") as picture:
        left, top = 32 * (number % 120), 32 * (number // 120)
        tile = np.asarray(picture.crop((left, top, left + 32, top + 32)))
    images = np.concatenate([data.train_images, data.test_images])
    assert np.array_equal(images[number].transpose(1, 2, 0), tile)


def test_the_licence_credits_the_authors_and_states_the_changes() -> None:
    text = (ASSETS / "blood_cells.LICENSE").read_text()
    for part in (
        "Acevedo",
        "10.1016/j.dib.2020.105474",
        "10.17632/snkd93bnjr.1",
        "CC BY 4.0",
        "creativecommons.org/licenses/by/4.0",
        "Changes:",
    ):
        assert part in text, part


def archive(path: Path) -> dict[str, int]:
    """Write an archive in the form of the true one: every image of a class has one colour; return the number of each class."""
    counts = {"basophil": 30, "ig": 60, "platelet": 90}
    with tarfile.open(path, "w:xz") as tar:
        for shade, (name, count) in enumerate(counts.items()):
            for i in range(count):
                buffer = io.BytesIO()
                Image.new("RGB", (64, 64), (80 * shade, i, 0)).save(buffer, "PNG")
                member = tarfile.TarInfo(f"cells/{name}/{i:03}.jpg")
                member.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(member, buffer)
    return counts


def test_the_script_reads_every_image_and_puts_none_into_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("make_blood_cells")
    counts = archive(tmp_path / "cells.tar.xz")
    classes, images, labels = script.read(tmp_path / "cells.tar.xz")
    assert classes == list(counts)
    assert np.bincount(labels).tolist() == list(counts.values())
    assert images.shape == (180, 32, 32, 3)
    assert (images[:, 0, 0, 0] == 80 * labels).all()
    monkeypatch.setattr(script, "TRAIN", 90)
    monkeypatch.setattr(script, "TEST", 30)
    train, test = script.choose(labels)
    assert not set(train) & set(test)
    assert np.bincount(labels[train]).tolist() == [15, 30, 45]
    assert np.bincount(labels[test]).tolist() == [5, 10, 15]
