"""Recognise how a folder of images is laid out, from names alone; refuse it where two readings are possible."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from twoviews.images.class_list import Classes, choose
from twoviews.images.names import SPLIT_NAMES, class_name, listed, plural, shown, split_of
from twoviews.images.scan import Folder, Ignored

FLAT = "images"  # the one class of images without class folders


@dataclass(frozen=True)
class Layout:
    """Which files are read, and with which classes.

    Args:
        form: what was recognised, in words.
        train, test: images of each class; `test` may be empty.
        labelled: whether the classes are folders; otherwise all images are of the class `FLAT`.
        unlabelled: images without labels, which only train.
        unused: phrases for what is not read.
        notes: lines about names that may be a mistake.
        levels: folders in which an empty folder is mentioned.
    """

    form: str
    train: Classes
    test: Classes = field(default_factory=dict)
    labelled: bool = True
    unlabelled: tuple[Path, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    levels: tuple[Folder, ...] = ()


def recognise(tree: Folder, ignored: Ignored, *, layout: str = "auto", names: Sequence[str] | None = None) -> Layout:
    """Return the layout of a folder.

    Args:
        tree, ignored: from `scan`.
        layout: `auto`; `classes`: every folder is a class; or `splits`: only `train/`, `test/` and their like are read.
        names: the classes to read, in the order of their labels (`read_names`), or None for all, sorted by name.

    Raises:
        ValueError: if the folder has two readings or none, or its splits or classes do not fit together.
    """
    where = shown(tree.path)
    if not tree.count:
        seen = f"; it contains {'; '.join(ignored.phrases())}" if ignored.phrases() else ""
        raise ValueError(f"{where}: contains no images: expected at least 20{seen}")
    read = _from_splits(tree, strict=layout == "auto") if _has_splits(tree, layout) else _from_classes(tree, layout)
    unused = [*read.unused]
    if names is not None:
        if not read.labelled:
            raise ValueError(f"classes=: {where} contains no class folders: leave classes out")
        train, test, left_out = choose(read.train, read.test, names, where)
        read = replace(read, train=train, test=test)
        unused += left_out
    _check_test(read.train, read.test, where)
    empty = [str(folder.path.relative_to(tree.path)) for level in read.levels for folder in level.empty]
    unused += [f"{plural(len(empty), 'empty folder')} ({listed(empty)})"] * bool(empty)
    return replace(read, unused=(*unused, *ignored.phrases()), notes=(*read.notes, *_alike(read.train)))


# ---- every folder is a class ----


def _from_classes(tree: Folder, layout: str) -> Layout:
    if layout == "auto":
        _refuse_wrapped(tree, "type data_dir={path}, or layout=classes to read {name}/ as one class")
        _refuse_class_first(tree)
    classes = _classes(tree)
    if classes is None and layout == "classes":
        raise ValueError(f"layout=classes: {shown(tree.path)} contains no class folders: leave layout out")
    form = "images without class folders" if classes is None else "class folders"
    return Layout(form, classes or {FLAT: tree.all_images}, labelled=classes is not None, levels=(tree,))


def _refuse_wrapped(tree: Folder, advice: str) -> None:
    """Refuse a folder whose only folder contains the class or split folders, as after unpacking an archive into a folder."""
    inner = tree
    while not inner.images and len(inner.filled) == 1:
        inner = inner.filled[0]
    if inner is not tree and not inner.images:
        inside, way = listed(f"{folder.name}/" for folder in inner.filled), inner.path.relative_to(tree.path)
        what_to_do = advice.format(path=shown(inner.path), name=shown(tree.filled[0].name))
        raise ValueError(f"{shown(tree.path)}: contains only {shown(way)}/ with {inside}: {what_to_do}")


def _refuse_class_first(tree: Folder) -> None:
    """Refuse class folders that contain `train/` and `test/`."""
    inside = {folder.name: {split_of(inner.name) for inner in folder.filled} for folder in tree.filled}
    both = [name for name, splits in inside.items() if "train" in splits and splits & {"val", "test"}]
    if both or (len(inside) > 1 and all("train" in splits for splits in inside.values())):
        raise ValueError(
            f"{shown(tree.path)}: {listed(f'{name}/' for name in both or inside)} contain splits of their own: expected train/<class>/ "
            "and test/<class>/: move the folders, or type layout=classes to read all images of a class as training images"
        )


def _classes(folder: Folder) -> Classes | None:
    """Return the images of each class, sorted by class; None if there are no class folders."""
    if not folder.filled:
        return None
    where = shown(folder.path)
    if loose := folder.images:
        raise ValueError(
            f"{where}: {shown(loose[0].name)} and {len(loose) - 1} more are outside the class folders: "
            "move all images into class folders, or none"
        )
    found: dict[str, Folder] = {}
    for inner in folder.filled:
        name = class_name(inner.name)
        if name in found:
            raise ValueError(f"{where}: two folders are called {shown(name)}, written with different characters: merge or rename one")
        found[name] = inner
    return {name: found[name].all_images for name in sorted(found)}


def _alike(classes: Classes) -> list[str]:
    """Return a line for classes whose names differ only in case or in blanks at their ends."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(name.strip().casefold(), []).append(f"'{name}'")
    return [f"nearly equal names of classes: {listed(group)}" for group in groups.values() if len(group) > 1]


# ---- train/, test/ and their like ----


