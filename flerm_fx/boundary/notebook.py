"""What a notebook shows of an object: one line, and a table that opens behind it."""

from collections.abc import Collection, Sequence
from html import escape

from flerm_fx.errors import shown

MOST = 200
"""Rows of a table; of more, the first, and how many others there are."""

_CELL = 'style="text-align: {}; padding: 0 1em 0 0"'


def folded_table(
    line: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Collection[str] = (),
) -> str:
    """A line, and the table that it sums up. Names are text in it, and never markup.

    Args:
        line: of text.
        header: names of the columns.
        rows: one cell for each column.
        numeric: the columns that are aligned to the right.

    >>> print(folded_table("1 <object>", ["name"], [["weight"]]))
    <details><summary><code>1 &lt;object&gt;</code></summary><table>...weight...</table></details>
    """
    sides = ["right" if name in numeric else "left" for name in header]
    body = [_row("td", row, sides) for row in rows[:MOST]]
    if len(rows) > MOST:
        more = f"and {len(rows) - MOST} more"
        body.append(_row("td", [more, *[""] * (len(header) - 1)], sides))
    return (
        f"<details><summary><code>{escape(shown(line))}</code></summary><table>"
        f"{_row('th', header, sides)}{''.join(body)}</table></details>"
    )


def _row(tag: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    parts = [
        f"<{tag} {_CELL.format(side)}>{escape(shown(cell))}</{tag}>"
        for cell, side in zip(cells, sides, strict=True)
    ]
    return f"<tr>{''.join(parts)}</tr>"
