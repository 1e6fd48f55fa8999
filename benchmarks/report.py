"""What a run leaves: tables on the terminal, a page."""

from collections.abc import Iterable
from pathlib import Path

import rich.table
from rich.console import Console

from benchmarks.results import Machine, Results
from benchmarks.tables import Table, tables

MARKER = "<!-- What follows is written by make bench. -->"


def show(console: Console, found: Iterable[Table]) -> None:
    """Tables on the terminal."""
    for table in found:
        grid = rich.table.Table(*table.header, title=table.title, title_justify="left")
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)
        for note in table.notes:
            console.print(note, markup=False, highlight=False)
        console.print()


def write_markdown(path: Path, results: Results, picture: str | None) -> None:
    """The same as a page, below what the page says above :data:`MARKER`."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    introduction = before.split(MARKER)[0] if MARKER in before else "# Performance\n\n"
    lines = [introduction + MARKER, "", _machine(results.machine)]
    if picture is not None:
        lines += ["", f"![RMS error of each method against its cost in training steps]({picture})"]
    for table in tables(results):
        lines += ["", f"## {table.title}", "", *_markdown_table(table)]
        for note in table.notes:
            lines += ["", note]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _machine(machine: Machine) -> str:
    quick = " Run with `--quick`: the figures mean nothing." if machine.quick else ""
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    return (
        f"Measured on {machine.processor}, {machine.cores} cores, {machine.platform}, with "
        f"{threads}, on {machine.device}, torch {machine.torch}, Python {machine.python}.{quick}"
    )


def _markdown_table(table: Table) -> list[str]:
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    return ["| " + " | ".join(map(_escaped, line)) + " |" for line in lines]


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
