"""Read folders of images (`dataset=folder`, CIFAR as files): recognise the layout, decode, and say what was read."""

import stat
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from twoviews.data.arrays import Arrays
from twoviews.images.class_list import read_names
from twoviews.images.decoding import DecodedFiles, decode_all, list_bad
from twoviews.images.layout import Layout, recognise
from twoviews.images.names import LISTED, is_ignored, listed, plural, shown
from twoviews.images.pixels import Reading
from twoviews.images.scan import scan

LEAST = 20  # training images
CIFAR_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
LOSSY = {".jpg", ".jpeg"}


@dataclass(frozen=True)
class Options:
    """The keys of `dataset=folder`; config/base.yaml explains them.

    Args:
        image_size: width and height in pixels, >= 8.
        on_bad: `stop` raises an error that lists the files that cannot be read; `skip` leaves them out and records them.
        layout: see `layout.recognise`.
        classes: a file with class names: see `class_list.read_names`.
        background, value_range: see `pixels.Reading`.
    """

    image_size: int | None = None
    on_bad: str = "stop"
    layout: str = "auto"
    classes: str | None = None
    background: str = "white"
    value_range: tuple[float, float] | None = None


def read(data_dir: str | None, options: Options) -> Arrays:
    """Return the images of any folder: `[train/ and test/] [<class>/...] file`.

    Without a test split, the test images are empty. Without class folders, all images have one class. An image becomes RGB
    after its EXIF rotation, and its central square is resized to `image_size` (`pixels.decode`).

    Args:
        data_dir: the folder.
        options: how it is read.

    Raises:
        ValueError: if the folder or the size is missing, the layout is ambiguous, there are too few images, or files are bad.
    """
    root = _root(data_dir)
    if options.image_size is None:
        raise ValueError("dataset=folder: expected image_size=<width and height in pixels>, such as image_size=32")
    tree, ignored = scan(root)
    layout = recognise(tree, ignored, layout=options.layout, names=read_names(options.classes) if options.classes else None)
    files = _Files.of(layout, root)
    if len(files.train) < LEAST:
        unused = f" (not used: {'; '.join(layout.unused)})" if layout.unused else ""
        raise ValueError(f"{shown(root)}: contains {plural(len(files.train), 'training image')}: expected at least {LEAST}{unused}")
    title = shown(root.resolve().name or root)
    decoded = decode_all(files.paths, root, title, Reading(options.image_size, options.background, options.value_range))
    if decoded.bad and options.on_bad == "stop":
        advice = "repair or remove them, or leave them out with on_bad=skip"
        raise ValueError(f"{list_bad(decoded.bad, files.paths, 'images')}: {advice}")
    return _arrays(f"{title}, {options.image_size} pixels", f"{title}: {layout.form}", layout, files.without(decoded.bad), decoded)


def _root(data_dir: str | None) -> Path:
    problem = "none"
    if data_dir:
        try:
            if stat.S_ISDIR(Path(data_dir).stat().st_mode):
                return Path(data_dir)
            problem = f"{shown(data_dir)}, which is a file: unpack an archive first"
        except (OSError, ValueError) as error:
            problem = f"{shown(data_dir)}: {error.strerror if isinstance(error, OSError) else error}"
    raise ValueError(f"dataset=folder: expected data_dir=<folder of images>, got {problem}")


@dataclass(frozen=True)
class _Files:
    """The files of a layout in the order in which they are decoded: those of train, of test, and without labels.

    Args:
        paths: all files.
        names: of the files in messages, relative to the folder.
        train, test: number of the file in `paths`, and its class.
        unlabelled: numbers of the files without labels.
    """

    paths: list[Path]
    names: list[str]
    train: dict[int, str]
    test: dict[int, str]
    unlabelled: list[int]

    @classmethod
    def of(cls, layout: Layout, root: Path) -> "_Files":
        """Return all files of a layout."""
        train, test = ([(name, path) for name, paths in split.items() for path in paths] for split in (layout.train, layout.test))
        classes, paths = [name for name, _ in (*train, *test)], [path for _, path in (*train, *test)]
        paths += layout.unlabelled
        return cls(
            paths=paths,
            names=[shown(path.relative_to(root)) for path in paths],
            train=dict(zip(range(len(train)), classes, strict=False)),
            test={i: classes[i] for i in range(len(train), len(classes))},
            unlabelled=list(range(len(classes), len(paths))),
        )

    def without(self, bad: dict[int, str]) -> "_Files":
        """Return the files without some of them; the others keep their numbers."""
        train, test = ({i: name for i, name in split.items() if i not in bad} for split in (self.train, self.test))
        return replace(self, train=train, test=test, unlabelled=[i for i in self.unlabelled if i not in bad])


