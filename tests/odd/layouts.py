"""Folders as they lie on people's disks: their layout is recognised and printed, or refused with what to type."""

from __future__ import annotations

import errno
import os
import shutil
import unicodedata
from pathlib import Path
from unittest.mock import patch

from PIL import Image

from odd.odd import SIZE, Odd
from twoviews.images import pixels


def _printed(odd: Odd, *words: str) -> str:
    """Return what `twoviews data` prints, which must succeed."""
    code, out, err = odd.run("data", *words)
    assert code == 0, err
    return out


def _classes(out: str) -> list[str]:
    """Return the rows of the table that `twoviews data` prints, with single blanks."""
    table = out.split("\n\n")[1].splitlines()
    return [" ".join(line.split()) for line in table[1:]]


# ---- what is ignored ----


def hidden_folders_are_no_classes(odd: Odd) -> None:
    odd.images("bus", "car", ".ipynb_checkpoints", "bus/.thumbnails")
    out = _printed(odd)
    assert _classes(out) == ["bus 11 1", "car 11 1"]
    assert "photos: class folders" in out
    assert "not used: 2 hidden folders" in out


def folders_and_files_of_operating_systems_are_ignored_whatever_their_case(odd: Odd) -> None:
    odd.images("bus", "car", "__MACOSX", "__macosx/bus", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__")
    for name in ("Thumbs.db", "DESKTOP.INI", ".DS_Store", "._0-000.png"):
        (odd.data / "bus" / name).write_text("not an image")
    out = _printed(odd)
    assert _classes(out) == ["bus 11 1", "car 11 1"]
    assert "7 hidden folders; 4 hidden files" in out


def empty_class_folders_are_named(odd: Odd) -> None:
    odd.images("bus", "car")
    (odd.data / "ship/deep").mkdir(parents=True)
    (odd.data / "train").mkdir()
    out = _printed(odd)
    assert _classes(out) == ["bus 11 1", "car 11 1"]
    assert "2 empty folders (ship, train)" in out


def other_files_are_counted_by_ending(odd: Odd) -> None:
    odd.images("bus", "car")
    for name in ("labels.csv", "bus/a.txt", "bus/b.TXT", "car/README"):
        (odd.data / name).write_text("not an image")
    (odd.data / "paper.pdf").write_bytes(b"%PDF-1.7 not an image")
    out = _printed(odd)
    assert _classes(out) == ["bus 11 1", "car 11 1"]
    assert "4 other files (.txt, .csv, no ending)" in out
    assert "1 .pdf file: needs converting" in out


def photographs_that_need_another_package_are_bad_files(odd: Odd) -> None:
    odd.images("bus", "car")
    (odd.data / "bus/IMG_1.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    assert "bus/IMG_1.heic: needs the package pillow-heif: pip install pillow-heif" in odd.refused("data")
    assert "left out: 1 of 25 files cannot be read as images: bus/IMG_1.heic (needs the package" in _printed(odd, "on_bad=skip")


def a_folder_without_images_is_refused_with_what_it_contains(odd: Odd) -> None:
    odd.images(".hidden")
    (odd.data / "notes.txt").write_text("not an image")
    err = odd.refused("data")
    assert "photos: contains no images: expected at least 20; it contains 1 hidden folder; 1 other file (.txt)" in err


def too_few_images_are_refused_with_what_was_not_used(odd: Odd) -> None:
    odd.images("train/bus", "val/bus", "test/bus", "other")
    expected = "photos: contains 12 training images: expected at least 20 (not used: other/ (12 images); val/ (12 images))"
    assert expected in odd.refused("data")


# ---- names of splits ----


def spellings_of_splits_are_recognised_whatever_their_case(odd: Odd) -> None:
    odd.images("Train/bus", "Train/car", "TESTING/bus", "TESTING/car")
    out = _printed(odd)
    assert "photos: Train/ with class folders, TESTING/" in out
    assert _classes(out) == ["bus 12 12", "car 12 12"]
    assert "made:" not in out


def val_is_the_test_split_where_there_is_no_test(odd: Odd) -> None:
    odd.images("training/bus", "training/car", "Valid/bus", "Valid/car")
    out = _printed(odd)
    assert "training/ with class folders, Valid/ as the test split" in out
    assert _classes(out) == ["bus 12 12", "car 12 12"]


def val_beside_test_is_mentioned(odd: Odd) -> None:
    odd.images("train/bus", "train/car", "test/bus", "test/car", "val/bus", "extra")
    out = _printed(odd)
    assert _classes(out) == ["bus 12 12", "car 12 12"]
    assert "not used: extra/ (12 images); val/ (12 images)" in out


def two_spellings_of_one_split_are_refused(odd: Odd) -> None:
    odd.images("train/bus", "Training/bus", "test/bus")
    assert "photos: Training/ and train/ are two folders for the split train: keep one" in odd.refused("data")


def a_class_called_train_is_refused_with_both_readings(odd: Odd) -> None:
    odd.images("train", "bus", "car", each=20)
    err = odd.refused("pretrain")
    assert "train/ beside bus/, car/ may be a class (type layout=classes) or a split (type layout=splits: only train/ is read)" in err
    assert _classes(_printed(odd, "layout=classes")) == ["bus 18 2", "car 18 2", "train 18 2"]
    out = _printed(odd, "layout=splits")
    assert "not used: bus/ (20 images); car/ (20 images)" in out
    assert _classes(out) == ["images 18 2"]


def a_class_called_test_is_refused_with_both_readings(odd: Odd) -> None:
    odd.images("Test", "bus", "car")
    err = odd.refused("data")
    assert "Test/ beside bus/, car/ may be a class (type layout=classes) or a split (move bus/, car/ into train/)" in err
    assert _classes(_printed(odd, "layout=classes")) == ["Test 11 1", "bus 11 1", "car 11 1"]
    assert "layout=splits: " in odd.refused("data", "layout=splits")


def a_folder_called_test_without_train_is_refused(odd: Odd) -> None:
    odd.images("test/bus", "test/car")
    err = odd.refused("data")
    assert f"test/ without train/ may be a class (type layout=classes) or a split (add train/, or type data_dir={odd.data}/test/" in err
    assert _classes(_printed(odd, f"data_dir={odd.data}/test/")) == ["bus 11 1", "car 11 1"]


def a_split_beside_images_is_refused(odd: Odd) -> None:
    odd.images("train", ".", each=20)
    err = odd.refused("data")
    assert "train/ beside 20 images may be a split (type layout=splits: only train/ is read)" in err
    assert "not used: images beside train/ (20 images)" in _printed(odd, "layout=splits")


def train_alone_is_a_split(odd: Odd) -> None:
    odd.images("train/bus", "train/car")
    out = _printed(odd)
    assert "photos: train/ with class folders\n" in out
    assert _classes(out) == ["bus 11 1", "car 11 1"]
    assert "made: test is a tenth of the images" in out


# ---- images without labels ----


def a_flat_test_beside_classes_is_unlabelled(odd: Odd) -> None:
    odd.images("train/bus", "train/car")
    odd.images("test", each=7, seed=1)
    path, printed = odd.trained()
    for out in (_printed(odd), printed):
        assert "photos: train/ with class folders, test/ without labels" in out
        assert "7 images: they are trained on, without labels; methods that use labels leave them out" in out
        assert "made: test is a tenth of the images" in out
    assert "7 unlabelled images" in printed
    assert path.is_dir()


def unlabelled_images_train_but_not_with_a_method_that_needs_labels(odd: Odd) -> None:
    odd.images("train/bus", "train/car")
    odd.images("unlabeled/a", "unlabeled/b", each=4, seed=1)
    assert "photos: train/ with class folders, unlabeled/ without labels" in _printed(odd)
    words = ("max_steps=1", "probes=knn", "batch_size=30")
    assert odd.run("pretrain", *words)[0] == 0  # 22 images of the classes and 8 others
    code, _, err = odd.run("pretrain", "recipe=supervised", *words)
    assert code == 2
    assert "has 22 images in train+val" in err


def an_archive_in_a_folder_of_its_name_is_read(odd: Odd) -> None:
    odd.images("train/train/bus", "train/train/car")
    odd.images("test/test", each=5, seed=1)
    out = _printed(odd)
    assert "photos: train/train/ with class folders, test/test/ without labels" in out
    assert _classes(out) == ["bus 11 1", "car 11 1"]


def a_test_split_in_one_folder_that_is_no_class_is_unlabelled(odd: Odd) -> None:
    odd.images("train/bus", "train/car", "test/pictures")
    assert "test/ without labels" in _printed(odd)


def classes_in_test_alone_are_refused(odd: Odd) -> None:
    odd.images("train", "test/bus", "test/car", each=20)
    assert "test/ contains class folders, but train/ does not" in odd.refused("data")


# ---- classes ----


def classes_that_train_lacks_are_refused(odd: Odd) -> None:
    odd.images("train/bus", "train/car", "test/Bus", "test/ship", "test/car")
    err = odd.refused("data")
    assert "the test split contains classes that train lacks: Bus (train has bus), ship" in err
    (odd.root / "names.txt").write_text("car\n")
    assert "contains 12 training images" in odd.refused("data", f"classes={odd.root / 'names.txt'}")


def classes_that_test_lacks_are_listed(odd: Odd) -> None:
    odd.images("train/a", "train/b", "train/c", "test/b")
    out = _printed(odd)
    assert "test lacks 2 classes: a, c" in out
    assert "36 images, 3 classes of 12" in out
    assert "12 images, 1 of 3 classes of 12" in out


def splits_inside_of_classes_are_refused(odd: Odd) -> None:
    odd.images("cat/train", "cat/test", "dog/train", "dog/test")
    assert "cat/, dog/ contain splits of their own: expected train/<class>/" in odd.refused("data")
    assert _classes(_printed(odd, "layout=classes")) == ["cat 22 2", "dog 22 2"]


def an_archive_that_was_unpacked_into_a_folder_is_refused(odd: Odd) -> None:
    odd.images("pets-v2/pets/train/cat", "pets-v2/pets/test/cat", each=20)
    err = odd.refused("data")
    assert f"contains only pets-v2/pets/ with test/, train/: type data_dir={odd.data}/pets-v2/pets" in err
    assert _classes(_printed(odd, f"data_dir={odd.data}/pets-v2/pets")) == ["cat 20 20"]
    assert _classes(_printed(odd, "layout=classes")) == ["pets-v2 36 4"]


def images_beside_class_folders_are_refused(odd: Odd) -> None:
    odd.images("bus", "car", ".")
    assert "0-000.png and 11 more are outside the class folders: move all images into class folders, or none" in odd.refused("data")


def a_file_of_classes_gives_names_and_order(odd: Odd) -> None:
    odd.images("bus", "car", "ship", "é")
    (odd.root / "names.txt").write_bytes("\ufeffship\n\n  bus \r\ne\u0301\n".encode())
    out = _printed(odd, f"classes={odd.root / 'names.txt'}")
    assert _classes(out) == ["ship 11 1", "bus 11 1", "é 11 1"]
    assert "1 class that the file of classes does not name (car: 12 images)" in out


def a_file_of_classes_that_does_not_fit_is_refused(odd: Odd) -> None:
    odd.images("bus", "café")
    file = odd.root / "names.txt"
    for content, expected in (
        ("caf\xe9\n".encode("latin-1"), "names.txt: byte 4 is not UTF-8"),
        (b"\xff\xfeb\0u\0s\0", "names.txt: byte 1 is not UTF-8"),
        (b"bus\nbus\n", "names.txt: names bus twice"),
        (b"\n \n", "names.txt: empty"),
        (b"bus\ncafe\n", "has no class cafe: did you mean café?"),
    ):
        file.write_bytes(content)
        assert expected in odd.refused("data", f"classes={file}")
    assert "nowhere.txt: cannot be read (No such file or directory)" in odd.refused("data", "classes=nowhere.txt")


# ---- names ----


def one_name_in_two_unicode_forms_is_refused(odd: Odd) -> None:
    odd.images(*(unicodedata.normalize(form, "café") for form in ("NFC", "NFD")))
    assert "two folders are called café, written with different characters" in odd.refused("data")


def names_that_differ_in_case_or_blanks_are_mentioned(odd: Odd) -> None:
    odd.images("Cat", "cat ", "dog")
    out = _printed(odd)
    assert "nearly equal names of classes: 'Cat', 'cat '" in out
    assert len(_classes(out)) == 3


def names_that_cannot_be_printed_are_escaped(odd: Odd) -> None:
    names = [os.fsdecode(b"caf\xe9"), "two\nlines", "red\x1b[31m", "turned\u202egnp"]
    odd.images(*names)
    (odd.data / names[1] / "bad\rname.png").write_text("not an image")
    assert "two\\nlines/bad\\rname.png" in odd.refused("data")
    out = _printed(odd, "on_bad=skip")
    assert [row.rsplit(" ", 2)[0] for row in _classes(out)] == ["caf\\udce9", "red\\x1b[31m", "turned\\u202egnp", "two\\nlines"]


def long_names_are_shortened_where_they_are_printed(odd: Odd) -> None:
    odd.images("a" * 200, "b" * 200)
    out = _printed(odd)
    assert _classes(out) == [f"{letter * 42}...{letter * 15} 11 1" for letter in "ab"]


# ---- links and permissions ----


def a_folder_is_not_read_twice_through_a_link(odd: Odd) -> None:
    odd.images("bus", "car")
    (odd.data / "autobus").symlink_to("bus")
    (odd.data / "car/round").symlink_to(odd.data)
    (odd.data / "dead").symlink_to("nowhere")
    (odd.data / "itself").symlink_to("itself")
    shutil.copytree(odd.data / "bus", odd.root / "elsewhere")
    (odd.data / "ship").symlink_to(odd.root / "elsewhere")
    out = _printed(odd)
    assert _classes(out) == ["bus 11 1", "car 11 1", "ship 11 1"]
    assert "2 links to folders that are read already (autobus, car/round); 2 other files (no ending)" in out


def a_folder_that_cannot_be_listed_is_named(odd: Odd) -> None:
    odd.images("bus", "car")
    _printed(odd)
    real = os.scandir

    def scandir(path: str | Path) -> object:  # the user root could read the folder, so the error is simulated
        if str(path).endswith("/car"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    with patch.object(os, "scandir", scandir):
        err = odd.refused("data")
    assert f"{odd.data}/car: cannot be read (Permission denied): make it readable (chmod u+rx)" in err


def a_data_dir_that_is_no_folder_is_refused(odd: Odd) -> None:
    odd.images("bus", "car")
    shutil.make_archive(str(odd.root / "photos"), "zip", odd.data)
    assert "photos.zip, which is a file: unpack an archive first" in odd.refused("data", f"data_dir={odd.root}/photos.zip")
    assert "nowhere: No such file or directory" in odd.refused("data", f"data_dir={odd.root}/nowhere")
    assert "expected data_dir=<folder of images>, got none" in odd.refused("data", "data_dir=null")


# ---- bad and repeated images ----


def skipped_files_are_printed_again_from_the_cache(odd: Odd) -> None:
    odd.images("bus", "car")
    (odd.data / "bus/bad.png").write_text("not an image")
    first = _printed(odd, "on_bad=skip")
    assert "left out: 1 of 25 files cannot be read as images: bus/bad.png (not an image" in first
    with patch.object(pixels, "decode", side_effect=AssertionError("decoded again")):
        assert _printed(odd, "on_bad=skip") == first
        assert "bus/bad.png" in odd.refused("data")


def a_class_of_bad_files_alone_is_left_out(odd: Odd) -> None:
    odd.images("bus", "car")
    (odd.data / "ship").mkdir()
    (odd.data / "ship/bad.jpg").write_bytes(b"")
    out = _printed(odd, "on_bad=skip")
    assert _classes(out) == ["bus 11 1", "car 11 1"]
    assert "1 class without a training image that can be read (ship)" in out


def equal_images_in_train_and_test_are_listed(odd: Odd) -> None:
    odd.images("train/bus", "train/car", "test/bus", "test/car")
    shutil.copy(odd.data / "train/bus/0-003.png", odd.data / "test/bus/copy.png")
    Image.open(odd.data / "train/car/0-001.png").save(odd.data / "test/car/other.bmp")
    out = _printed(odd)
    copies = "test/bus/copy.png = train/bus/0-003.png, test/car/other.bmp = train/car/0-001.png"
    assert f"test images that are trained on, too: 2 ({copies})" in out


def equal_images_of_two_classes_are_listed(odd: Odd) -> None:
    odd.images("train/bus", "train/car", "test/bus")
    shutil.copy(odd.data / "train/bus/0-003.png", odd.data / "train/car/copy.png")
    assert "training images equal to one of another class: 1 (train/car/copy.png = train/bus/0-003.png)" in _printed(odd)


def nearly_equal_images_are_listed_on_request(odd: Odd) -> None:
    odd.images("train/bus", "train/car", "test/bus", "test/car")
    with Image.open(odd.data / "train/bus/0-005.png") as image:
        image.resize((SIZE * 2, SIZE * 2), Image.Resampling.NEAREST).save(odd.data / "test/bus/larger.jpg", quality=90)
    assert "larger.jpg" not in _printed(odd)
    assert "one that is trained on (correlation above 0.98): 1 (test/bus/larger.jpg = train/bus/0-005.png)" in _printed(
        odd, "duplicates=true"
    )


def images_of_one_colour_are_counted(odd: Odd) -> None:
    odd.images("bus", "car")
    for name in ("one", "two"):
        Image.new("RGB", (SIZE, SIZE), "red").save(odd.data / f"bus/{name}.png")
    assert "one colour everywhere: 2 images (bus/one.png, bus/two.png)" in _printed(odd)


def a_file_that_is_no_contact_sheet_is_not_overwritten(odd: Odd) -> None:
    odd.images("bus", "car")
    sheet, mine = odd.root / "images.png", odd.data / "bus/0-000.png"
    assert f"{sheet}: 8 images of each of 2 classes" in _printed(odd)
    with Image.open(sheet) as drawn:
        assert drawn.size[0] > 8 * 64
    assert str(sheet) in _printed(odd), "an older sheet of ours is replaced"
    assert "exists and is not a contact sheet of twoviews data" in odd.refused("data", f"to={mine}")
    assert "expected a file that ends in .png" in odd.refused("data", f"to={odd.root}/sheet.jpg")
    assert "there is no folder" in odd.refused("data", f"to={odd.root}/nowhere/images.png")
