"""`twoviews data`: what it prints for every data set, and the contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import write_tree
from PIL import Image

from twoviews.cli import main
from twoviews.commands import data as command


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["data", *words]) == 0
    return capsys.readouterr().out


def test_a_named_data_set_has_one_line_a_table_and_a_sheet(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = printed(capsys, "dataset=fashion_mini")
    assert out.startswith("Fashion-MNIST mini: train 12,000 images, test 2,000 images, 10 classes\n")
    assert "T-shirt/top     1,200       200\n" in out
    assert out.endswith("images.png: 8 images of each of 10 classes\n")
    sheet = np.asarray(Image.open(tmp_path / "images.png"))
    assert sheet.shape == (10 * 68 + 4, 180 + 8 * 68, 3)
    for row in range(10):
        for column in range(8):
            tile = sheet[4 + row * 68 : 68 + row * 68, 180 + column * 68 : 244 + column * 68]
            assert tile.std() > 5, "an image is missing"


def test_of_many_classes_the_first_are_shown_and_the_others_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, own_cache: Path
) -> None:
    root = write_tree(tmp_path / "tree", *(f"c{i:02}" for i in range(45)), each=4, size=8)
    out = printed(capsys, f"data_dir={root}", "image_size=8", f"to={tmp_path / 'sheet.png'}")
    assert "c39           3         1\nand 5 more classes\n" in out
    assert "8 images of each of 40 classes" in out


def test_the_images_of_a_class_are_spread_over_it() -> None:
    import torch

    images = torch.arange(80, dtype=torch.uint8).view(80, 1, 1, 1).expand(80, 1, 8, 8)
    assert [picture.getpixel((0, 0))[0] for picture in command._some(images)] == [0, 11, 22, 33, 45, 56, 67, 79]  # type: ignore[index]
    assert len(command._some(images[:3])) == 3
    assert command._some(images[:0]) == []
