"""`twoviews runs [list|best|compare|show|delete|<table>]`: all runs, the best ones, mean ± std over seeds, one run, or a reference table.

`twoviews runs compare format=csv` prints the complete numbers instead: every protocol and every baseline, with the origin of each number.
"""

import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from twoviews import runs
from twoviews.config import Config
from twoviews.runs import formats, tables
from twoviews.runs.tables import Row, headline, linear, mean_std, percent

FILTERS = ("recipe", "method", "dataset", "backbone")
LEAVE_OUT = (
    "batch",
    "training s",
    "views/s",
    "raw pixels kNN k=10",
    "backbone",
    "seed",
    "epochs",
    "recipe",
    "method",
    "finished",
)  # in this order
COLUMNS = ("method", "backbone", "epochs", "batch_size")  # settings with a column in the tables of this file
Found = tuple[Path, dict[str, Any], dict[str, Any]]  # a run folder, its summary, which is {} if it has not finished, and its configuration


def run(cfg: Config) -> int:
    """Print one table of the runs in `runs_dir`, show one run, or delete one."""
    folder = Path(cfg.runs_dir)
    if cfg.view in ("show", "delete"):
        if not cfg.run:
            raise ValueError(f"runs {cfg.view}: expected run=<folder>: twoviews runs lists them")
        path = runs.find(cfg.run, folder)
        return _show(path) if cfg.view == "show" else _delete(path, sure=cfg.sure)
    found = _read(cfg, folder)
    finished = [(summary, config) for _, summary, config in found if summary]
    if not found:
        wanted = [f"{key}={cfg[key]}" for key in FILTERS if cfg[key]]
        raise ValueError(f"runs_dir={folder}: holds no run{' with ' + ', '.join(wanted) if wanted else ''}: twoviews pretrain creates one")
    if cfg.view in tables.TABLES:
        rows = tables.TABLES[cfg.view](finished)
    elif cfg.view == "compare":
        rows = _complete(finished) if cfg.format == "csv" else _compare(finished)
    else:
        rows = _list(_sorted(found if cfg.view == "list" else _best(found), cfg.sort))
    if not rows:
        raise ValueError(f"runs_dir={folder}: {len(found)} runs, none finished: to finish one: twoviews pretrain resume=<folder>")
    form = cfg.format if cfg.format != "auto" else "markdown" if cfg.view in tables.TABLES else "text"
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    writers = {"markdown": formats.markdown, "csv": formats.csv, "latex": formats.latex}
    leave_out = sorted(LEAVE_OUT, key=lambda column: len({row.get(column) for row in rows}) > 1)  # first those that tell nothing apart
    print(formats.text(rows, width, leave_out) if form == "text" else writers[form](rows))
    return 0


def _read(cfg: Config, folder: Path) -> list[Found]:
    """Return the runs that fit the filters."""
    found = []
    for path in runs.folders(folder):
        try:
            summary, stored = runs.read_json(path, runs.SUMMARY), runs.read_config(path)
            summary |= {"manifest": runs.read_json(path, runs.MANIFEST)} if summary else {}
        except (ValueError, OSError) as error:  # one damaged run, or one of another user, must not hide the others
            print(f"skipped: {path.name}: {error}" if isinstance(error, OSError) else f"skipped: {error}", file=sys.stderr)
            continue
        if all(cfg[key] in (None, stored.get(key)) for key in FILTERS):
            found.append((path, summary, stored))
    return found


def _sorted(found: list[Found], by: str) -> list[Found]:
    """Return the runs in the order of their start, of their names, or of a number, the best or longest first."""
    if by == "time":
        return found
    if by == "name":
        return sorted(found, key=lambda one: one[0].name)
    numbers: dict[str, Callable[[dict[str, Any]], float | None]]
    numbers = {"knn": headline, "linear": linear, "seconds": lambda summary: summary["train"]["seconds"]}
    return sorted(found, key=lambda one: -((numbers[by](one[1]) if one[1] else None) or 0))


def _show(path: Path) -> int:
    from twoviews.report.tree import tree  # imports torch, which the tables do not need

    print(tree(path))
    return 0


