"""Say what was read: images and classes of each split, and what in them may be a mistake."""

import numpy as np

from twoviews.data.arrays import Arrays
from twoviews.data.duplicates import Pairs, equal_images, equal_of_other_classes
from twoviews.images.layout import FLAT
from twoviews.images.names import listed, plural, span

PAIRS = 3  # pairs of equal images in a line


def describe(arrays: Arrays, made: str, val_rows: np.ndarray) -> tuple[str, ...]:
    """Return the lines that are printed before training: one for a named data set, several for a folder.

    Args:
        arrays: as they are used, with the test split.
        made: how the test split was made, or why there is none; empty: it was read.
        val_rows: rows of the training images that form `val`.
    """
    splits = {"train": arrays.train_labels, "test": arrays.test_labels}
    if not arrays.description:
        counts = ", ".join(f"{name} {plural(len(labels), 'image')}" for name, labels in splits.items() if len(labels))
        return (f"{arrays.title}: {counts}, {plural(len(arrays.classes), 'class')}", *[f"  {made}"] * bool(made))
    heading, *notes = arrays.description
    lines = [f"{name:<10} {_counts(labels, arrays.classes)}" for name, labels in splits.items() if len(labels)]
    if arrays.unlabelled_images is not None:
        number = f"{len(arrays.unlabelled_images):>9,} images"
        lines.append(f"unlabelled {number}: they are trained on, without labels; methods that use labels leave them out")
    lines += [made] * bool(made) + _missing(arrays) + _val(arrays, val_rows) + notes + _equal(arrays)
    return (heading, *(f"  {line}" for line in lines))


def _counts(labels: np.ndarray, classes: tuple[str, ...]) -> str:
    counts = np.bincount(labels, minlength=len(classes))
    present = counts[counts > 0]
    number = f"{len(present)} of {plural(len(classes), 'class')}" if len(present) < len(classes) else plural(len(classes), "class")
    one = "no classes" if classes == (FLAT,) else "one class"
    return f"{len(labels):>9,} images, " + (f"{number} of {span(present.min(), present.max())}" if len(classes) > 1 else one)


def _missing(arrays: Arrays) -> list[str]:
    """Return a line for each split that lacks classes of the other one."""
    has = {"train": np.unique(arrays.train_labels), "test": np.unique(arrays.test_labels)}
    missing = {split: [name for label, name in enumerate(arrays.classes) if label not in labels] for split, labels in has.items()}
    found = [(split, names) for split, names in missing.items() if names and len(has[split])]
    return [f"{split} lacks {plural(len(names), 'class')}: {listed(names)}" for split, names in found]


def _val(arrays: Arrays, rows: np.ndarray) -> list[str]:
    """Return a line if `val` is too small to contain every class."""
    has, present = len(np.unique(arrays.train_labels[rows])), len(np.unique(arrays.train_labels))
    few = f"val, which chooses hyper-parameters and is evaluated with train_on=train, has {plural(len(rows), 'image')}"
    return [f"{few} of {has} of {plural(present, 'class')}"] * (has < present)


def _equal(arrays: Arrays) -> list[str]:
    """Return lines about images with equal pixels."""
    train, trained_on = (arrays.train_names, "train"), [*arrays.train_images]
    if arrays.unlabelled_images is not None:
        trained_on += [*arrays.unlabelled_images]
        train = (train[0] + tuple(f"unlabelled image {row}" for row in range(len(arrays.unlabelled_images))), "train")
    both = equal_images(arrays.test_images, trained_on)
    labels = equal_of_other_classes(arrays.train_images, arrays.train_labels)
    lines = []
    if both:
        lines.append(f"test images that are trained on, too: {len(both)} ({pairs(both, (arrays.test_names, 'test'), train)})")
    if labels:
        lines.append(f"training images equal to one of another class: {len(labels)} ({pairs(labels, train, train)})")
    return lines


def pairs(found: Pairs, first: tuple[tuple[str, ...], str], second: tuple[tuple[str, ...], str]) -> str:
    """Return the first pairs of images by their names.

    Args:
        found: pairs of rows.
        first, second: names of the images, which may be empty, and name of the split.
    """

    def name(row: int, names: tuple[str, ...], split: str) -> str:
        return names[row] if row < len(names) else f"{split} image {row}"

    return listed((f"{name(i, *first)} = {name(j, *second)}" for i, j in found), PAIRS)
