"""`classes=<file>`: which class folders are read, and in which order their labels are."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from twoviews.images.names import class_name, listed, plural, shown

Classes = dict[str, list[Path]]  # images of each class, in the order of the labels


def read_names(file: str) -> list[str]:
    """Return the class names of a text file: one per line, in the order of their labels.

    Args:
        file: UTF-8, with or without a byte order mark; empty lines are ignored.

    Raises:
        ValueError: if it cannot be read, is not UTF-8, names nothing, or names a class twice.
    """
    where, expected = f"classes={shown(file)}", "a text file in UTF-8 with one class name per line"
    try:
        lines = Path(file).read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{where}: cannot be read ({error.strerror}): expected {expected}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start + 1} is not UTF-8: expected {expected}: save it as UTF-8") from None
    names = [line for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{where}: empty: expected {expected}")
    plain = [class_name(name.strip()) for name in names]
    if twice := [name for name in plain if plain.count(name) > 1]:
        raise ValueError(f"{where}: names {shown(twice[0])} twice: name each class once")
    return names


def choose(train: Classes, test: Classes, names: Sequence[str], where: str) -> tuple[Classes, Classes, list[str]]:
    """Return the classes that `names` lists, in its order, and a phrase for those that it leaves out.

    Args:
        train, test: images by class; a class of the list must be in `train`.
        names: from `read_names`.
        where: the folder, for messages.

    Raises:
        ValueError: if a name has no folder; the nearest one is shown.
    """
    wanted: list[str] = []
    for line in names:
        name = next((name for name in (class_name(line), class_name(line.strip())) if name in train), None)
        if name is None:
            near = difflib.get_close_matches(class_name(line.strip()), train, 1, cutoff=0)
            raise ValueError(f"classes=: {where} has no class {shown(line.strip())}: did you mean {shown(near[0])}?")
        wanted.append(name)
    left_out = [name for name in {**train, **test} if name not in wanted]
    count = sum(len(split.get(name, ())) for split in (train, test) for name in left_out)
    phrase = f"{plural(len(left_out), 'class')} that the file of classes does not name ({listed(left_out)}: {plural(count, 'image')})"
    chosen = [{name: split[name] for name in wanted if name in split} for split in (train, test)]
    return chosen[0], chosen[1], [phrase] * bool(left_out)