def _has_splits(tree: Folder, layout: str) -> bool:
    """Return whether the folders are splits, not classes; refuse them where both are possible."""
    where, splits = shown(tree.path), _split_folders(tree)
    if layout == "classes" or not (splits or layout == "splits"):
        return False
    for split, folders in splits.items():
        if len(folders) > 1:
            both = " and ".join(f"{shown(folder.name)}/" for folder in folders)
            raise ValueError(f"{where}: {both} are two folders for the split {split}: keep one, or type layout=classes if they are classes")
    if layout == "splits":
        if "train" not in splits:
            raise ValueError(f"layout=splits: {where} contains no train/ with images: rename the folder of the training images to train")
        return True
    others = [f"{folder.name}/" for folder in tree.filled if split_of(folder.name) is None]
    others += [plural(len(tree.images), "image")] * bool(tree.images)
    if "train" in splits and (len(splits) > 1 or not others):
        return True
    raise ValueError(f"{where}: {_two_readings(tree, splits, others)}")


def _two_readings(tree: Folder, splits: dict[str, list[Folder]], others: list[str]) -> str:
    """Return why a folder is ambiguous, and the key that decides."""
    found = [f"{shown(folder.name)}/" for folders in splits.values() for folder in folders]
    if "train" in splits:
        as_split = "type layout=splits: only train/ is read"
    elif others:
        as_split = f"move {listed(others)} into train/"
    else:
        alone = f", or type data_dir={shown(tree.path)}/{found[0]} to train on it" if len(found) == 1 else ""
        as_split = f"add train/{alone}"
    beside = f"beside {listed(others)}" if others else "without train/"
    noun = ("a class", "a split") if len(found) == 1 else ("classes", "splits")
    as_class = f"{noun[0]} (type layout=classes) or " if not tree.images else ""  # no class folder can be beside images
    return f"{' and '.join(found)} {beside} may be {as_class}{noun[1]} ({as_split})"


def _split_folders(tree: Folder) -> dict[str, list[Folder]]:
    """Return the folders with images that are named like a split, by split."""
    found: dict[str, list[Folder]] = {}
    for split in SPLIT_NAMES:
        if folders := [folder for folder in tree.filled if split_of(folder.name) == split]:
            found[split] = folders
    return found


def _from_splits(tree: Folder, *, strict: bool) -> Layout:
    """Return what is read from `train/` and the other splits. `strict`: refuse splits whose only folder contains the classes."""
    folders = {split: _own(found[0], split) for split, found in _split_folders(tree).items()}
    for split, folder in folders.items():
        if strict and split != "unlabelled":
            _refuse_wrapped(folder, "move its folders up, or type layout=splits to read {name}/ as one class")
    names = {split: f"{shown(folder.path.relative_to(tree.path))}/" for split, folder in folders.items()}
    train = _classes(folders["train"])
    others = {f"{folder.name}/": folder.count for folder in tree.filled if split_of(folder.name) is None}
    others |= {f"images beside {names['train']}": len(tree.images)} if tree.images else {}
    form, levels = [f"{names['train']} with{'' if train else 'out'} class folders"], [tree, folders["train"]]
    test: Classes = {}
    unlabelled = {names["unlabelled"]: folders["unlabelled"]} if "unlabelled" in folders else {}
    for split in [split for split in ("test", "val") if split in folders]:
        classes = None if test else _test_classes(folders[split], train, names[split], names["train"])
        if test:
            others[names[split]] = folders[split].count
        elif classes is None:
            unlabelled[names[split]] = folders[split]
        else:
            test, levels = classes, [*levels, folders[split]]
            form.append(names[split] + (" as the test split" if split == "val" else ""))
    images = tuple(path for folder in unlabelled.values() for path in folder.all_images)
    if unlabelled:
        form.append(f"{listed(unlabelled)} without labels")
    unused = tuple(f"{shown(name)} ({plural(count, 'image')})" for name, count in others.items())
    everything = train or {FLAT: folders["train"].all_images}
    return Layout(", ".join(form), everything, test, train is not None, images, unused, levels=tuple(levels))


def _own(folder: Folder, split: str) -> Folder:
    """Return the folder, or the only one in it if that has the split's name too, as after unpacking `train.zip` into `train/`."""
    while not folder.images and len(folder.filled) == 1 and split_of(folder.filled[0].name) == split:
        folder = folder.filled[0]
    return folder


def _test_classes(folder: Folder, train: Classes | None, name: str, train_name: str) -> Classes | None:
    """Return the images of each class of a test split, or None if they have no labels although the training images have."""
    classes = _classes(folder)
    if train is not None:
        only = next(iter(classes)) if classes is not None and len(classes) == 1 else None
        return None if classes is None or (only is not None and not _nearest(only, train)) else classes
    if classes is not None and len(classes) > 1:
        raise ValueError(
            f"{shown(folder.path.parent)}: {name} contains class folders, but {train_name} does not: move the training images "
            f"into class folders, or the images of {name} out of theirs"
        )
    return {FLAT: folder.all_images}


def _nearest(name: str, classes: Classes) -> str | None:
    """Return the class with this name, whatever its case and outer blanks."""
    return next((other for other in classes if other.strip().casefold() == name.strip().casefold()), None)


def _check_test(train: Classes, test: Classes, where: str) -> None:
    """Refuse a test split with classes that have no training images."""
    unknown = [f"{name} (train has {near})" if (near := _nearest(name, train)) else name for name in test if name not in train]
    if unknown:
        raise ValueError(
            f"{where}: the test split contains classes that train lacks: {listed(unknown, 20)}: rename or move these folders, "
            "or list the classes to read in a file and type classes=<file>"
        )
