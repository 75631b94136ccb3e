"""The Python interface: data in memory as people have them, values of other libraries, and callers with settings of their own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import twoviews
from odd.odd import SIZE, Odd
from twoviews import config, inputs, runs
from twoviews.cli import main
from twoviews.data import own

SMALL: dict[str, Any] = {
    **{"backbone": "thin16", "batch_size": 8, "epochs": 1, "probes": "knn", "probe_every": 0},
    **{"threads": 1, "compile": False, "precision": "fp32"},
}


def _pixels(count: int = 40, channels: int = 3, size: int = SIZE) -> np.ndarray:
    """Return images of noise (N, H, W, C)."""
    return np.random.default_rng(3).integers(0, 256, (count, size, size, channels), np.uint8)


LABELS = np.arange(40) % 4


class _Listed(Dataset[Any]):
    """A map-style data set of the items of a list."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def _refused(data: Any) -> str:
    with pytest.raises(ValueError) as refused:
        own.read(data, "own")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def arrays_of_every_order_of_axes_are_the_same_images(odd: Odd) -> None:
    for channels in (1, 3):
        images = _pixels(channels=channels)
        first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        forms = [images, first, torch.from_numpy(images), torch.from_numpy(first), images[::-1][::-1], np.asfortranarray(images)]
        forms += [images[..., 0]] * (channels == 1)
        assert {own.read((form, LABELS), "own").digest() for form in forms} == {own.read((first, LABELS.tolist()), "own").digest()}


def a_data_set_of_pictures_or_tensors_is_the_same_images(odd: Odd) -> None:
    images = _pixels()
    expected = own.read((images, LABELS), "own")
    pictures = [(Image.fromarray(x), int(y)) for x, y in zip(images, LABELS, strict=True)]
    tensors = TensorDataset(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(LABELS))
    for data in (_Listed(pictures), tensors, _Listed([(x, np.int64(y)) for x, y in zip(images, LABELS, strict=True)])):
        assert own.read(data, "own").digest() == expected.digest()
    gray = own.read(_Listed([(picture.convert("L"), label) for picture, label in pictures]), "own")
    assert gray.train_images.shape == (40, 1, SIZE, SIZE)
    clear = own.read(_Listed([(Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0)), 0)] * 3), "own")
    assert (clear.train_images == 255).all(), "transparent is white, as in files"


def classes_come_from_labels_or_from_the_data_set(odd: Odd) -> None:
    images = _pixels(4)
    for labels, classes, numbers in (
        (["dog", "cat", "dog", "emu"], ("cat", "dog", "emu"), [1, 0, 1, 2]),
        (np.array(["b", "a", "b", "b"], object), ("a", "b"), [1, 0, 1, 1]),
        ([7, 3, 3, 10], ("3", "7", "10"), [1, 0, 0, 2]),
        (np.array([True, False, True, True]), ("False", "True"), [1, 0, 1, 1]),
        (torch.tensor([2, 0, 1, 1], dtype=torch.uint8), ("0", "1", "2"), [2, 0, 1, 1]),
        (None, ("images",), [0, 0, 0, 0]),
    ):
        read = own.read((images, labels), "own")
        assert (read.classes, read.train_labels.tolist()) == (classes, numbers)
    named = _Listed([(Image.fromarray(x), y) for x, y in zip(images, [2, 0, 2, 0], strict=True)], classes=["ant", "bee", "cow"])
    for data in (named, Subset(named, [0, 1, 2, 3])):
        read = own.read(data, "own")
        assert (read.classes, read.train_labels.tolist()) == (("ant", "bee", "cow"), [2, 0, 2, 0]), (
            "a class without images keeps its number"
        )
    assert "label 2: its data set names 2 classes" in _refused(_Listed(named.items, classes=["ant", "bee"]))


