"""README.md, RESULTS.md and docs/: every figure is in results/, every command is accepted, every link leads somewhere."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pages
import pytest
from pages import RESULTS, ROOT, Block, accept_any, anchors, commands, links, missing, page_blocks, select

PAGES = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs").rglob("[!_]*.md"))]
TABLES = sorted(RESULTS.glob("*.csv"))
OF_RUNS = "recipe,data,split,method,uses_labels,backbone,epochs,batch,protocol,features,of,mean,std,runs,seeds,training_s,views_per_s"
TABLE = "method,recipe,changes,epochs,runs,seeds,knn10,knn10_std,linear,linear_std,rankme,rankme_std,memory_gib,memory_gib_std,computed_s"
TABLE_RUNS = "stage,method,recipe,changes,split,epochs,seed,knn10,linear,rankme,memory_gib,steps,training_s"
ORIGIN = ("commit", "machine", "torch", "command")
HEADERS = {  # of the files of results/, and the columns that no row leaves empty
    f"{OF_RUNS},commit,machine,precision,torch,command": (*OF_RUNS.split(",")[:12], "runs", "seeds", *ORIGIN),
    "what,case,way,value,unit,low,high,machine,commit,torch,command,kind": ("what", "value", "unit", *ORIGIN, "kind"),
    "fault,mean,std,difference,noise,runs,seeds,commit,machine,precision,torch,command": ("fault", "mean", "runs", "seeds", *ORIGIN),
    f"{TABLE},published,commit,machine,precision,torch,command": (*TABLE.split(","), *ORIGIN),
    f"{TABLE_RUNS},commit,machine,precision,torch,command": tuple(column for column in TABLE_RUNS.split(",") if column != "linear")
    + ORIGIN,
    "value,unit,network,training,evaluation,source,kind": ("value", "unit", "network", "training", "evaluation", "source", "kind"),
}
KINDS = {"measured", "computed", "goal", "quoted"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def problems(text: str) -> list[str]:
    """Return what is wrong with the figures of a page."""
    found = []
    for block in page_blocks(text):
        try:
            rows = select(block.references)
        except ValueError as error:
            found.append(f"line {block.line}: {error}")
            continue
        if block.references:
            absent = [figure for figure in block.figures() if missing(figure, rows)]
            found += [f"line {block.line}: not in the referenced rows: {shown(figure)}" for figure in absent]
        elif block.states_results():
            found.append(f"line {block.line}: no `<!-- results: ... -->` line before {', '.join(map(shown, block.figures()))}")
    return found


def shown(figure: tuple[str, str]) -> str:
    text, unit = figure
    return text if text.endswith(unit) else f"{text} {unit}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_figure_of_a_page_is_in_results(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8")) == []


PAGE = """# A page

<!-- results: earlier.csv recipe=cifar_thin commit=8dc32d2 of=trained -->
kNN reaches 66.5 ± 0.2 % in 313 s, that is 5.2 minutes.

<!-- results: earlier.csv data="CIFAR-10 (JPEG copy)" commit=8dc32d2 of=trained protocol="kNN k=10 cosine uniform" -->
| k | kNN, % |
|--:|--:|
| 10 | **66.5 ± 0.2** |

