"""One run as a tree of text: what was trained, on which data, how good it is, and which files it has."""

import shlex
from pathlib import Path
from typing import Any

from twoviews import runs
from twoviews.probes.protocols import protocol
from twoviews.report.text import features_in_words

Branch = tuple[str, list[Any]]  # a line, and the branches below it


def tree(path: Path) -> str:
    """Return a run as lines.

    Args:
        path: its folder.

    Raises:
        ValueError: if a file of it is damaged.
    """
    summary, manifest, stored = runs.read_json(path, runs.SUMMARY), runs.read_json(path, runs.MANIFEST), runs.read_config(path)
    recipe = [f"{key}: {stored.get(key)}" for key in ("recipe", "method", "dataset", "backbone", "epochs", "batch_size", "seed")]
    branches: list[Branch] = [("recipe", [(line, []) for line in recipe])]
    if manifest:
        commit = f"commit {manifest.get('commit') or 'not known'}"
        origin = [manifest["command"], commit, manifest["machine"], f"started {manifest['started']}"]
        branches.append(("origin", [(line, []) for line in origin]))
    branches += _finished(summary) if summary else [(_progress(path), [])]
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    branches.append(("files", [(f"{file.name}  {_size(file.stat().st_size)}", []) for file in files]))
    return "\n".join([str(path), *_lines(branches, "")])


def _finished(summary: dict[str, Any]) -> list[Branch]:
    train = summary["train"]
    trained = [
        f"{train['seconds']:.0f} s at {train['views_per_s']:,.0f} views/s",
        f"{train['steps']:,} of {train.get('planned_steps', train['steps']):,} steps",
        f"memory {train['peak_bytes'] / 2**30:.2f} GiB",
    ]
    branches: list[Branch] = [("training", [(line, []) for line in trained])]
    by_split: dict[str, list[Branch]] = {}
    for row in summary["evaluations"]:
        if row["of"] == "trained":
            by_split.setdefault(row["split"], []).append((f"{100 * row['accuracy']:5.1f} %  {protocol(row)}", []))
    branches += [(f"accuracy on {split}", rows) for split, rows in by_split.items()]
    if summary["diagnostics"]:
        branches.append(("features", [(line, []) for line in features_in_words(summary["diagnostics"]).strip().splitlines()]))
    if left := summary.get("unfinished"):
        branches.append((f"not done yet: {', '.join(left)}", []))
    return branches


def _progress(path: Path) -> str:
    logged = runs.read_metrics(path, [])
    return (
        f"not finished: {logged[-1]['step'] + 1} steps done: twoviews pretrain {shlex.quote(f'resume={path}')}"
        if logged
        else "not finished: no step done"
    )


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _lines(branches: list[Branch], indent: str) -> list[str]:
    out = []
    for number, (line, below) in enumerate(branches):
        last = number == len(branches) - 1
        out += [f"{indent}{'└─' if last else '├─'} {line}", *_lines(below, f"{indent}{'   ' if last else '│  '}")]
    return out
