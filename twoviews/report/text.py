"""The table of accuracies that a command prints."""

from typing import Any

from twoviews.probes.protocols import protocol
from twoviews.runs import tables

KINDS = ("raw_pixels", "random_initialisation", "trained")


def accuracy_table(summary: dict[str, Any]) -> str:
    """Return a Markdown table: a row per protocol, a column per backbone or baseline, accuracies in per cent."""
    rows = summary["evaluations"]
    names = list(dict.fromkeys(protocol(row) for row in rows))
    cells = {(protocol(row), row["of"]): row["accuracy"] for row in rows}
    marked = f"{summary['method']}{' (uses labels)' if summary['uses_labels'] else ''}"
    kinds = [of for of in dict.fromkeys([*KINDS, *(row["of"] for row in rows)]) if any(row["of"] == of for row in rows)]
    lines = [
        f"\n{summary['dataset']}, {tables.split(summary) or 'test'} accuracy in per cent; {marked} {summary['backbone']}, "
        f"seed {summary['seed']}\n",
        f"| protocol | {' | '.join(of.replace('_', ' ') for of in kinds)} |",
        "|:--" + "|--:" * len(kinds) + "|",
    ]
    for name in names:
        values = [cells.get((name, of)) for of in kinds]
        lines.append(f"| {name} | " + " | ".join("" if value is None else f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines)