def _arrays(title: str, heading: str, layout: Layout, files: _Files, decoded: DecodedFiles) -> Arrays:
    """Return the images with their labels. Classes without a training image are left out.

    Args:
        title, heading: of the data set and of its description.
        layout: of the folder.
        files: the good ones.
        decoded: the images of the good files in their order, and the reasons of the bad ones.
    """
    left = set(files.train.values())
    classes = tuple(name for name in layout.train if name in left)
    unknown = [name for name in layout.train if name in set(files.test.values()) - left]
    if unknown or len(files.train) < LEAST:
        few = f"no training image of {listed(unknown)} is left" if unknown else f"{plural(len(files.train), 'training image')} are left"
        expected = "expected some of every class in test" if unknown else f"expected at least {LEAST}"
        raise ValueError(f"{list_bad(decoded.bad, files.paths, 'images')}: {few}, {expected}: repair or replace files")
    numbers = {name: label for label, name in enumerate(classes)}
    train, test = (np.array([numbers[name] for name in split.values()], np.int64) for split in (files.train, files.test))
    cut, end = len(train), len(train) + len(test)
    images, unlabelled = decoded.images, len(files.unlabelled)
    return Arrays(
        title=title + (f", {plural(unlabelled, 'unlabelled image')}" if unlabelled else ""),
        train_images=images[:cut],
        train_labels=train,
        test_images=images[cut:end],
        test_labels=test,
        classes=classes,
        skipped=tuple(f"{shown(files.paths[i])}: {reason}" for i, reason in decoded.bad.items()),
        unlabelled_images=images[end:] if unlabelled else None,
        description=(heading, *_notes(layout, files, decoded, [name for name in layout.train if name not in left])),
        train_names=tuple(files.names[i] for i in files.train),
        test_names=tuple(files.names[i] for i in files.test),
    )


def _notes(layout: Layout, files: _Files, decoded: DecodedFiles, lost: list[str]) -> list[str]:
    """Return lines about what was left out, and about images that may be a mistake."""

    def such_as(numbers: list[int]) -> str:
        return f"{plural(len(numbers), 'image')} ({listed(files.names[i] for i in numbers)})"

    lines = [f"not used: {'; '.join(layout.unused)}"] * bool(layout.unused) + list(layout.notes)
    if decoded.bad:
        reasons = [f"{files.names[i]} ({reason})" for i, reason in decoded.bad.items()]
        more = f"; and {len(reasons) - LISTED} more, see the run's manifest" if len(reasons) > LISTED else ""
        share = f"{len(reasons)} of {plural(len(files.paths), 'file')}"
        lines.append(f"left out: {share} cannot be read as images: {'; '.join(reasons[:LISTED])}{more}")
    lines += [f"left out: {plural(len(lost), 'class')} without a training image that can be read ({listed(lost)})"] * bool(lost)
    for kind, (count, low, high) in decoded.wide.items():
        lines.append(f"scaled to 8 bits: {plural(count, f'{kind} image')} with values from {low:g} to {high:g}")
    lines += [f"one colour everywhere: {such_as(decoded.one_colour)}"] * bool(decoded.one_colour)
    return lines + [f"{kind}: {such_as(numbers)}" for kind, numbers in decoded.warnings.items()]


def read_tree(root: Path, *, title: str) -> Arrays:
    """Return images of one size from `root/train/<class>/*` and `root/test/<class>/*`, sorted by class.

    Args:
        root: the folder.
        title: of the data set; "(JPEG copy)" is added to it if the files are JPEGs, whose pixels differ.

    Raises:
        ValueError: if the splits have different classes, or files are not images of one size.
    """
    classes, other = (
        sorted(d.name for d in (root / split).iterdir() if d.is_dir() and not is_ignored(d.name)) for split in ("train", "test")
    )
    if not classes or classes != other:
        raise ValueError(f"{root}: train/ and test/ must contain the same class folders, got {classes} and {other}")
    listing = {
        split: [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / split / name).iterdir())
            if path.suffix.lower() in CIFAR_SUFFIXES and not is_ignored(path.name)
        ]
        for split in ("train", "test")
    }
    paths = [path for split in ("train", "test") for path, _ in listing[split]]
    if not listing["train"] or not listing["test"]:
        raise ValueError(f"{root}: no images ({', '.join(CIFAR_SUFFIXES)}) under train/ or test/")
    if any(path.suffix.lower() in LOSSY for path in paths):
        title += " (JPEG copy)"
    decoded = decode_all(paths, root, title, Reading(size=None))
    if decoded.bad:
        raise ValueError(list_bad(decoded.bad, paths, "images of one size"))
    n = len(listing["train"])
    labels = {split: np.array([label for _, label in listing[split]], np.int64) for split in listing}
    return Arrays(title, decoded.images[:n], labels["train"], decoded.images[n:], labels["test"], tuple(classes))
