"""Pages of documentation, for tests: their commands, their links, and the figures that they state.

A block with figures of results follows lines such as `<!-- results: speed.csv what=views way="TwoViews, C++" -->`: a file of results/
and conditions on its columns. Its figures must be in the rows that these lines select (results/README.md explains this to authors).
"""

from __future__ import annotations

import csv
import re
import shlex
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path

from twoviews import config
from twoviews.config import reference, schema

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
Rows = list[dict[str, str]]

PLAIN = r"[-+]?\d+(?:,\d+)*(?:\.\d+)?"
NUMBER = rf"(?<![\w.\-]){PLAIN}"
CHAIN = rf"{NUMBER}(?:(?:\s*%)?(?:\s*(?:±|,|/|to|and|or)\s*|-){PLAIN})*"
UNIT = r"%|points?\b|views/s|min(?:utes?)?\b|hours?\b|ms\b|us\b|s\b|seconds?\b|times\b|x(?!\s*[\w(])|GiB\b|[GT]FLOP/s"
DEFINED = r"%(?:\s*(?:,|and|or)\s*\d+\s*%)*\s+of (?:the |its |their |all )?(?:labels|area|images|pixels)"  # a definition
FIGURE = re.compile(rf"({CHAIN})\s*(?!{DEFINED})({UNIT})|({NUMBER}\s*±\s*[\d.]+)")
CELL = re.compile(rf"(?:{CHAIN}|{NUMBER}/\d+)(?:\s*\([^a-z]*\))?\s*({UNIT})?(?:\s*\*)?")
TEXTS = ("what", "case", "way", "protocol", "fault", "network", "training", "evaluation")  # columns with labels such as `kNN k=10`


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def lines(text: str, program: str) -> list[list[str]]:
    """Return the words of every command line of a program in the bash blocks, without comments, continued lines joined."""
    joined = "\n".join(blocks(text, "bash")).replace("\\\n", " ")
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in joined.splitlines()]
    return [words[1:] for words in found if words and words[0] == program]


def commands(text: str) -> list[list[str]]:
    """Return the words of every command of ours: in bash blocks, and as inline code without placeholders."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    code = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose)]
    inline = [
        shlex.split(words) for words in code if re.match(r"(twoviews|python|make) [\w-]", words) and not re.search(r"<|\.\.\.", words)
    ]
    return inline + [[program, *words] for program in ("twoviews", "python", ".venv/bin/python", "make") for words in lines(text, program)]


def accept(words: list[str]) -> None:
    """Raise ValueError, as the command line does, if `twoviews <words>` would be refused."""
    if not words or words[0] in ("--help", "--version"):
        return
    verb, rest = words[0], words[1:]
    if verb not in config.VERBS:
        raise ValueError(f"{verb}: no such verb")
    if verb == "runs" and rest and rest[0] in schema.RULES["view"].choices:
        rest = [f"view={rest[0]}", *rest[1:]]
    flags = [word for word in rest if word in config.FLAGS]
    config.check(verb, [word for word in rest if word not in flags], sweep="--multirun" in flags)
    if not flags:
        config.load(verb, rest)


def accept_any(words: list[str]) -> None:
    """Raise ValueError if a command of any of our programs would be refused."""
    program, rest = words[0], words[1:]
    if program == "twoviews":
        accept([word for word in rest if not (ROOT / f"examples/recipes/{word.removeprefix('recipe=')}.yaml").is_file()])
    elif program == "make":
        targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
        _check(not {word for word in rest if "=" not in word} - targets, words)
    elif rest[:2] == ["-m", "pytest"]:
        tests = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
        expressions = [after for word, after in pairwise(rest) if word == "-k"]
        for name in " ".join(expressions).split():
            _check(name in ("or", "and", "not") or any(re.search(rf"def test_\w*{name}", text) for text in tests.values()), words)
        for path in (word for word in rest[2:] if word.startswith("tests")):
            file, _, name = path.partition("::")
            _check((ROOT / file).exists() and (not name or f"def {name}(" in tests[ROOT / file]), words)
    elif rest[0] in reference.SCRIPTS:
        config.load(*reference.translate(ROOT / rest[0], rest[1:]))
    elif rest[0].endswith(".py"):
        _check((ROOT / rest[0]).is_file(), words)
        known = (ROOT / rest[0]).read_text() + (ROOT / "benchmarks/measure.py").read_text()
        _check(all(f'"{word}"' in known for word in rest if word.startswith("--")), words)


def _check(right: bool, words: list[str]) -> None:
    if not right:
        raise ValueError(shlex.join(words))


def links(text: str) -> list[str]:
    """Return the targets of a page's links and pictures."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page: its headings as a code host writes them, and explicit ones."""
    found: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for title in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "]", title).lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


