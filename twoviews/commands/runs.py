"""`twoviews runs [list|best|compare]`: all runs, the best of each data set, or mean ± std over seeds."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from twoviews import runs
from twoviews.config import Config

HEADLINE = {"probe": "knn", "k": 10, "metric": "cosine", "weights": "uniform", "of": "trained"}
SAME = (
    "recipe",
    "dataset",
    "method",
    "backbone",
    "epochs",
    "batch_size",
    "train_on",
    "peak_learning_rate",
)  # but for the seed
Row = dict[str, str]


def run(cfg: Config) -> int:
    """The verb."""
    folder = Path(cfg.runs_dir)
    found = [(path, runs.read_json(path, runs.SUMMARY)) for path in runs.folders(folder)]
    if not found:
        raise ValueError(f"runs_dir={folder}: no run there: twoviews pretrain makes one")
    rows = {"list": _list, "best": _best, "compare": _compare}[cfg.view](found)
    if not rows:
        raise ValueError(f"runs_dir={folder}: {len(found)} runs, none finished: twoviews pretrain resume=<folder> goes on")
    print({"markdown": markdown, "csv": csv, "latex": latex}[cfg.format](rows))
    return 0


def _list(found: list[tuple[Path, dict[str, Any]]]) -> list[Row]:
    return [_row(path, summary) for path, summary in found]


def _best(found: list[tuple[Path, dict[str, Any]]]) -> list[Row]:
    best: dict[tuple[str, str], tuple[Path, dict[str, Any]]] = {}
    for path, summary in found:
        if summary:
            key = (summary["dataset"], _split(summary))
            if key not in best or (headline(summary) or 0) > (headline(best[key][1]) or 0):
                best[key] = (path, summary)
    return [_row(path, summary) for path, summary in best.values()]


def _compare(found: list[tuple[Path, dict[str, Any]]]) -> list[Row]:
    """Runs that differ in their seed alone, as mean ± std: of the sample, so with n - 1."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for _, summary in found:
        if summary:
            groups.setdefault((*(str(summary.get(key)) for key in SAME), summary["train"]["steps"]), []).append(summary)
    rows = []
    for group in groups.values():
        first = group[0]
        rows.append(
            _about(first)
            | {
                "seeds": str(len({s["seed"] for s in group})),
                "kNN k=10 cosine": spread([100 * h for s in group if (h := headline(s)) is not None]),
                "linear": spread([100 * h for s in group if (h := linear(s)) is not None]),
                "raw pixels kNN k=10": spread([100 * h for s in group if (h := headline(s, "raw_pixels")) is not None]),
                "training s": spread([s["train"]["seconds"] for s in group], 0),
                "views/s": spread([s["train"]["views_per_s"] for s in group], 0),
            }
        )
    return rows


def _row(path: Path, summary: dict[str, Any]) -> Row:
    if not summary:
        logged = runs.metrics(path)
        return {"run": path.name, "state": f"unfinished, step {logged[-1]['step'] + 1}" if logged else "unfinished"}
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime((path / runs.SUMMARY).stat().st_mtime))
    return (
        {"run": path.name, "state": when}
        | _about(summary)
        | {
            "seed": str(summary["seed"]),
            "kNN k=10 cosine": _percent(headline(summary)),
            "linear": _percent(linear(summary)),
            "training s": f"{summary['train']['seconds']:.0f}",
        }
    )


def _about(summary: dict[str, Any]) -> Row:
    return {
        "recipe": summary["recipe"],
        "data": f"{summary['dataset']}, {_split(summary)}",
        "method": summary["method"] + (" (uses labels)" if summary["uses_labels"] else ""),
        "backbone": summary["backbone"],
        "epochs": str(summary["epochs"]),
        "batch": str(summary["batch_size"]),
    }


def _split(summary: dict[str, Any]) -> str:
    return str(summary["readouts"][0]["split"]) if summary["readouts"] else ""


def headline(summary: dict[str, Any], of: str = "trained") -> float | None:
    """kNN k=10 cosine accuracy of a run, or None."""
    wanted = HEADLINE | {"of": of}
    return next((row["accuracy"] for row in summary["readouts"] if all(row.get(k) == v for k, v in wanted.items())), None)


def linear(summary: dict[str, Any]) -> float | None:
    """Accuracy of the linear probe on the trained backbone, or None."""
    return next((row["accuracy"] for row in summary["readouts"] if row["probe"] == "linear" and row["of"] == "trained"), None)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def spread(values: list[float], digits: int = 1) -> str:
    """`mean ± std`, the std of a sample; alone where there is one value."""
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def _columns(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))


def markdown(rows: list[Row]) -> str:
    """A Markdown table."""
    columns = _columns(rows)
    lines = [columns, ["--"] * len(columns), *([row.get(c, "") for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def csv(rows: list[Row]) -> str:
    """Comma-separated values, quoted where needed."""
    import csv as writer
    import io

    out = io.StringIO()
    table = writer.DictWriter(out, _columns(rows), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue().rstrip("\n")


def latex(rows: list[Row]) -> str:
    """A booktabs table."""
    columns = _columns(rows)
    escape = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$"})
    body = [" & ".join(row.get(c, "").translate(escape) for c in columns) + r" \\" for row in rows]
    head = " & ".join(c.translate(escape) for c in columns) + r" \\"
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(columns)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
