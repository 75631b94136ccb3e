"""Folders that nobody thought of: what is read equals what is printed, or the folder is refused in one line."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from twoviews.data import dataset, folder
from twoviews.images.layout import FLAT
from twoviews.images.names import SPLIT_NAMES, is_ignored

SIZE = 8
NAMES = ("cat", "Cat", "dog", "ä", "a\u0308", "bus ", ".hidden", "__MACOSX", "images", os.fsdecode(b"\xff"), "new\nline")
SPLITS = tuple(name for names in SPLIT_NAMES.values() for name in names)
MODES = ("RGB", "L", "P", "RGBA", "1", "CMYK")
COUNTS = st.sampled_from((0, 1, 12, 21, 21, 23))  # images of a folder: 20 are the least that train
split_names = st.builds(lambda name, change: change(name), st.sampled_from(SPLITS), st.sampled_from((str, str.upper, str.title)))
part_names = st.one_of(st.sampled_from(NAMES), split_names)
paths = st.one_of(
    st.just(""),
    part_names,
    st.builds("{}/{}".format, split_names, st.sampled_from(NAMES)),
    st.builds("{}/{}".format, part_names, part_names),
    st.builds("{}/{}/{}".format, part_names, st.sampled_from(NAMES), part_names),
)


def with_splits(train: str, test: str, classes: list[str], counts: list[int]) -> dict[str, int]:
    """Return a tree of two splits with the same classes."""
    return {f"{split}/{name}": count for split in (train, test) for name, count in zip(classes, counts, strict=False)}


usual = st.builds(  # random names are rarely splits with classes
    with_splits,
    st.sampled_from(("train", "Training", "TRAIN")),
    st.sampled_from(("test", "Testing", "val", "dev", "unlabelled")),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    st.lists(COUNTS, min_size=3, max_size=3),
)
random_tree = st.dictionaries(paths, COUNTS, min_size=1, max_size=4)
trees = st.one_of(random_tree, usual, st.builds(lambda a, b: {**a, **b}, usual, random_tree))
layouts = st.sampled_from(("auto", "auto", "auto", "classes", "splits"))


def write(root: Path, tree: dict[str, int], mode: str, stray: str) -> dict[bytes, str]:
    """Write images of one value each, with an own value for each file; return the path of each file by its pixels."""
    written: dict[bytes, str] = {}
    for name, count in tree.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            number = len(written) + 1
            pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
            bits = np.array([number >> bit & 1 for bit in range(16)], np.uint8).reshape(4, 4) * 255
            pixels[:4, :4] = bits[:, :, None]
            image = Image.fromarray(pixels).convert(mode, dither=Image.Dither.NONE)
            path = root / name / f"{i}{'.tif' if mode == 'CMYK' else '.png'}"
            image.save(path)
            written[image.convert("RGB").tobytes()] = str(path.relative_to(root))
        if stray:
            (root / name / stray).write_text("not an image")
    return written


def label_of(path: str) -> set[str]:
    """Return every part of a path as a class name could be written."""
    parts = [unicodedata.normalize("NFC", part) for part in path.split("/")[:-1]]
    return {part.encode("unicode_escape").decode() if not part.isprintable() else part for part in parts} | {FLAT}


def check(data: dataset.Dataset, written: dict[bytes, str]) -> None:
    """Compare the images of a data set with the files, and with the numbers that are printed."""
    text = "\n".join(data.description)
    seen: list[str] = []
    for images, labels in ((data.images, data.labels), (data.test_images, data.test_labels)):
        for image, label in zip(images, labels.tolist(), strict=True):
            path = written[image.numpy().transpose(1, 2, 0).tobytes()]
            assert data.classes[label] in label_of(path)
            seen.append(path)
    unlabelled = [written[image.numpy().transpose(1, 2, 0).tobytes()] for image in data.unlabelled_images]
    assert len(set(seen + unlabelled)) == len(seen) + len(unlabelled), "a file is read twice"
    assert not any(is_ignored(part) for path in seen + unlabelled for part in path.split("/"))
    for name, count in (("train", len(data.labels)), ("test", len(data.test_labels)), ("unlabelled", len(unlabelled))):
        printed = re.findall(rf"^  {name} +([\d,]+) images", text, flags=re.M)
        assert [int(number) for number in printed] == [count] * (count > 0)
    not_used = [int(n) for line in data.description if line.startswith("  not used:") for n in re.findall(r"\((\d+) images?\)", line)]
    visible = [path for path in written.values() if not any(is_ignored(part) for part in path.split("/"))]
    assert len(seen) + len(unlabelled) + sum(not_used) == len(visible), "an image is neither read nor mentioned"
    assert len(data.classes) == len(set(data.classes)) <= len(visible)
    assert len(data.classes) == 1 or f"{len(data.classes)} classes of " in text


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees, mode=st.sampled_from(MODES), stray=st.sampled_from(("", "notes.txt", "Thumbs.db")), layout=layouts)
def test_what_is_read_is_what_is_printed_or_the_folder_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, int], mode: str, stray: str, layout: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzz" / hashlib.sha256(os.fsencode(repr((tree, mode, stray)))).hexdigest()[:16]
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    written = write(root, tree, mode, stray)
    try:
        data = dataset.load("folder", str(root), options=folder.Options(image_size=SIZE, layout=layout))
    except ValueError as error:
        event("refused")
        text = str(error)
        assert text.isprintable()
        assert ": " in text
    else:
        event("read")
        check(data, written)
    finally:
        shutil.rmtree(root)
