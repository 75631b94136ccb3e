"""`twoviews report` and the page that it writes: one file, complete, without requests, names escaped."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny as small

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


def test_the_report_is_one_file_with_command_tables_and_pictures(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    pictures = [value for name, value in links.found if name == "src"]
    assert len(pictures) == 4 + 2, "neighbours, loss, kNN and views; the confusion matrices of two probes"
    assert all(value.startswith("data:image/png;base64,") and len(value) > 2000 for value in pictures)
    assert [name for name, value in links.found if not value.startswith("data:")] == []  # no external request
    assert not re.search(r"@import|url\(", page)
    assert not {"script", "link", "iframe"} & set(links.tags)
    assert json.loads((finished / "manifest.json").read_text())["command"].split()[0] in page
    for row in small.summary(finished)["evaluations"]:
        assert f"{100 * row['accuracy']:.1f}" in page
    assert page.count("<tr>") == 1 + 6 + 1 + 2, "evaluations, and diagnostics of h and z"


def test_x2_names_in_the_report_are_escaped(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twoviews.report.plots.data_uri", lambda figure: "data:,")
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
        html.write(folder, parts.views, parts.dataset)
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_the_command_writes_the_report_again(finished: Path, rewritten: Path) -> None:
    first, again = ((path / "report.html").read_text(encoding="utf-8") for path in (finished, rewritten))
    pictures = re.compile(r"data:image/png;base64,[^\"]*")
    assert pictures.sub("", again) == pictures.sub("", first)
    assert len(pictures.findall(again)) == len(pictures.findall(first))


def test_c7_a_report_is_written_from_what_a_kill_left_of_the_metrics(finished: Path, rewritten: Path) -> None:
    assert len(runs.read_metrics(rewritten)) == len(runs.read_metrics(finished)) - 1
    assert (rewritten / "report.html").is_file()


def test_the_picture_of_neighbours_is_the_one_in_the_report(finished: Path) -> None:
    picture = (finished / "neighbours.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert base64.b64encode(picture).decode() in (finished / "report.html").read_text(encoding="utf-8")


def test_a_report_of_a_run_from_before_there_were_neighbours_is_written(rewritten: Path) -> None:
    summary = small.summary(rewritten)
    with runs.RunFolder(rewritten) as folder:
        folder.write(runs.SUMMARY, {key: value for key, value in summary.items() if key not in ("neighbours", "sha256")})
    assert main(["report", "run=latest", f"runs_dir={rewritten.parent}", "threads=1", "device=cpu"]) == 0
    assert "Nearest neighbours" not in (rewritten / "report.html").read_text(encoding="utf-8")


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
    assert [int(x - left) for x, left in zip(crosses, (1.5, 1.5, 4.0), strict=True)] == [0, 1, 1]
