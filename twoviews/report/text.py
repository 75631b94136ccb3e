"""The table of accuracies that a command prints."""

from typing import Any

from twoviews.probes.diagnostics import COLLAPSED, SPREAD_FLOOR
from twoviews.probes.protocols import protocol
from twoviews.runs import formats, tables

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


def table_row(summary: dict[str, Any]) -> str:
    """Return a run as a Markdown table of one row, with the two protocols that runs are compared by."""
    marked = f"{summary['method']}{' (uses labels)' if summary['uses_labels'] else ''}"
    row = {"method": marked, "backbone": summary["backbone"], "data": f"{summary['dataset']}, {tables.split(summary)}"}
    row |= {"epochs": tables.epochs(summary), "batch": str(summary["batch_size"]), "seed": str(summary["seed"])}
    row |= {"kNN k=10 cosine, %": tables.percent(tables.headline(summary)), "linear, %": tables.percent(tables.linear(summary))}
    return formats.markdown([row])


def features_in_words(diagnostics: dict[str, dict[str, float]]) -> str:
    """Return what the statistics of the features mean, one line for each kind of features.

    Args:
        diagnostics: from `inspection.diagnose`.
    """
    return "\n".join(["", *(_in_words(name, values) for name, values in diagnostics.items())])


def _in_words(name: str, values: dict[str, float]) -> str:
    spread, rank = values["std"], values["rankme"]
    of = f" of {values['dims']:.0f}" if "dims" in values else ""  # 0.1.0 did not store it
    if spread < COLLAPSED or rank < 2:
        verdict = "collapsed: all images look alike to the encoder; try other augmentation or a lower learning rate"
    elif spread < SPREAD_FLOOR:
        verdict = "images look much alike to the encoder: train longer, or try other augmentation or a lower learning rate"
    else:
        verdict = f"not collapsed: images differ in about {rank:.0f} independent ways"
    return f"features {name}: {verdict} (spread {spread:.2f}, where 1 is even and 0 collapsed; RankMe {rank:.1f}{of})"
