"""Tables of text for a terminal, or as Markdown, CSV or LaTeX."""

import re

GAP, LEAST = 2, 10  # spaces between two columns; characters that every column keeps
NUMBER = re.compile(r"|[\d.,]+( ± [\d.,]+)?")


def _columns(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))


def markdown(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table."""
    columns = _columns(rows)
    lines = [columns, ["--"] * len(columns), *([row.get(c, "") for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def text(rows: list[dict[str, str]], width: int | None) -> str:
    """Return columns that are aligned, numbers to the right; long cells are shortened in the middle until all columns fit.

    Args:
        rows: {column: cell}.
        width: characters of a line; None: as many as needed.
    """
    columns = _columns(rows)
    cells = [columns, *([row.get(c, "") for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    while width is not None and sum(widths) + GAP * (len(widths) - 1) > width and max(widths) > LEAST:
        widths[widths.index(max(widths))] -= 1
    number = [all(NUMBER.fullmatch(line[i]) for line in cells[1:]) for i in range(len(columns))]

    def shown(line: list[str]) -> str:
        short = [_shortened(cell, w) for cell, w in zip(line, widths, strict=True)]
        return (" " * GAP).join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(short, widths, number, strict=True)).rstrip()

    return "\n".join(map(shown, cells))


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