<!-- results: speed.csv what="whole job" case="the whole job" commit=693d1d0 -->
- It is 8 times faster.
- Batch 256, temperature 0.2, 1 % and 10 % of the labels.
"""


def test_figures_that_are_in_results_are_accepted_rounded_and_in_minutes() -> None:
    assert problems(PAGE) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("66.5 ± 0.2 %", "66.6 ± 0.2 %"),
        ("66.5 ± 0.2 %", "66.5 ± 0.3 %"),
        ("**66.5 ± 0.2**", "**67.5 ± 0.2**"),
        ("66.5 ± 0.2 %", "61.9 ± 0.2 %"),
        ("| 10 |", "| 11 |"),
        ("313 s", "312 s"),
        ("5.2 minutes", "5.3 minutes"),
        ("8 times", "9 times"),
        ("8dc32d2 of=trained -->", "8dc32d2 of=trained backbone=thin64 -->"),
        ("commit=8dc32d2 of=trained -->", "-->"),  # of another machine: 312 s is in no row, but 313 s in one
        ("earlier.csv recipe", "no_such.csv recipe"),
    ],
)
def test_a_wrong_figure_is_found(right: str, wrong: str) -> None:
    changed = PAGE.replace(right, wrong, 1)
    assert changed != PAGE
    assert bool(problems(changed)) == (wrong != "-->")


@pytest.mark.parametrize(
    "text",
    [
        "It reaches 66.5 % now.",
        "It reaches\n66.5\n± 0.2 now.",
        "- fine\n- worth 15 points",
        "It runs at 4,790 views/s.",
        "ResNet-18 takes 3 GiB.",
        "It is 2.5 x.",
        "It takes 5 to 10 minutes.",
        "It takes 3.5 ms.",
        "| network | accuracy |\n|:--|--:|\n| thin32 | 66.5 |",
        "| network | text |\n|:--|--:|\n| thin32 | about 8 times |",
        "## 66 % in an hour",
        "```bash\ntwoviews pretrain   # 66.5 %\n```",
    ],
)
def test_an_uncovered_figure_is_found(text: str) -> None:
    assert len(problems(f"# A page\n\nWords.\n\n{text}\n")) == 1


def test_hyper_parameters_and_definitions_are_no_figures() -> None:
    text = "Batch 256 x 2, SGD 0.03 x batch / 256, decay 5e-4, k = 10, grayscale 0.2, 32 x 32, `x=5 %`, 10 % of the labels, ResNet-18."
    table = "| k | epochs |\n|--:|--:|\n| 10 | 100 |"
    assert problems(f"{text}\n\n{table}\n\n```bash\nsleep 5 s\n```\n") == []


def test_a_reference_holds_for_a_list_until_an_item_has_its_own() -> None:
    text = "<!-- results: a.csv -->\n- one\n  more\n- two\n<!-- results: b.csv -->\n<!-- results: c.csv -->\n- three\n\nA paragraph.\n"
    found = [(block.text.split()[-1], block.references) for block in page_blocks(text)]
    assert found == [("more", ["a.csv"]), ("two", ["a.csv"]), ("three", ["b.csv", "c.csv"]), ("paragraph.", [])]


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_a_table_of_results_has_every_origin(path: Path) -> None:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    header = path.read_text(encoding="utf-8").splitlines()[0]
    assert header in HEADERS
    assert rows
    assert not [row["command"] for row in rows if "=/" in row.get("command", "")], "a path of somebody's machine"
    for row in rows:
        assert None not in row, row
        assert [column for column in HEADERS[header] if not row[column]] == [], row
        assert row.get("kind", "measured") in KINDS
        for column in ("mean", "std", "value", "low", "high", "difference", "noise", "training_s", "views_per_s"):
            assert re.fullmatch(r"(-?\d+(\.\d+)?)?", row.get(column, "")), row
        if "std" in row:
            assert bool(row["std"]) == (row["runs"] != "1"), row
            assert len(row["seeds"].split("; ")) <= int(row["runs"]), row
    assert len({tuple(row.values()) for row in rows}) == len(rows), "a row is there twice"


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_every_command_of_a_table_of_results_is_accepted(path: Path) -> None:
    with open(path, newline="", encoding="utf-8") as file:
        typed = {command for row in csv.DictReader(file) for command in row.get("command", "").split("; ")}
    refused = []
    for words in (shlex.split(command) for command in typed if command.startswith(("twoviews ", "python ", "make "))):
        try:
            accept_any(words)
        except ValueError as error:
            refused.append(str(error))
    assert refused == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_command_of_a_page_is_accepted(path: Path) -> None:
    refused, text = [], path.read_text(encoding="utf-8")
    for words in commands(text):
        if words[0] == "python" and f"`{words[-1]}` and type\n`python" in text.replace(" and type `python", " and type\n`python"):
            continue  # a file that the page tells to write
        try:
            accept_any(words)
        except ValueError as error:
            refused.append(str(error))
    assert refused == []


@pytest.mark.parametrize(
    "command",
    [
        *("twoviews pretrain recipe=nosuch", "twoviews pretrain epoch=1", "make nosuch", "python benchmarks/nosuch.py"),
        *("python benchmarks/job.py --nosuch", "python -m pytest tests/test_nosuch.py", "python -m pytest tests/test_results.py::nosuch"),
        "python -m pytest -k nosuch_either",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    (in_block,), (in_cell,) = commands(f"```bash\n{command}  # a comment\n```"), commands(f"| `{command}` |\n\n`twoviews pretrain ...`")
    assert in_block == in_cell == shlex.split(command)
    with pytest.raises(ValueError, match=r"\w"):
        accept_any(in_block)


def broken_links(path: Path, text: str) -> list[str]:
    found = []
    for link in links(text):
        file, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = path.parent / file if file else path
        page = text if target == path else target.read_text(encoding="utf-8") if target.suffix == ".md" and target.is_file() else ""
        if not (target == path or target.exists()) or (anchor and anchor not in anchors(page)):
            found.append(link)
    return found


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("[!_]*.md")), RESULTS / "README.md"], ids=name)
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    assert broken_links(path, path.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found() -> None:
    text = "# A page\n\n## p3i0t's *faults*, one at a time\n\n[a](#p3i0ts-faults-one-at-a-time) [b](docs/protocols.md#nearest-neighbours)\n"
    path = ROOT / "page.md"
    assert broken_links(path, text) == []
    wrong = text + '[a](#faults) [b](docs/nosuch.md) [c](docs/protocols.md#nosuch) <img src="docs/nosuch.png">\n'
    assert broken_links(path, wrong) == ["#faults", "docs/nosuch.md", "docs/protocols.md#nosuch", "docs/nosuch.png"]


def test_differences_between_few_rows_are_found_as_points() -> None:
    rows = [{"mean": "81.0", "std": ""}, {"mean": "50.7", "std": ""}]
    assert missing(("30", "points"), rows) == missing(("30.3", "points"), rows) == []
    assert missing(("31", "points"), rows) == ["31"]
    assert missing(("30.3", "%"), rows) == ["30.3"]
    assert missing(("30.3", "points"), rows * 6) == ["30.3"]


def test_blocks_know_where_they_begin() -> None:
    assert [(block.line, type(block) is Block) for block in page_blocks("# A\n\nb\n\n\nc\nc\n")] == [(1, True), (3, True), (6, True)]
    assert pages.RESULTS.is_dir()
