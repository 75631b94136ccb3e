"""Names of folders, files and splits, and the file of classes: what `odd/layouts.py` does not show."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from image_files import write_tree

from twoviews.images import names
from twoviews.images.layout import Layout, recognise
from twoviews.images.scan import scan


def recognised(root: Path, layout: str = "auto") -> Layout:
    return recognise(*scan(root), layout=layout)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "train") for name in ("train", "Train", "TRAINING", " train ")),
        *((name, "val") for name in ("val", "Valid", "validation", "DEV")),
        *((name, "test") for name in ("test", "Testing")),
        *((name, "unlabelled") for name in ("unlabeled", "Unlabelled")),
        *((name, None) for name in ("trains", "trainset", "test1", "tests", "value", "")),
    ],
)
def test_a_folder_name_stands_for_a_split_whatever_its_case(name: str, split: str | None) -> None:
    assert names.split_of(name) == split


@pytest.mark.parametrize("name", [".git", ".DS_Store", "._a.png", "Thumbs.db", "thumbs.DB", "__MACOSX", "@eadir", "LOST+FOUND"])
def test_hidden_and_system_names_are_ignored(name: str) -> None:
    assert names.is_ignored(name)


@pytest.mark.parametrize("name", ["MACOSX", "a.b", "_private", "thumbs", "photo.db", "-", "~"])
def test_other_names_are_not_ignored(name: str) -> None:
    assert not names.is_ignored(name)


def test_shown_names_are_printable_on_one_line_and_short() -> None:
    text = names.shown("a" * 300 + "/\udce9\n\u2028\u202e\x1b[0m/é 狗\u200d.png")
    assert text == "a" * 42 + "..." + "a" * 15 + "/\\udce9\\n\\u2028\\u202e\\x1b[0m/é 狗\u200d.png"
    text.encode()
    assert names.shown(Path("plain/name.png")) == "plain/name.png"


def test_class_names_are_compared_in_one_unicode_form() -> None:
    both = {names.class_name(unicodedata.normalize(form, "Müller é")) for form in ("NFC", "NFD")}
    assert both == {"Müller é"}


def test_counts_and_lists_are_words() -> None:
    assert [names.plural(n, "image") for n in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert names.plural(3, "class") == "3 classes"
    assert names.span(1, 1, "image") == "1 image"
    assert names.span(1, 1200, "image") == "1 to 1,200 images"
    assert names.span(3, 3) == "3"
    assert names.listed("abcdefg") == "a, b, c, d, e and 2 more"


def test_images_are_sorted_by_class_and_then_by_path(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", "b", "a/2", "a/1", each=2)
    layout = recognised(root)
    assert list(layout.train) == ["a", "b"]
    assert [str(path.relative_to(root)) for path in layout.train["a"]] == ["a/1/000.png", "a/1/001.png", "a/2/000.png", "a/2/001.png"]


def test_one_folder_with_images_is_one_class(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", "a", "a/more", each=2)
    assert list(recognised(root).train) == ["a"]
    assert recognised(root).labelled
    assert not recognised(write_tree(tmp_path / "flat", ".")).labelled


@pytest.mark.parametrize("layout", ["auto", "splits"])
def test_a_wrapped_split_is_refused_unless_the_layout_is_given(tmp_path: Path, layout: str) -> None:
    root = write_tree(tmp_path / "tree", "train/all/a", "train/all/b", "test/a", each=2)
    if layout == "auto":
        with pytest.raises(ValueError, match=r"tree/train: contains only all/ with a/, b/: move its folders up, or type layout=splits"):
            recognised(root)
    else:
        with pytest.raises(ValueError, match="classes that train lacks: a"):
            recognised(write_tree(root, "test/b", each=2), layout=layout)


def test_layout_classes_needs_class_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layout=classes: .*flat contains no class folders: leave layout out"):
        recognised(write_tree(tmp_path / "flat", "."), layout="classes")
