"""`twoviews report` and the page that it writes: one file, complete, without requests, names escaped."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny as small
from command_helpers import refused

from twoviews import build, config, runs
from twoviews.cli import main
from twoviews.data import dataset
from twoviews.report import html, plots


class Links(HTMLParser):
    """Collect everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [(name, value or "") for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "poster")]


@pytest.fixture(scope="module")
def rewritten(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run whose metrics end in the middle of a line, and whose report was written again."""
    path = Path(shutil.copytree(finished, tmp_path_factory.mktemp("report") / finished.name))
    (path / "report.html").unlink()
    (path / runs.METRICS).write_bytes((path / runs.METRICS).read_bytes()[:-20])
    assert main(["report", "run=latest", f"runs_dir={path.parent}", "threads=1", "device=cpu"]) == 0
    return path


SECTIONS = ("accuracy", "features", "map", "neighbours", "mistakes", "confusion", "training", "views", "filters", "duplicates", "repeat")


def test_the_report_is_one_file_with_every_section(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert [value for name, value in links.found if not value.startswith(("data:image/", "#"))] == []  # no external request
    assert not re.search(r"@import|url\(|https?://(?!arxiv)", pictures_out(page))
    assert not {"link", "iframe"} & set(links.tags)
    for section in SECTIONS:
        assert f'<h2 id="{section}">' in page, section
        assert f'<a href="#{section}">' in page, section
    assert json.loads((finished / "manifest.json").read_text())["command"].split()[0] in page
    for row in small.summary(finished)["evaluations"]:
        assert f"{100 * row['accuracy']:.1f}" in page
    assert len(page.encode()) < 5_000_000
    assert "nan" not in pictures_out(page).lower()


def test_every_picture_has_a_text_every_chart_its_numbers_and_every_table_headers(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    for tag in re.findall(r"<img [^>]*>", pictures_out(page)):
        assert re.search(r'alt="[^"]{5,}"', tag), tag
    charts = re.findall(r'<svg class="chart"[^>]*aria-label="([^"]*)"', page)
    assert {chart.partition(" over")[0] for chart in charts} == {"loss", "learning rate", "views/s, mean so far"}
    assert all(re.search(r"from [\d.ek-]+ to [\d.ek-]+", chart) for chart in charts)
    for table in re.findall(r"<table.*?</table>", page, flags=re.S):
        assert 'scope="col"' in table
        assert 'scope="row"' in table


def pictures_out(page: str) -> str:
    """Return a page without the bytes of its pictures."""
    return re.sub(r"data:image/[^\"]*", "data:", page)


def test_x2_names_in_the_report_are_escaped(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = build.build(config.load("pretrain", ["threads=1", "compile=false", "dataset=fashion_mini"]))
    path = runs.create(tmp_path, "a", "title: <script>alert(1)</script>\n")
    with runs.RunFolder(path) as folder:
        for name in (runs.SUMMARY, runs.MANIFEST):
            text = json.dumps(runs.read_json(finished, name))
            content = json.loads(text.replace("Fashion-MNIST", "<img src=x onerror=alert(1)>"))
            if "classes" in content:
                content["classes"][:3] = ['"><img src=x>', "<script>alert(2)</script>", "../../x"]
            folder.write(name, content)
        folder.log(runs.read_metrics(finished))
        html.write(folder, parts.views, replace(parts.dataset, classes=hostile(parts.dataset.classes)))
    page = (path / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 1
    assert "alert(2)</script" not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def hostile(classes: tuple[str, ...]) -> tuple[str, ...]:
    return ('"><img src=x>', "<script>alert(2)</script>", "</script><script>alert(3)//", *classes[3:])


def test_the_command_writes_the_report_again(finished: Path, rewritten: Path) -> None:
    first, again = ((path / "report.html").read_text(encoding="utf-8") for path in (finished, rewritten))
    charts = re.compile(r'<figure>\s*<svg class="chart".*?</figure>', flags=re.S)  # a row of the metrics is missing
    assert charts.sub("", pictures_out(again)).split() == charts.sub("", pictures_out(first)).split()


def test_c7_a_report_is_written_from_what_a_kill_left_of_the_metrics(finished: Path, rewritten: Path) -> None:
    assert len(runs.read_metrics(rewritten)) == len(runs.read_metrics(finished)) - 1
    assert (rewritten / "report.html").is_file()


def test_a_picture_of_neighbours_is_written_beside_the_report(finished: Path) -> None:
    assert (finished / "neighbours.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_of_an_earlier_version_gets_its_missing_sections(rewritten: Path) -> None:
    summary = small.summary(rewritten)
    old = {key: value for key, value in summary.items() if key not in ("neighbours", "map", "mistakes", "duplicates", "sha256")}
    with runs.RunFolder(rewritten) as folder:
        folder.write(runs.SUMMARY, old)
    assert main(["report", "run=latest", f"runs_dir={rewritten.parent}", "threads=1", "device=cpu"]) == 0
    assert "Nearest neighbours" in (rewritten / "report.html").read_text(encoding="utf-8")
    again = small.summary(rewritten)
    assert again["neighbours"] == summary["neighbours"]
    assert again["diagnostics"] == summary["diagnostics"]
    assert again["evaluations"] == summary["evaluations"]


def test_a_report_is_written_from_a_summary_that_lacks_the_pictures(rewritten: Path, data: Path) -> None:
    summary = small.summary(rewritten)
    parts = build.build(config.load("pretrain", small.words(data, rewritten.parent)))
    with runs.RunFolder(rewritten) as folder:
        folder.write(runs.SUMMARY, {key: value for key, value in summary.items() if key not in ("neighbours", "map", "mistakes", "sha256")})
        html.write(folder, parts.views, parts.dataset)
        assert "Nearest neighbours" not in (rewritten / "report.html").read_text(encoding="utf-8")
        folder.write(runs.SUMMARY, {key: value for key, value in summary.items() if key != "sha256"})


# ---- several runs ----


@pytest.fixture
def two(finished: Path, tmp_path: Path) -> Path:
    """A folder of two runs: one finished, and a copy of it with another temperature and no probes while it trained."""
    for name in ("a", "b"):
        shutil.copytree(finished, tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_a_comparison_shows_what_differs(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = two / "b" / runs.CONFIG
    lines = path.read_text().splitlines()
    changed = [re.sub(r"^temperature: .*", "temperature: 0.77", line) for line in lines if not line.startswith("#")]
    path.write_text("\n".join(changed) + "\n")
    for name in (runs.MANIFEST, runs.SUMMARY):
        content = json.loads((two / "b" / name).read_text())
        content.pop("sha256")
        (two / "b" / name).write_text(json.dumps(content))
    (two / "b" / runs.METRICS).unlink()
    page = two / "page.html"
    assert main(["report", "run=a,b", f"runs_dir={two}", f"to={page}"]) == 0
    assert f"comparison of 2 runs: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert re.findall(r'<th scope="row">temperature</th><td>[\d.]+</td><td>0.77</td>', text)
    assert '<th scope="row">epochs</th>' not in text
    accuracy = next(row for row in small.summary(two / "a")["evaluations"] if row["of"] == "trained")["accuracy"]
    assert text.count(f"<td>{100 * accuracy:.1f}</td>") >= 2
    assert main(["report", "run=a,b", f"runs_dir={two}", f"to={page}"]) == 0, "its own page is written again"


def test_a_comparison_that_cannot_be_written_is_refused(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["run=a,b", f"to={two / 'a' / 'report.html'}"], "is no page of twoviews report run=a,b"),
        (["run=a,b", f"to={two / 'page.txt'}"], "ends in .html"),
        (["run=a,b", f"to={two / 'no' / 'page.html'}"], "create it first"),
        (["run=a,c"], "run=c: no such run folder"),
        (["run=a", f"to={two / 'page.html'}"], "the report of one run is in its folder"),
    ):
        assert says in refused(capsys, "report", f"runs_dir={two}", *words)


def test_a_neighbour_of_another_class_is_framed_and_counted() -> None:
    data = dataset.load("fashion_mini", None)
    of = {kind: int(np.flatnonzero(data.labels == kind)[0]) for kind in range(2)}
    query = int(np.flatnonzero(data.test_labels == 0)[0])
    found = {"split": "test", "queries": [query], "raw_pixels": [[of[1], of[1]]], "trained": [[of[0], of[1]]]}
    (axes,) = plots.neighbours_grid(found, data).axes
    written = [text.get_text() for text in axes.texts]
    assert "nearest by raw pixels: 0 of 2 of the same class" in written
    assert "nearest by the trained encoder: 1 of 2 of the same class" in written
    assert len(axes.images) == 5
    crosses = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "x"]
    assert [int(x - left) for x, left in zip(crosses, (1.5, 1.5, 7.0), strict=True)] == [0, 1, 1]
