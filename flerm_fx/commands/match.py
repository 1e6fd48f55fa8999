"""``flerm-fx match`` shows which base parameters a model's parameters answer to, without
training.
"""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flerm_fx.align.aligning import Match, align, unanswered
from flerm_fx.align.doubts import doubts_of, paragraph
from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.boundary.text import json_text
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.tracing import capture
from flerm_fx.commands.factory import load_model
from flerm_fx.commands.mapping import Mapping, parsed
from flerm_fx.dump.columns import columns
from flerm_fx.dump.report import matching_to_html
from flerm_fx.dump.table import format_base, format_shape
from flerm_fx.dump.write import check_writable, write
from flerm_fx.errors import shown
from flerm_fx.profile.profile import BaseProfile


class OnUnmatched(StrEnum):
    """An ``OnUnmatched`` says what becomes of parameters that have no counterpart."""

    error = "error"
    unit = "unit"


class Form(StrEnum):
    """A ``Form`` says what is made of a matching."""

    table = "table"
    json = "json"
    html = "html"


def match(
    profile: Annotated[Path, typer.Argument(help="A base profile, base.safetensors.")],
    model: Annotated[
        str, typer.Option(help="The target: package.module:factory, called without arguments.")
    ],
    on_unmatched: Annotated[
        OnUnmatched, typer.Option(help="What becomes of parameters without a counterpart.")
    ] = OnUnmatched.error,
    mapping: Mapping = None,
    form: Annotated[Form, typer.Option("--format", help="What to print.")] = Form.table,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "--out", help="Write it there, and print nothing.")
    ] = None,
) -> None:
    """Print which base parameters each parameter of a model answers to. Nothing is trained.

    The model is captured on the inputs that are stored in the profile. As html it is a page that
    opens offline: both models side by side, with a line for each share.

    Example: flerm-fx match base.safetensors --model my_project.models:large
    """
    if output is not None:
        check_writable(output)
    base = BaseProfile.load(profile)
    captured = capture(load_model(model), base.pool[0][0])
    graph = capture_graph(captured)
    matches = align(base.graph, graph, parsed(mapping), on_unmatched.value)
    used = {name for name in matches if graph.nodes[name]["op"]}
    left = unanswered(base.graph, matches.values())
    if as_json or form is Form.json:
        text = _as_json(matches, left)
    elif form is Form.table:
        text = _as_table(base, captured, matches, used, left)
    else:
        shapes = {name: tuple(p.shape) for name, p in captured.parameters.items()}
        text = matching_to_html(base, graph, shapes, matches)
    if output is None:
        print(text)
    else:
        write(text, output)


def _as_table(
    base: BaseProfile,
    captured: Capture,
    matches: dict[str, Match],
    used: set[str],
    left: list[str],
) -> str:
    rows = [
        (
            name,
            format_shape(tuple(captured.parameters[name].shape)),
            format_base(match.base) if match.base or name not in used else "unmatched",
            format_shape(base.shapes[match.base[0][0]]) if match.base else "-",
        )
        for name, match in matches.items()
    ]
    lines = columns(("parameter", "shape", "base", "base shape"), rows)
    matched = sum(bool(match.base) for match in matches.values())
    unmatched = len(used) - matched
    lines.append(
        f"{len(matches)} parameters: {matched} matched, {unmatched} unmatched, "
        f"{len(matches) - len(used)} unused; {len(base.parameters)} in the base, of which "
        f"{len(left)} have no counterpart{': ' + ', '.join(map(shown, left)) if left else ''}."
    )
    if doubts := doubts_of(matches):
        lines.append(paragraph(doubts, limit=len(doubts)))
    return "\n".join(lines)


def _as_json(matches: dict[str, Match], left: list[str]) -> str:
    return json_text(
        {
            "matches": {
                name: [{"parameter": b, "share": share} for b, share in match.base]
                for name, match in matches.items()
            },
            "base_without_counterpart": left,
            "doubts": [asdict(doubt) for doubt in doubts_of(matches)],
        }
    )
