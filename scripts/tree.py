"""Write the file tree in docs/architecture.md: every module of the package with the first sentence of its docstring.

    python scripts/tree.py          # write it between the markers in docs/architecture.md
    python scripts/tree.py --print  # print it

A test compares the page with what this script prints, so nobody edits the tree by hand.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "twoviews"
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- tree: python scripts/tree.py -->\n```text\n", "```\n<!-- end of tree -->\n"
WIDTH, COLUMN = 88, 24  # of a line, and where its text starts
LONGEST = 92  # characters of a text, on one line or two

# The order of the data flow; what is not named here follows in alphabetical order.
ORDER = ["cli", "api", "commands", "config", "build", "train", "finish", "evaluation", "inspection", "embedder", "methods", "models"]
ORDER += ["losses", "optim", "views", "data", "images", "probes", "runs", "report", "cpu"]
FIRST = ["pretrain", "base", "load", "schema", "base.yaml", "spec", "arrays", "dataset"]  # in their folders
FIRST += ["scan", "layout", "embed", "knn", "folder", "build"]
OTHER = {
    "config/base.yaml": "Every key, explained once",
    "config/recipes": "One file per recipe: what defines it, with its source",
    "assets": "The bundled images and pretrained models, with licence",
    "report/templates": "The pages that the report fills in",
}
ROOT_FILES = {
    "simclr.py simclr_lin.py moco.py simclr_config.yml moco_config.yml": "The commands of p3i0t/SimCLR-CIFAR10",
    "simclr-cifar10.py": "The command of dkobak/simclr-cifar10",
}


def summary(path: Path) -> str:
    """Return what a file or folder is, in one line: the first sentence of its docstring or comment, shortened if it is long."""
    name = str(path.relative_to(PACKAGE))
    if name in OTHER:
        return OTHER[name]
    source = path / "__init__.py" if path.is_dir() else path
    text = source.read_text(encoding="utf-8")
    text = text.partition("//")[2] if source.suffix == ".cpp" else ast.get_docstring(ast.parse(text)) or ""
    text = re.sub(r" \((?=[^)]*(\d{4}|http))[^)]*\)?", "", text.strip().splitlines()[0])  # without sources and links
    start = "START HERE. " if text.startswith("START HERE. ") else ""
    text = start + text.removeprefix(start).partition(". ")[0].rstrip(".")
    for sign in ("; ", ": ", ", "):  # shorten
        while len(text) > LONGEST and sign in text and not text.rpartition(sign)[0].endswith("`"):
            text = text.rpartition(sign)[0]
    return text


def members(folder: Path) -> list[Path]:
    """Return the modules, packages and other listed files of a folder, in reading order."""
    order = ORDER if folder == PACKAGE else FIRST

    def shown(path: Path) -> bool:
        if path.is_dir():
            return (path / "__init__.py").is_file() or str(path.relative_to(PACKAGE)) in OTHER
        return not path.name.startswith("__") and (path.suffix in (".py", ".cpp") or str(path.relative_to(PACKAGE)) in OTHER)

    def key(path: Path) -> tuple[int, str]:
        found = [i for i, name in enumerate(order) if name in (path.name, path.stem)]
        return (found[-1] if found else len(order) + path.is_dir(), path.name)

    return sorted((path for path in folder.iterdir() if shown(path)), key=key)


def lines(folder: Path, indent: str) -> Iterator[str]:
    """Yield the lines of a folder's members."""
    for path in members(folder):
        name = f"{indent}{path.name}{'/' * path.is_dir()}"
        first, *rest = textwrap.wrap(summary(path), WIDTH - COLUMN)
        yield f"{name:<{COLUMN}}{first}"
        yield from (" " * COLUMN + line for line in rest)
        if path.is_dir():
            yield from lines(path, indent + "  ")


def tree() -> str:
    """Return the tree."""
    top = [f"{names}\n    {text}" for names, text in ROOT_FILES.items()]
    return "\n".join([*top, "twoviews/", *lines(PACKAGE, "  ")]) + "\n"


def main() -> int:
    """Write or print the tree."""
    if "--print" in sys.argv[1:]:
        print(tree(), end="")
        return 0
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"{PAGE}: the markers {BEGIN.splitlines()[0]} and {END.splitlines()[1]} are missing", file=sys.stderr)
        return 1
    PAGE.write_text(before + BEGIN + tree() + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
