"""`report.html`: one file with the command, the accuracies, the curves, and images with their views."""

from importlib import resources
from typing import Any

from twoviews import runs
from twoviews.data.dataset import Dataset
from twoviews.probes import protocols
from twoviews.report.text import KINDS, features_in_words
from twoviews.views import Views


def write(folder: runs.RunFolder, views: Views, data: Dataset) -> None:
    """Write `report.html` and `neighbours.png` of a finished run; without the extra `report`, print what to install.

    Args:
        folder: of the run.
        views: whose augmentation is shown on some of the images.
        data: that the run was trained on.
    """
    try:
        import jinja2

        from twoviews.report import plots
    except ImportError:
        print("no report.html: to get it: pip install 'twoviews[report]', then twoviews report")
        return
    summary, manifest = runs.read_json(folder.path, runs.SUMMARY), runs.read_json(folder.path, runs.MANIFEST)
    metrics = runs.read_metrics(folder.path)
    source = resources.files("twoviews").joinpath("report/report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    picture = plots.png(plots.neighbours_grid(summary["neighbours"], data)) if "neighbours" in summary else None  # 0.1.0 had none
    html = environment.from_string(source).render(
        summary=summary,
        manifest=manifest,
        run=folder.path.name,
        rows=_rows(summary),
        words=features_in_words(summary["diagnostics"]).strip().splitlines() if not summary["evaluations"] else [],
        map=plots.data_uri(plots.png(plots.embedding_map(summary["map"], data))) if summary.get("map") else None,
        neighbours=picture and plots.data_uri(picture),
        loss=plots.data_uri(plots.png(plots.loss_curve(metrics))),
        knn=plots.data_uri(plots.png(plots.knn_curve(metrics, summary))) if summary["evaluations"] else None,
        views=plots.data_uri(plots.png(plots.views_grid(views, data.images))),
        confusions=[(name, plots.data_uri(plots.png(plots.confusion_matrix(row, data.classes)))) for name, row in _headlines(summary)],
        diagnostics=summary["diagnostics"],
        config=(folder.path / runs.CONFIG).read_text(encoding="utf-8"),
    )
    folder.write(runs.REPORT, html)
    print(f"report: {folder.path / runs.REPORT}")
    if picture:
        folder.write(runs.NEIGHBOURS, picture)
        print(f"nearest neighbours, also in the report: {folder.path / runs.NEIGHBOURS}")


def _rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    cells = {(protocols.protocol(row), row["of"]): row for row in summary["evaluations"]}
    names = dict.fromkeys(name for name, of in cells if of in KINDS)
    return [
        {"protocol": name} | {of: f"{100 * cells[name, of]['accuracy']:.1f}" if (name, of) in cells else "" for of in KINDS}
        for name in names
    ]


def _headlines(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the trained backbone's evaluations that have a confusion matrix, with their protocols."""
    own = [row for row in summary["evaluations"] if row["of"] == "trained" and "on" not in row]
    return [(protocols.protocol(row), row) for row in own if "confusion" in row]
