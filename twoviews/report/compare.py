"""Runs side by side: the differences of their recipes beside those of their numbers, and their curves in one plot."""

from pathlib import Path
from typing import Any

from twoviews import runs
from twoviews.config.schema import keys, show
from twoviews.probes import protocols
from twoviews.report.charts import Chart, Line
from twoviews.report.page import CURVES, series
from twoviews.runs import tables


def content(folders: list[Path]) -> dict[str, Any]:
    """Return what the template of the comparison is filled with.

    Args:
        folders: of finished runs, two or more.
    """
    manifests = [runs.read_json(path, runs.MANIFEST) for path in folders]
    summaries = [runs.read_json(path, runs.SUMMARY) | {"manifest": manifest} for path, manifest in zip(folders, manifests, strict=True)]
    configs = [runs.read_config(path) for path in folders]
    metrics = [runs.read_metrics(path, []) for path in folders]
    names = [path.name + (" (uses labels)" if summary["uses_labels"] else "") for path, summary in zip(folders, summaries, strict=True)]
    return {
        "names": names,
        "recipes": recipes(configs),
        "numbers": numbers(summaries),
        "curves": curves(names, metrics),
        "one_data_set": len({(summary["dataset"], tables.digest(summary), tables.split(summary)) for summary in summaries}) == 1,
        "manifests": manifests,
    }


def recipes(configs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return each science key whose values differ, with its value in each run."""
    found = []
    for key in keys("science", verb="pretrain"):
        values = [show(config[key]) if key in config else "" for config in configs]
        if len(set(values)) > 1:
            found.append((key, values))
    return found


def numbers(summaries: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return each number of the runs: accuracies of the trained encoder by protocol, speed, memory, and statistics of the features."""
    rows: dict[str, list[str]] = {}
    for number, summary in enumerate(summaries):
        found = {f"{protocols.protocol(row)}, {row['split']}, %": f"{100 * row['accuracy']:.1f}" for row in _trained(summary)}
        if (pixels := tables.headline(summary, "raw_pixels")) is not None:
            found["raw pixels, kNN k=10, %"] = f"{100 * pixels:.1f}"
        for name, values in summary["diagnostics"].items():
            found |= {f"spread of {name}": f"{values['std']:.2f}", f"RankMe of {name}": f"{values['rankme']:.1f}"}
        train = summary["train"]
        found |= {
            "steps": f"{train['steps']} of {train.get('planned_steps', train['steps'])}",
            "training, s": f"{train['seconds']:.0f}",
            "views/s": f"{train['views_per_s']:.0f}",
        }
        found["memory, GiB"] = f"{train['peak_bytes'] / 2**30:.2f}"
        for name, value in found.items():
            rows.setdefault(name, [""] * len(summaries))[number] = value
    return list(rows.items())


def _trained(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in summary["evaluations"] if row["of"] == "trained" and "on" not in row]


def curves(names: list[str], metrics: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a chart for each quantity that the runs measured, with a line for each run."""
    charts = []
    for key, title in CURVES.items():
        runs_ = enumerate(zip(names, metrics, strict=True))
        lines = [Line(name, points, number) for number, (name, rows) in runs_ if (points := series(rows, key))]
        if lines:
            charts.append(Chart(title, lines).drawn())
    return charts
