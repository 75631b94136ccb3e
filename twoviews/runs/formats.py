"""Tables of text as Markdown, CSV or LaTeX."""


def _columns(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))


def markdown(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table."""
    columns = _columns(rows)
    lines = [columns, ["--"] * len(columns), *([row.get(c, "") for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


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
