"""One fault, and whether it can be planted: its text stands once in the code as it is, and its tests exist."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Mutant:
    """A fault that one of some tests must catch.

    Args:
        name: of the fault.
        file: in the package.
        old: text that occurs once in the file.
        new: replaces `old`.
        tests: words: a file under `tests/` if it takes a few seconds, or a test by its name alone, so that it may move to another
            file; `file::name` where two tests have one name.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str

    def plant(self, package: Path) -> None:
        """Replace the text in a copy of the package."""
        path = package / self.file
        source = path.read_text(encoding="utf-8")
        path.unlink()  # a hard link: the original must not change
        path.write_text(source.replace(self.old, self.new), encoding="utf-8")


@cache
def files_by_test() -> dict[str, list[str]]:
    """Return the files that define each test, by its name; a file under `tests/` is its own name."""
    tests = ROOT / "tests"
    out: dict[str, list[str]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        file = str(path.relative_to(tests))
        out[file] = [file]
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.M):
            out.setdefault(name, []).append(file)
            out[f"{file}::{name}"] = [file]
    return out


def node_ids(mutant: Mutant) -> list[str]:
    """Return the tests of a mutant as arguments of pytest."""
    words = mutant.tests.split()
    files = [files_by_test()[word.partition("[")[0]][0] for word in words]
    return [f"tests/{word}" if ".py" in word else f"tests/{file}::{word}" for file, word in zip(files, words, strict=True)]


def problems(mutants: Sequence[Mutant]) -> list[str]:
    """Return why some mutants cannot be planted."""
    out = [f"{name}: {count} mutants have this name" for name, count in Counter(one.name for one in mutants).items() if count > 1]
    for one in mutants:
        path = ROOT / "twoviews" / one.file
        source = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (count := source.count(one.old)) != 1:
            out.append(f"{one.name}: its text occurs {count} times in {one.file}, expected once")
        elif one.new == one.old:
            out.append(f"{one.name}: changes nothing")
        elif path.suffix == ".py":
            try:
                ast.parse(source.replace(one.old, one.new))
            except SyntaxError as error:
                out.append(f"{one.name}: is not Python ({error})")
        for word in one.tests.split() or ["no test"]:
            found = files_by_test().get(word.partition("[")[0], [])
            if len(found) != 1:
                out.append(f"{one.name}: {word} is defined {len(found)} times in tests/, expected once")
    return out
