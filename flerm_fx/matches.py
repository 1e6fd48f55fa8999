"""Which base parameters the parameters of a captured model answer to."""

import warnings
from collections.abc import Mapping

from flerm_fx.align import Mapped, Match, OnUnmatched, align, unanswered
from flerm_fx.capture import Capture
from flerm_fx.parameter_graph import capture_graph
from flerm_fx.profile import BaseProfile


def matched(
    profile: BaseProfile, captured: Capture, mapping: Mapped | None, on_unmatched: OnUnmatched
) -> dict[str, Match]:
    """Matches of the target's parameters.

    Warns:
        UserWarning: with ``on_unmatched="unit"``, parameters are left without a counterpart.

    Raises:
        MatchError: they are, otherwise.
    """
    graph = capture_graph(captured)
    matches = align(profile.graph, graph, mapping, on_unmatched)
    left_base = unanswered(profile.graph, matches.values())
    left = [name for name, match in matches.items() if not match.base and graph.nodes[name]["op"]]
    if on_unmatched == "unit" and (left or left_base):
        warnings.warn(
            f"{len(left)} parameters of the model have no counterpart in the base and keep a "
            f"multiplier of 1 ({_some(left)}), and {len(left_base)} of the base have none in the "
            f"model ({_some(left_base)})",
            stacklevel=3,
        )
    return matches


def held_as_matched(
    profile: BaseProfile, captured: Capture, matches: Mapping[str, Match]
) -> dict[str, int]:
    """The optimizer of each parameter: that of the base parameter that it answers to.

    One without a counterpart goes where most base parameters of as many dimensions are, since
    rules such as Muon take matrices only.
    """
    if not profile.others:
        return {}
    by_rank: dict[int, list[int]] = {}
    for name, shape in profile.shapes.items():
        by_rank.setdefault(len(shape), []).append(profile.optimizers.index(name))
    held = {}
    for name, parameter in captured.parameters.items():
        base = matches[name].base
        alike = by_rank.get(parameter.ndim, [0])
        held[name] = (
            profile.optimizers.index(base[0][0]) if base else max(set(alike), key=alike.count)
        )
    return held


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return shown + ", …" * (len(names) > 3)
