"""``flerm-fx diff`` shows in what two base profiles differ."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flerm_fx.boundary.text import json_text
from flerm_fx.commands.inspect import settings
from flerm_fx.dump.columns import columns
from flerm_fx.dump.table import format_estimate
from flerm_fx.profile.profile import BaseProfile

ERRORS = 4.0
"""Standard errors within which two FSLRs agree."""

ROUNDING = 1e-5
"""Relative difference within which they do in any case."""


def diff(
    one: Annotated[Path, typer.Argument(help="A base profile.")],
    other: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print in what two profiles differ: settings, parameters, and FSLRs at the start.

    FSLRs agree within 4 standard errors. The exit code is 0 if all do and nothing else differs,
    else 3.

    Example: flerm-fx diff monday.safetensors tuesday.safetensors
    """
    differing = differences(BaseProfile.load(one), BaseProfile.load(other))
    print(json_text(differing) if as_json else _as_table(differing))
    if any(differing.values()):
        raise typer.Exit(3)


def differences(one: BaseProfile, other: BaseProfile) -> dict[str, Any]:
    """Return what differs, in terms that JSON knows; all empty if nothing does."""
    ours, theirs = settings(one), settings(other)
    common = [name for name in one.parameters if name in other.start]
    return {
        "settings": {
            key: [ours.get(key), theirs.get(key)]
            for key in {**ours, **theirs}
            if ours.get(key) != theirs.get(key)
        },
        "only_in_the_first": [n for n in one.parameters if n not in other.start],
        "only_in_the_second": [n for n in other.parameters if n not in one.start],
        "shapes": {
            n: [list(one.shapes[n]), list(other.shapes[n])]
            for n in common
            if one.shapes[n] != other.shapes[n]
        },
        "fslrs": {
            name: [
                {"fslr": e.value, "stderr": e.stderr} for e in (one.start[name], other.start[name])
            ]
            for name in common
            if not _agree(one, other, name)
        },
    }


def _agree(one: BaseProfile, other: BaseProfile, name: str) -> bool:
    return one.start[name].agrees_with(other.start[name], ERRORS, ROUNDING)


def _as_table(differing: dict[str, Any]) -> str:
    if not any(differing.values()):
        return "no difference"
    lines = [f"{key}: {one} | {other}" for key, (one, other) in differing["settings"].items()]
    lines += [f"only in the first: {name}" for name in differing["only_in_the_first"]]
    lines += [f"only in the second: {name}" for name in differing["only_in_the_second"]]
    lines += [
        f"shape of {name}: {one} | {other}" for name, (one, other) in differing["shapes"].items()
    ]
    rows = []
    for name, (one, other) in differing["fslrs"].items():
        ratio = f"{other['fslr'] / one['fslr']:.4g}" if one["fslr"] else "-"
        cells = (format_estimate(e["fslr"], e["stderr"]) for e in (one, other))
        rows.append([name, *cells, ratio])
    if rows:
        header = ["parameter", "first", "second", "second / first"]
        lines += [*([""] if lines else []), *columns(header, rows, right=set(header[1:]))]
    return "\n".join(lines)
