"""Tables of text for a terminal, or as Markdown, CSV or LaTeX."""

import re
import textwrap
from collections.abc import Sequence

GAP, LEAST = 2, 16  # spaces between two columns; characters that a column of text keeps
NUMBER = re.compile(r"|[\d.,]+( ± [\d.,]+)?")


def _columns(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))


def markdown(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table."""
    columns = _columns(rows)
    lines = [columns, ["--"] * len(columns), *([row.get(c, "") for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def text(rows: list[dict[str, str]], width: int | None, leave_out: Sequence[str] = ()) -> str:
    """Return columns that are aligned, numbers to the right.

    Where they do not fit, long texts are shortened in the middle, and then columns are left out, which a last line names. Numbers
    are never shortened.

    Args:
        rows: {column: cell}.
        width: characters of a line; None: as many as needed.
        leave_out: columns that may be left out, the first one first.
    """
    columns, without = _columns(rows), []
    number = {c: all(NUMBER.fullmatch(row.get(c, "")) for row in rows) for c in columns}
    full = {c: max(len(c), *(len(row.get(c, "")) for row in rows)) for c in columns}

    def least() -> int:
        return sum(full[c] if number[c] else min(full[c], LEAST) for c in columns) + GAP * (len(columns) - 1)

    for column in leave_out if width is not None else ():
        if column in columns and least() > (width or 0):
            columns.remove(column)
            without.append(column)
    cells, widths = [columns, *([row.get(c, "") for c in columns] for row in rows)], [full[c] for c in columns]
    while width is not None and sum(widths) + GAP * (len(widths) - 1) > width:
        long = max((i for i, c in enumerate(columns) if not number[c]), key=lambda i: widths[i], default=None)
        if long is None or widths[long] <= LEAST:
            break
        widths[long] -= 1

    def shown(line: list[str]) -> str:
        short = [_shortened(cell, w) for cell, w in zip(line, widths, strict=True)]
        return (
            (" " * GAP)
            .join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(short, widths, map(number.get, columns), strict=True))
            .rstrip()
        )

    note = f"left out: {', '.join(without)}; format=csv and a wider terminal have them" if without else ""
    return "\n".join([*map(shown, cells), *textwrap.wrap(note, max(20, width or 0))])


def _shortened(cell: str, width: int) -> str:
    if len(cell) <= width:
        return cell
    end = (width - 2) // 2
    return f"{cell[: width - 2 - end]}..{cell[len(cell) - end :]}"


def csv(rows: list[dict[str, str]]) -> str:
    """Return comma-separated values, quoted where needed."""
    import csv as writer
    import io

    out = io.StringIO()
    table = writer.DictWriter(out, _columns(rows), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue().rstrip("\n")


def latex(rows: list[dict[str, str]]) -> str:
    """Return a LaTeX table for the package booktabs."""
    columns = _columns(rows)
    escape = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$"})
    body = [" & ".join(row.get(c, "").translate(escape) for c in columns) + r" \\" for row in rows]
    head = " & ".join(c.translate(escape) for c in columns) + r" \\"
    lines = [rf"\begin{{tabular}}{{{'l' * len(columns)}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines)
