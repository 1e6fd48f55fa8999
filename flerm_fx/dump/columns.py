"""Rows of text are put in aligned columns."""

from collections.abc import Container, Sequence

from flerm_fx.errors import shown


def columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Container[str] = ()
) -> list[str]:
    r"""Return the lines of a table: header, rule, rows; columns named in ``right`` align to the
    right.

    What is not printable in a cell is escaped, so that a row is a line.

    >>> print("\n".join(columns(["name", "size"], [["a", "10"], ["bias", "3"]], right={"size"})))
    name  size
    ----  ----
    a       10
    bias     3
    """
    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    return [
        "  ".join(
            cell.rjust(width) if title in right else cell.ljust(width)
            for cell, width, title in zip(row, widths, header, strict=True)
        ).rstrip()
        for row in (header, rule, *rows)
    ]