def a_train_and_a_test_split_may_be_given_in_every_form(odd: Odd) -> None:
    images = _pixels()
    data_set = TensorDataset(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(LABELS))
    whole, part = (images, LABELS), (images[:12], LABELS[:12])
    for data in ((whole, part), [whole, list(part)], (data_set, part), (data_set, Subset(data_set, range(12)))):
        read = own.read(data, "own")
        assert (len(read.train_images), len(read.test_images), read.test_labels.tolist()) == (40, 12, LABELS[:12].tolist())
    assert "data: test has labels that train lacks: 9" in _refused((whole, (images[:2], [0, 9])))
    assert "labels that train lacks: 0, 1" in _refused((whole, (images[:2], ["0", "1"])))
    assert "expected one size" in _refused((whole, (_pixels(4, size=32), LABELS[:4])))
    assert "test has no labels" in _refused((whole, (images, None)))


def what_is_no_image_of_8_bits_is_refused_with_what_to_do(odd: Odd) -> None:
    images = _pixels()
    for data, says in (
        ((images / 255, LABELS), "images are float64: expected uint8, from 0 to 255: leave out transforms such as ToTensor"),
        ((torch.from_numpy(images).to(torch.bfloat16), LABELS), "images are bfloat16: expected uint8"),
        ((images.astype(np.int64), LABELS), "images are int64"),
        (_Listed([(torch.rand(3, SIZE, SIZE), 0)] * 3), "data, item 0: images are float32: expected uint8"),
        (([*images], LABELS), "got list: numpy.stack makes one of a list"),
        ((np.zeros((4, SIZE, SIZE, 4), np.uint8), LABELS[:4]), "4 x 16 x 16 x 4: expected (N, C, H, W)"),
        ((images[0], [0]), "images of shape 16 x 16 x 3"),
        ((np.zeros((3, 3, 3, 3), np.uint8), [0, 1, 2]), "images of shape 3 x 3 x 3 x 3"),
        ((images[:, :8], LABELS), "images of 16 x 8 pixels of 3 channels: expected squares of at least 8 pixels: crop or resize"),
        ((images[:, :4, :4], LABELS), "expected squares of at least 8 pixels"),
        ((images[:0], []), "images: none"),
        (_Listed([]), "images: none"),
        (
            _Listed([(Image.new("RGB", (16, 16)), 0), (Image.new("RGB", (20, 20)), 0)]),
            "item 1 is 20 x 20 pixels of 3 channels, item 0 is 16 x 16",
        ),
        (_Listed([{"image": 1, "label": 0}]), "item 0 is dict: expected (image, label)"),
        (_Listed([(Image.new("L", (9, 9)), 0, "more")]), "item 0 is (Image, int, str): expected (image, label)"),
        (DataLoader(_Listed([1])), "got DataLoader: give its data set: loader.dataset"),
        ({"images": images}, "got dict"),
        ("photos", "data: expected (images, labels), a data set"),
    ):
        assert says in _refused(data), _refused(data)


def labels_that_are_no_classes_are_refused(odd: Odd) -> None:
    images = _pixels(4)
    for labels, says in (
        ([0, 1, 2], "labels of shape 3: expected one label for each of 4 images"),
        (np.eye(4), "labels of shape 4 x 4"),
        (np.array([0.0, 1, 2, 3]), "labels are float64"),
        (["a", None, "b", "c"], "labels are object; label 1 is None: expected integers or texts"),
        ([0, -1, 1, 1], "label -1: expected classes from 0"),
    ):
        assert says in _refused((images, labels))


