"""List a folder of images: which files may be images, and what is ignored. No pixels are decoded."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from twoviews.images import formats
from twoviews.images.names import is_ignored, listed, plural, shown

# Endings of files that are not opened to look for an image in them: there may be one such file for each image.
TEXTS = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".py"}
# Files that are rarely the images themselves: they are listed. Photographs that cannot be read are bad files.
DOCUMENTS = {formats.ARRAY, formats.SVG, formats.PAGES, formats.POSTSCRIPT, formats.METAFILE, formats.HDF, formats.LAYERED}


@dataclass(eq=False)
class Folder:
    """A folder and everything below it that is not ignored.

    Args:
        path: its path.
        images: the files in it that may be images.
        folders: the folders in it, sorted by name.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    def all_folders(self) -> Iterator["Folder"]:
        """Yield the folder and all below it. Folders can be nested deeper than Python's functions."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += folder.folders

    @cached_property
    def count(self) -> int:
        """The number of images in it and below. Read it only after `scan` has returned."""
        return sum(len(folder.images) for folder in self.all_folders())

    @property
    def all_images(self) -> list[Path]:
        """The images in it and below, sorted."""
        return sorted((path for folder in self.all_folders() for path in folder.images), key=lambda path: path.parts)

    @property
    def filled(self) -> list["Folder"]:
        """The folders in it that contain images."""
        return [folder for folder in self.folders if folder.count]

    @property
    def empty(self) -> list["Folder"]:
        """The folders in it without any image."""
        return [folder for folder in self.folders if not folder.count]


@dataclass
class Ignored:
    """What `scan` left out.

    Args:
        folders, files: number of hidden or system folders and files.
        links: links to folders that are read under another path.
        endings: number of files that are no images, by ending.
        documents: number of files that cannot be read, by ending and by what would read them.
    """

    folders: int = 0
    files: int = 0
    links: list[Path] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    documents: Counter[tuple[str, str]] = field(default_factory=Counter)

    def phrases(self) -> list[str]:
        """Return one phrase for each kind, such as `2 hidden folders`."""
        found = [plural(count, noun) for count, noun in ((self.folders, "hidden folder"), (self.files, "hidden file")) if count]
        if self.links:
            found.append(f"{plural(len(self.links), 'link')} to folders that are read already ({listed(map(str, self.links))})")
        if self.endings:
            endings = listed([ending or "no ending" for ending, _ in self.endings.most_common()])
            found.append(f"{plural(self.endings.total(), 'other file')} ({endings})")
        found += [f"{plural(count, f'{shown(ending)} file')}: {needs}" for (ending, needs), count in self.documents.items()]
        return found


def scan(root: Path) -> tuple[Folder, Ignored]:
    """Return the tree below a folder. Links to folders are followed, but no folder is read twice.

    Raises:
        ValueError: if a folder cannot be listed.
    """
    top, ignored, seen = Folder(root.parent), Ignored(), set[str]()
    waiting = deque([(top, root)])
    while waiting:
        parent, path = waiting.popleft()
        real = os.path.realpath(path)
        if real in seen:
            ignored.links.append(path.relative_to(root))
            continue
        seen.add(real)
        folder = Folder(path)
        parent.folders.append(folder)
        for inner, is_link in _list(folder, ignored):
            # links come last, so that a folder is read under its own path if it has one here
            (waiting.append if is_link else waiting.appendleft)((folder, inner))
    for folder in top.all_folders():
        folder.folders.sort(key=lambda inner: inner.name)
    return top.folders[0], ignored


def _list(folder: Folder, ignored: Ignored) -> list[tuple[Path, bool]]:
    """Add the images of a folder to it, count what is ignored, and return the folders in it: path, and whether it is a link."""
    found: list[tuple[Path, bool]] = []
    try:
        with os.scandir(folder.path) as entries:
            listing = sorted((entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries)
    except OSError as error:
        advice = "make it readable (chmod u+rx), or move it elsewhere"
        raise ValueError(f"{shown(folder.path)}: cannot be read ({error.strerror}): {advice}") from None
    for name, is_folder, is_link in listing:
        path = folder.path / name
        if is_ignored(name):
            ignored.folders += is_folder
            ignored.files += not is_folder
        elif is_folder:
            found.append((path, is_link))
        else:
            _add_file(folder, path, ignored)
    return found


def _add_file(folder: Folder, path: Path, ignored: Ignored) -> None:
    ending = path.suffix.lower()
    kind = "other" if ending in TEXTS else formats.kind(path)
    if kind == "other":
        ignored.endings[ending] += 1
    elif kind in DOCUMENTS:
        ignored.documents[ending, kind] += 1
    else:
        folder.images.append(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
