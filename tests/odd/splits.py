"""Test splits that the program makes: every class is in them, or the user is told that there is none."""

from __future__ import annotations

import re

import tiny as small

from odd.odd import Odd


def _printed(odd: Odd, *words: str) -> str:
    code, out, err = odd.run("data", *words)
    assert code == 0, err
    return out


def _test_counts(out: str) -> list[int]:
    """Return the number of test images of each class in the table that `twoviews data` prints."""
    return [int(line.split()[-1]) for line in out.split("\n\n")[1].splitlines()[1:]]


def small_classes_are_all_in_the_test_split(odd: Odd) -> None:
    odd.images(*(f"c{i:02}" for i in range(20)), each=4)
    out = _printed(odd)
    assert _test_counts(out) == [1] * 20
    assert "made: test is at least one image of each class, a tenth of large classes" in out
    path, printed = odd.trained()
    assert "at least one image of each class held out as test" in small.summary(path)["dataset"]
    assert "made: test is at least one image of each class" in printed


def classes_of_very_different_size_are_all_in_the_test_split(odd: Odd) -> None:
    odd.images("many", each=60)
    odd.images("few", each=3, seed=1)
    odd.images("two", each=2, seed=2)
    assert _test_counts(_printed(odd)) == [1, 6, 1]


def a_single_image_of_a_class_stays_in_train(odd: Odd) -> None:
    odd.images("a", "b", each=15)
    odd.images("one", each=1, seed=1)
    out = _printed(odd)
    assert _test_counts(out) == [2, 1, 0]
    assert "test lacks 1 class: one" in out


def classes_of_three_images_have_no_test_split(odd: Odd) -> None:
    odd.images(*(f"c{i}" for i in range(9)), each=3)
    out = _printed(odd)
    assert _test_counts(out) == [0] * 9
    assert "no test split: 3 images in each of 9 classes are too few for one" in out
    assert "evaluation is leave-one-out kNN on the training images" in out


def classes_of_one_image_have_no_test_split(odd: Odd) -> None:
    odd.images(*(f"c{i:02}" for i in range(25)), each=1)
    assert "no test split: 1 image in each of 25 classes" in _printed(odd)


def where_most_classes_have_one_image_there_is_no_test_split(odd: Odd) -> None:
    odd.images("large", each=30)
    odd.images(*(f"c{i}" for i in range(5)), each=1, seed=1)
    out = _printed(odd)
    assert "no test split: 1 to 30 images in each of 6 classes are too few" in out
    assert _test_counts(out) == [0] * 6


def large_classes_give_a_tenth_as_before(odd: Odd) -> None:
    odd.images("a", "b", each=30)
    out = _printed(odd)
    assert _test_counts(out) == [3, 3]
    assert "made: test is a tenth of the images, each class by its share" in out
    path, printed = odd.trained()
    assert re.search("photos, 16 pixels, a tenth held out as test", printed)
    assert small.summary(path)["dataset"] == "photos, 16 pixels, a tenth held out as test"


def images_without_classes_give_a_tenth(odd: Odd) -> None:
    odd.images(".", each=25)
    out = _printed(odd)
    assert _test_counts(out) == [2]
    assert "made: test is a tenth of the images, chosen at random" in out
    assert "23 images, no classes" in out


def a_test_split_of_bad_files_is_made_from_train(odd: Odd) -> None:
    odd.images("train/a", "train/b")
    (odd.data / "test/a").mkdir(parents=True)
    (odd.data / "test/a/bad.png").write_text("not an image")
    out = _printed(odd, "on_bad=skip")
    assert _test_counts(out) == [1, 1]
    assert "made: test is a tenth of the images" in out
    assert "left out: 1 of 25 files" in out


def classes_that_val_lacks_are_mentioned(odd: Odd) -> None:
    odd.images(*(f"train/c{i}" for i in range(6)), *(f"test/c{i}" for i in range(6)), each=4)
    assert "val, which chooses hyper-parameters and is evaluated with train_on=train, has 2 images of 2 of 6 classes" in _printed(odd)