def values_of_other_libraries_are_taken_as_they_are(odd: Odd) -> None:
    from omegaconf import OmegaConf

    for key, value, expected in (
        ("crop_scale", (0.2, 1), [0.2, 1]),
        ("crop_scale", np.array([0.25, 1.0]), [0.25, 1.0]),
        ("view_sizes", range(16, 32, 8), [16, 24]),
        ("view_sizes", torch.tensor([16, 20]), [16, 20]),
        ("view_sizes", OmegaConf.create([16, 20]), [16, 20]),
        ("epochs", np.int64(3), 3),
        ("epochs", torch.tensor(3), 3),
        ("temperature", np.float32(0.5), 0.5),
        ("weight_decay", 1e-7, 1e-7),
        ("nesterov", np.bool_(False), False),
        ("train_size", None, None),
        ("probes", "knn, lightly", "knn, lightly"),
        ("data_dir", Path("a, b='c'"), "a, b='c'"),
        ("data_dir", "null", "null"),
        ("data_dir", "'quoted'", "'quoted'"),
        ("data_dir", b"caf\xc3\xa9", "café"),
    ):
        assert config.load("pretrain", [config.word(key, value)])[key] == expected, key
    for value in ({"a": 1}, object(), {1, 2}, lambda: 1):
        with pytest.raises(ValueError, match="seed: expected None, a number, a text, a path or a list of them"):
            config.word("seed", value)
    with pytest.raises(ValueError, match=r"seed=\[0,1\]: seed expects an integer"):
        twoviews.pretrain("cifar_thin", seed=(0, 1))


def a_run_on_own_data_stops_resumes_and_is_evaluated_with_the_same_data_only(odd: Odd) -> None:
    images, seen = _pixels(), []

    def on_step(step: int, latest: dict[str, Any]) -> bool:
        seen.append(step)
        return step == 2

    def run(action: Callable[[], Any]) -> Any:
        return odd.said(action)[0]

    data = (images, [f"class {label}" for label in LABELS])
    path = run(lambda: twoviews.pretrain("cifar_thin", data=data, name="my photos", on_step=on_step, runs_dir=odd.runs, **SMALL))
    assert seen == [1, 2]
    assert not (path / runs.SUMMARY).exists(), "it was stopped"
    assert path.name.startswith("cifar_thin-own_data-thin16-")
    for words in (["pretrain", f"resume={path}"], ["pretrain", f"resume={path}", "dataset=cifar10"]):
        code, _, err = odd.said(lambda words=words: main(words))
        assert (code, err.count("\n")) == (2, 1)
    with pytest.raises(ValueError, match="the images of this run were given in Python, with data=: give them again"):
        run(lambda: twoviews.pretrain(resume=path))
    with pytest.raises(ValueError, match=r"the data differ from the run's.* or in Python with data="):
        run(lambda: twoviews.pretrain(resume=path, data=(255 - images, data[1])))
    assert run(lambda: twoviews.pretrain(resume=path, data=data, name="my photos")) == path
    assert runs.read_json(path, runs.SUMMARY)["classes"] == [f"class {i}" for i in range(4)]
    assert runs.read_json(path, runs.SUMMARY)["dataset"].startswith("my photos")
    machine = {key: SMALL[key] for key in ("threads", "compile", "precision")}
    with pytest.raises(ValueError, match="given in Python"):
        run(lambda: twoviews.evaluate(path, **machine))
    rows = run(lambda: twoviews.evaluate(path, data=data, probes="knn_euclidean", **machine))
    assert {row["of"] for row in rows} >= {"raw_pixels", "trained"}
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


def data_in_memory_and_keys_for_files_exclude_each_other(odd: Odd) -> None:
    for key, value in (("dataset", "cifar10"), ("data_dir", odd.data), ("image_size", 32), ("classes", "a.txt"), ("background", "black")):
        with pytest.raises(ValueError, match=f"{key}=.*: data= takes the place of a data set in files"):
            twoviews.pretrain("cifar_thin", data=(_pixels(), LABELS), **{key: value})
    with pytest.raises(ValueError, match="name='': expected a text"):
        twoviews.pretrain("cifar_thin", data=(_pixels(), LABELS), name="")
    with pytest.raises(ValueError, match="dataset expects one of"):
        config.load("pretrain", [f"dataset={inputs.OWN_DATA}"])


def images_without_labels_and_arrays_that_cannot_be_written_train(odd: Odd) -> None:
    images = _pixels()
    images.setflags(write=False)
    path, out, _ = odd.said(lambda: twoviews.pretrain("cifar_thin", data=images, runs_dir=odd.runs, **SMALL))
    assert (path / runs.BACKBONE).is_file()
    assert "nan" not in out
    assert re.search(r"own data", out)