@dataclass
class Block:
    """A paragraph, list item, heading, table or fenced block, and the references before it."""

    line: int
    text: str
    references: list[str] = field(default_factory=list)

    def figures(self) -> list[tuple[str, str]]:
        """Return the block's figures as (numbers, unit)."""
        if self.text.startswith("```"):
            return _figures(" ".join(re.findall(r"#.*", self.text)))
        if not self.text.startswith("|"):
            return _figures(self.text)
        found = []
        head, _, *body = (row.strip().strip("|").split("|") for row in self.text.splitlines())
        for row in body:
            for title, cell in zip(head, row, strict=False):
                plain = cell.replace("**", "").strip()
                unit = re.search(r", (%|s|min|points)$", title.strip())
                if whole := CELL.fullmatch(plain):
                    found.append((plain, whole[1] or (unit[1] if unit else "")))
                else:
                    found += _figures(cell)
        return found

    def states_results(self) -> bool:
        """Return whether a reference is needed: a unit, a deviation, or a table's cell with decimals."""
        return any(unit or "±" in text or re.search(r"\d\.\d", text) for text, unit in self.figures())


def _figures(text: str) -> list[tuple[str, str]]:
    text = re.sub(r"`[^`]*`", "", re.sub(r"\]\([^)]*\)", "]", text))
    return [(match[1] or match[3], match[2] or "") for match in FIGURE.finditer(" ".join(text.split()))]


def page_blocks(text: str) -> list[Block]:
    """Return the blocks of a page in their order. References before a list hold for all of its items that have none of their own."""
    found: list[Block] = []
    references: list[str] = []
    of_list: list[str] = []
    open_block, fenced = False, False
    for number, line in enumerate(text.splitlines(), start=1):
        item = re.match(r"\s*(?:[-*]|\d+\.) ", line)
        if reference := re.fullmatch(r"\s*<!-- results: (.*?) -->", line):
            references, open_block = [*references, reference[1]], False
        elif fenced or line.startswith("```"):
            if not fenced:
                found, references = [*found, Block(number, line, references)], []
            else:
                found[-1].text += "\n" + line
            fenced, open_block = fenced != line.startswith("```"), False
        elif not line.strip() or line.startswith("<!--"):
            open_block = False
        elif open_block and not item and not line.startswith("#") and line.startswith("|") == found[-1].text.startswith("|"):
            found[-1].text += "\n" + line
        else:
            of_list = (references or of_list) if item else []
            found, references, open_block = [*found, Block(number, line, of_list if item else references)], [], True
    return found


def select(references: list[str]) -> Rows:
    """Return the rows that references select.

    Raises:
        ValueError: if a file or column does not exist, or a reference selects nothing.
    """
    found: Rows = []
    for reference_text in references:
        name, *conditions = shlex.split(reference_text)
        if not (RESULTS / name).is_file():
            raise ValueError(f"{reference_text}: no such file in results/")
        wanted = dict(condition.split("=", 1) for condition in conditions)
        with open(RESULTS / name, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if wanted.items() <= row.items()]
        if not rows:
            raise ValueError(f"{reference_text}: selects no row")
        found += rows
    return found


def missing(figure: tuple[str, str], rows: Rows) -> list[str]:
    """Return the numbers of a figure that are in no row: rounded to the digits that the page shows, and minutes also as seconds / 60."""
    text, unit = figure
    values = _values(rows)
    if unit.startswith(("min", "hour")):
        seconds = [row.get("training_s") or (row.get("value") if row.get("unit") == "s" else "") for row in rows]
        values |= {float(cell) / (60 if unit.startswith("min") else 3600) for cell in seconds if cell}
    if unit.startswith("point") and len(rows) <= 10:
        values |= {abs(float(a) - float(b)) for a, b in combinations([row.get("mean") or row.get("value") or "nan" for row in rows], 2)}
    labels = " ".join(row.get(column) or "" for row in rows for column in TEXTS) if not unit else ""
    numbers = re.findall(r"\d+(?:,\d+)*(?:\.\d+)?", text)
    if "±" in text and not any(all(_is_among(n, _values([row])) for n in numbers[:2]) for row in rows):
        return numbers  # mean and deviation are of one row
    return [n for n in numbers if not _is_among(n, values) and not re.search(rf"(?<![\d.]){n}(?![\d.])", labels)]


def _values(rows: Rows) -> set[float]:
    return {float(cell) for row in rows for cell in row.values() if re.fullmatch(r"-?\d+(\.\d+)?", cell)}


def _is_among(number: str, values: set[float]) -> bool:
    """Return whether a number of a page is one of the values, rounded to the digits that the page shows."""
    plain = number.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", number) else number
    half = 0.5 * 10 ** -len(plain.partition(".")[2]) + 1e-9
    return any(abs(abs(value) - float(plain)) <= half for value in values)
