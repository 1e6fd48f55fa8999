"""What came of the zoo: a file of results, tables for the terminal and for a page."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import rich.table
from rich.console import Console

from zoo.architecture import Architecture
from zoo.stages import STAGES, Result

Results = Mapping[str, list[Result]]

MARKS = {"passed": "✓", "failed": "✗", "not run": "·", "not defined": ""}


def passed(results: list[Result]) -> bool:
    """Whether every stage that is defined was run and passed."""
    return all(result.status in ("passed", "not defined") for result in results)


def write_json(path: Path, known: Mapping[str, Architecture], results: Results) -> None:
    """All results, by architecture."""
    content = {
        name: {
            "family": known[name].family,
            "stages": [dataclasses.asdict(result) for result in rows],
        }
        for name, rows in results.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, list[Result]]:
    """Results of an earlier run; none if there is no such file."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: [Result(**{**row, "warnings": tuple(row["warnings"])}) for row in entry["stages"]]
        for name, entry in content.items()
    }


MARKER = "<!-- What follows is written by the zoo. -->"

HEADER = ("architecture", *STAGES, "path", "auto", "exact off by", "σ", "seconds")


def row(name: str, results: list[Result]) -> tuple[str, ...]:
    """One line of the table: marks, and the figures behind them."""
    by_stage = {result.stage: result for result in results}
    details = {stage: result.details for stage, result in by_stage.items()}
    worst = details["exact"].get("worst")
    errors = [
        details[stage]["standard errors"]
        for stage in ("sampled", "auto")
        if "standard errors" in details[stage]
    ]
    return (
        name,
        *(MARKS[by_stage[stage].status] for stage in STAGES),
        details["capture"].get("path", ""),
        details["auto"].get("method", ""),
        "" if worst is None else f"{worst:.0e}",
        f"{max(errors):.1f}" if errors else "",
        f"{sum(result.seconds for result in results):.0f}",
    )


def families(known: Mapping[str, Architecture], results: Results) -> list[tuple[str, ...]]:
    """For each family: how many passed all stages, how many there are, and the percentage."""
    counts: dict[str, list[bool]] = {}
    for name, rows in results.items():
        counts.setdefault(known[name].family, []).append(passed(rows))
    counts["all"] = [ok for family in list(counts.values()) for ok in family]
    return [
        (family, str(sum(oks)), str(len(oks)), f"{100 * sum(oks) / max(len(oks), 1):.0f} %")
        for family, oks in counts.items()
    ]


def failures(results: Results) -> list[tuple[str, str, str]]:
    """Architecture, stage and message of each stage that failed."""
    return [
        (name, result.stage, result.message)
        for name, rows in results.items()
        for result in rows
        if result.status == "failed"
    ]


def show(console: Console, known: Mapping[str, Architecture], results: Results) -> None:
    """The tables, and all failures in full."""
    table = rich.table.Table(*HEADER)
    for name, rows in results.items():
        table.add_row(*row(name, rows))
    console.print(table)
    summary = rich.table.Table("family", "passed", "of", "")
    for line in families(known, results):
        summary.add_row(*line)
    console.print(summary)
    for name, stage, message in failures(results):
        console.print(f"{name}, {stage}: {message}", markup=False, highlight=False, soft_wrap=True)


def write_markdown(path: Path, known: Mapping[str, Architecture], results: Results) -> None:
    """The same as a page, below what the page says above :data:`MARKER`."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    introduction = before.split(MARKER)[0] if MARKER in before else "# Architectures\n\n"
    lines = [introduction + MARKER, ""]
    lines += _markdown_table(("family", "passed", "of", ""), families(known, results))
    for family in dict.fromkeys(known[name].family for name in results):
        rows = [row(n, rows) for n, rows in results.items() if known[n].family == family]
        lines += ["", f"## {family}", "", *_markdown_table(HEADER, rows)]
    if failed := failures(results):
        lines += ["", "## Failures", ""]
        lines += [f"- {name}, {stage}: {_escaped(text)}" for name, stage, text in failed]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return ["| " + " | ".join(map(_escaped, line)) + " |" for line in lines]


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