def _delete(path: Path, *, sure: bool) -> int:
    """Delete a run after a question."""
    path = path.resolve()
    runs.check_unlocked(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if not sure:
        if not sys.stdin.isatty():
            raise ValueError(f"runs delete: {path}: no terminal to ask on: add sure=true")
        try:
            answer = input(f"delete {path} ({size / 1e6:.1f} MB) with its weights? type yes: ")
        except EOFError:
            answer = ""
        if answer.strip() != "yes":
            print("nothing was deleted")
            return 0
    hidden = path.with_name(f".deleted-{path.name}-{secrets.token_hex(4)}")
    with runs.RunFolder(path):  # nobody may have begun to use it meanwhile
        path.rename(hidden)  # first out of the list: what an interruption leaves is no run
    shutil.rmtree(hidden)
    print(f"deleted: {path}")
    return 0


def _list(found: list[Found]) -> list[Row]:
    """Return a row for each run, with a column that says how those of one recipe differ, unless it would be empty."""
    texts = tables.differences([(summary, config) for _, summary, config in found], COLUMNS)
    extra = [{tables.DIFFERS: text} if any(texts) else {} for text in texts]
    return [_row(path, summary) | differs for (path, summary, _), differs in zip(found, extra, strict=True)]


def _best(found: list[Found]) -> list[Found]:
    """Return the run with the highest accuracy on each data set and split."""
    best: dict[tuple[str | None, ...], Found] = {}
    for path, summary, config in found:
        if summary:
            key = (summary["dataset"], tables.digest(summary), tables.split(summary))
            if key not in best or (headline(summary) or 0) > (headline(best[key][1]) or 0):
                best[key] = (path, summary, config)
    return list(best.values())


def _compare(finished: list[tables.Run]) -> list[Row]:
    """Return one row per group of runs that differ only in the seed, as mean ± sample standard deviation."""
    rows = []
    for pairs, differs in tables.told_apart(finished, *COLUMNS):
        group = [summary for summary, _ in pairs]
        first = group[0]
        rows.append(
            _columns(first)
            | {
                "seeds": str(len(group)),
                "kNN k=10 cosine": mean_std([100 * h for s in group if (h := headline(s)) is not None]),
                "linear": mean_std([100 * h for s in group if (h := linear(s)) is not None]),
                "raw pixels kNN k=10": mean_std([100 * h for s in group if (h := headline(s, "raw_pixels")) is not None]),
                "training s": mean_std([s["train"]["seconds"] for s in group], 0),
                "views/s": mean_std([s["train"]["views_per_s"] for s in group], 0),
            }
            | differs
        )
    return rows


def _complete(finished: list[tables.Run]) -> list[Row]:
    """Return one row per group of runs that differ only in the seed, protocol, and evaluated features, with the origin of the number."""
    from twoviews.probes.protocols import protocol  # imports torch, which the other tables do not need

    rows = []
    for pairs in tables.groups(finished):
        group = sorted((summary for summary, _ in pairs), key=lambda s: s["seed"])
        cells: dict[tuple[str, ...], list[tuple[dict[str, Any], float]]] = {}
        for summary in group:
            for row in summary["evaluations"]:
                key = (row["split"], protocol(row), row["features"], row["of"])
                cells.setdefault(key, []).append((summary, 100 * row["accuracy"]))
        for (split, name, features, of), cell in cells.items():
            members, accuracies = [summary for summary, _ in cell], [accuracy for _, accuracy in cell]
            first, trained, origins = members[0], [s["train"] for s in members], [s["manifest"] for s in members]
            rows.append(
                {"recipe": first["recipe"], "data": first["dataset"], "split": split, "method": first["method"]}
                | {"uses_labels": str(first["uses_labels"]).lower(), "backbone": first["backbone"]}
                | {"epochs": tables.epochs(first), "batch": str(first["batch_size"])}
                | {"protocol": name, "features": features, "of": of, "mean": f"{mean(accuracies):.1f}"}
                | {"std": f"{stdev(accuracies):.1f}" if len(cell) > 1 else "", "runs": str(len(cell))}
                | {"seeds": _joined(s["seed"] for s in members)}
                | {"training_s": f"{mean(t['seconds'] for t in trained):.0f}"}
                | {"views_per_s": f"{mean(t['views_per_s'] for t in trained):.0f}"}
                | {key: _joined(origin.get(key) for origin in origins) for key in ("commit", "machine", "precision")}
                | {"torch": _joined(origin.get("versions", {}).get("torch") for origin in origins)}
                | {"command": origins[0].get("command", "")}
            )
    return rows


def _joined(values: Iterable[Any]) -> str:
    """Return the different values that are known, in their order."""
    return "; ".join(dict.fromkeys(str(value) for value in values if value is not None))


def _row(path: Path, summary: dict[str, Any]) -> Row:
    if not summary:
        logged = runs.read_metrics(path, [])
        return {"run": path.name, "finished": f"no: at step {logged[-1]['step'] + 1}" if logged else "no"}
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(_ended(path)))
    left = summary.get("unfinished")
    return (
        {"run": path.name, "finished": f"without {', '.join(left)}" if left else when}
        | _columns(summary)
        | {
            "seed": str(summary["seed"]),
            "kNN k=10 cosine": percent(headline(summary)),
            "linear": percent(linear(summary)),
            "training s": f"{summary['train']['seconds']:.0f}",
        }
    )


def _ended(path: Path) -> float:
    """Return when the training ended: the summary is written again by each evaluation, so its time is used only without weights."""
    weights = path / runs.BACKBONE
    return (weights if weights.is_file() else path / runs.SUMMARY).stat().st_mtime


def _columns(summary: dict[str, Any]) -> Row:
    return {
        "recipe": summary["recipe"],
        "data": f"{summary['dataset']}, {tables.split(summary)}",
        "method": summary["method"] + (" (uses labels)" if summary["uses_labels"] else ""),
        "backbone": summary["backbone"],
        "epochs": tables.epochs(summary),
        "batch": str(summary["batch_size"]),
    }
