"""The report is one HTML file with its data, style and scripts, and loads nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from flerm_fx.align.aligning import Match
from flerm_fx.align.doubts import Doubt
from flerm_fx.assign.assignment import Assignment
from flerm_fx.boundary.text import json_text
from flerm_fx.dump.report.graph import base_side, matched_sides, target_side
from flerm_fx.dump.report.trajectory import trajectory_data
from flerm_fx.dump.report.verdict import verdict
from flerm_fx.errors import InputError, shown
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.trajectory import Trajectory

if TYPE_CHECKING:
    import networkx as nx

_SCRIPTS = (
    "page.js",
    "terms.js",
    "colours.js",
    "details.js",
    "graph.js",
    "matching.js",
    "verdict.js",
    "table.js",
)


def to_html(
    profile: BaseProfile,
    graph: nx.DiGraph | None = None,
    assignments: Sequence[Assignment] = (),
    doubts: Iterable[Doubt] = (),
    *,
    name: str = "",
    checks: Mapping[str, bool] | None = None,
    trajectory: Trajectory | None = None,
    warned: Sequence[str] = (),
) -> str:
    """Return the report of a base profile, or of a target beside it.

    Args:
        profile: of the base.
        graph: the target's parameter graph; None for the base alone.
        assignments: what the compiler decided for each of the target's parameters.
        doubts: the matches that something speaks against.
        name: of the target's class.
        checks: whether ``check()`` passed, by parameter; None if it was not run.
        trajectory: of the target's run.
        warned: what was warned of while compiling.

    Returns:
        A page with a verdict, the parameter graph, the table of all parameters and, if the profile
        has a trajectory, its heat map and lines. Names are data in it, and never markup.

    Raises:
        InputError: the profile has a trajectory, and plotly, which draws it, is not installed.
    """
    sides = [base_side(profile, assignments)]
    if graph is not None:
        sides.append(target_side(graph, assignments, doubts))
    data = {
        "sides": sides,
        "trajectory": trajectory_data(profile, assignments, trajectory),
        "matching": False,
        "verdict": verdict(profile, assignments, name, checks, warned),
    }
    return _page(f"Function-space learning rates: {_counts(sides)}", profile, data)


def matching_to_html(
    profile: BaseProfile,
    graph: nx.DiGraph,
    shapes: Mapping[str, Sequence[int]],
    matches: Mapping[str, Match],
) -> str:
    """Return the matching of a base and a target, for a person to judge before anything is
    measured.

    Args:
        profile: of the base.
        graph: the target's parameter graph.
        shapes: of the target's parameters.
        matches: which of the base's each of them answers to.

    Returns:
        The page of :func:`to_html` without numbers: both parameter graphs side by side, a row for
        each block, lines between them that are as wide as shares, and what is in doubt or has no
        counterpart by name.
    """
    sides = matched_sides(profile, graph, shapes, matches)
    data = {
        "sides": sides,
        "trajectory": None,
        "matching": True,
        "verdict": {"names": [profile.model, ""], "start": "", "checks": None, "cautions": []},
    }
    return _page(f"Matching: {_counts(sides)}", profile, data)


def _page(title: str, profile: BaseProfile, data: dict[str, Any]) -> str:
    scripts = [_asset(name) for name in _SCRIPTS]
    if data["trajectory"] is not None:
        scripts += [_plotly(), _asset("trajectory.js")]
    parts = {
        "title": escape(title),
        "style": _asset("page.css"),
        "facts": _facts(profile),
        "data": _embedded(data),
        "scripts": "\n".join(f"<script>\n{code}\n</script>" for code in scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda hit: parts[hit[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return files("flerm_fx.dump.report").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    """Return plotly.js (MIT), as the Python package holds it, with its notice."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise InputError(
            "the report draws the profile's trajectory with plotly, which is not installed; "
            "install it with: pip install 'flerm_fx[viz]'"
        ) from error
    return str(get_plotlyjs())


def _embedded(data: Any) -> str:
    """Return JSON that ends no script element and opens no comment, whatever names hold."""
    text = json_text(data, indent=None)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _counts(sides: Sequence[dict[str, Any]]) -> str:
    return " and ".join(
        f"{side['title']} of {len(side['parameters'])} parameters" for side in sides
    )


def _facts(profile: BaseProfile) -> str:
    """Return how the base was recorded, as a list of terms."""
    steps = profile.trajectory.steps
    recorded = f"{steps[0]} to {steps[-1]}, {len(steps)} recorded" if steps else "none recorded"
    facts = {
        "optimizer": profile.optimizer.source,
        "learning rate": ", ".join(
            f"{rate:g}" for rate in dict.fromkeys(profile.optimizers.learning_rates)
        ),
        "loss": profile.loss or "the caller's",
        "mode": "training" if profile.training else "evaluation",
        "settle": profile.settle,
        "method": profile.method,
        "relative error": profile.rtol,
        "seed": profile.seed,
        "steps": recorded,
        "flerm_fx": profile.versions.get("flerm_fx", "unknown"),
    }
    return "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(shown(value))}</dd></div>"
        for term, value in facts.items()
    )
