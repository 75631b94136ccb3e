"""`metrics.jsonl`: one JSON object per training step, appended, each with the first digits of its checksum."""

import json
from pathlib import Path
from typing import Any

from twoviews.runs.files import checksum, verified

METRICS = "metrics.jsonl"


def lines(rows: list[dict[str, Any]], run: str) -> str:
    """Return rows as lines of the file.

    Args:
        rows: one per step.
        run: `folder.identity` of the run.
    """
    return "".join(json.dumps({**row, "sha256": checksum(row, run)[:8]}) + "\n" for row in rows)


def read(path: Path, run: str, bad: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a metrics file; an incomplete last line, left by a kill, is skipped.

    Args:
        path: the file.
        run: `folder.identity` of the run.
        bad: receives what is wrong with other lines; None: the first of them raises.

    Raises:
        ValueError: with the line's number, if another line is not a row of this run.
    """
    rows = []
    try:
        blob = path.read_bytes()
    except FileNotFoundError:
        return []
    for number, line in enumerate(blob.split(b"\n")[:-1], start=1):  # after the last line break: nothing, or an incomplete line
        try:
            row = verified(json.loads(line), run)
            row["step"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error if "checksum" in str(error) else "not a row of metrics"
            if bad is None:
                raise ValueError(f"{path}, line {number}: {reason}") from None
            bad.append(f"{path}, line {number}: {reason}")
            continue
        rows.append(row)
    return rows
