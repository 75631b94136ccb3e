"""`report.html` of one run, and a page that compares several: each is one file, which loads nothing else."""

from importlib import resources
from pathlib import Path

import jinja2

from twoviews import distributed, runs
from twoviews.data.dataset import Dataset
from twoviews.report import compare, page, plots
from twoviews.report.text import features_in_words, table_row
from twoviews.runs import tables, weights
from twoviews.views import Views


def write(folder: runs.RunFolder, views: Views, data: Dataset) -> None:
    """Write `report.html` and `neighbours.png` of a finished run.

    Args:
        folder: of the run.
        views: whose augmentation is shown on some of the images.
        data: that the run was trained on.
    """
    summary, manifest = runs.read_json(folder.path, runs.SUMMARY), runs.read_json(folder.path, runs.MANIFEST)
    html = (
        _environment()
        .get_template("report.html")
        .render(
            summary=summary,
            manifest=manifest,
            run=folder.path.name,
            in_words=page.in_words(summary),
            unfinished=[name for name in summary.get("unfinished", []) if name != "report"],
            program=distributed.program(),
            split=tables.split(summary),
            features=features_in_words(summary["diagnostics"]).strip().splitlines(),
            rows=page.accuracies(summary),
            table_row=table_row(summary),
            curves=page.curves(runs.read_metrics(folder.path, []), summary),
            map=page.embedding_map(summary, data),
            neighbours=page.neighbours(summary, data),
            mistakes=page.mistakes(summary, data),
            duplicates=page.duplicates(summary, data),
            confusions=page.confusions(summary, data.classes),
            views=page.views(views, data.images),
            filters=_filters(folder.path),
            config=(folder.path / runs.CONFIG).read_text(encoding="utf-8"),
        )
    )
    folder.write(runs.REPORT, html)
    print(f"report: {folder.path / runs.REPORT}")
    if "neighbours" in summary:  # 0.1.0 had none
        folder.write(runs.NEIGHBOURS, plots.png(plots.neighbours_grid(summary["neighbours"], data)))
        print(f"nearest neighbours, also in the report: {folder.path / runs.NEIGHBOURS}")


def comparison(folders: list[Path]) -> str:
    """Return a page that compares finished runs.

    Args:
        folders: of the runs.
    """
    return str(_environment().get_template("compare.html").render(**compare.content(folders)))


def _environment() -> jinja2.Environment:
    """Return the templates of this folder: every value is escaped, and one that is missing is an error."""
    folder = resources.files("twoviews").joinpath("report/templates")
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    loader, undefined = jinja2.DictLoader(texts), jinja2.StrictUndefined
    return jinja2.Environment(loader=loader, autoescape=True, undefined=undefined, trim_blocks=True, lstrip_blocks=True)


def _filters(path: Path) -> str | None:
    """Return a picture of the filters of the trained encoder's first convolution, if it has one of that name."""
    from twoviews.report import pictures

    file = path / runs.BACKBONE
    weight = weights.read(file)[0].get("conv1.weight") if file.is_file() else None
    return None if weight is None else pictures.filters(weight)
