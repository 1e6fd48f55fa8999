"""This module finds which base parameters the parameters of a captured model answer to."""

from collections.abc import Iterator, Mapping, Sequence

from flerm_fx.align.aligning import Match, OnUnmatched, align, unanswered
from flerm_fx.align.doubts import doubts_of, paragraph
from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.align.patterns import Mapped
from flerm_fx.boundary.warned import warn
from flerm_fx.capture.captured import Capture
from flerm_fx.errors import MatchError, MatchWarning, shown
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.recipe.optimizers import Optimizers

Shares = Sequence[tuple[str, float]]
"""Base parameters, each with the share of its mass."""


def find_matches(
    profile: BaseProfile,
    captured: Capture,
    mapping: Mapped | None,
    on_unmatched: OnUnmatched,
    *,
    strict: bool = False,
) -> dict[str, Match]:
    """Match the target's parameters with the base's.

    Warns:
        MatchWarning: something speaks against the matches of some parameters.
        UserWarning: with ``on_unmatched="unit"``, parameters are left without a counterpart.

    Raises:
        MatchError: they are, otherwise; or with ``strict``, in place of a MatchWarning.
    """
    graph = capture_graph(captured)
    matches = align(profile.graph, graph, mapping, on_unmatched)
    doubts = doubts_of(matches)
    if doubts and strict:
        raise MatchError(f"strict=True refuses what is not certain: {paragraph(doubts)}")
    if doubts:
        warn(paragraph(doubts), MatchWarning, stacklevel=3)
    left_base = unanswered(profile.graph, matches.values())
    left = [name for name, match in matches.items() if not match.base and graph.nodes[name]["op"]]
    if on_unmatched == "unit" and (left or left_base):
        warn(
            f"{len(left)} parameters of the model have no counterpart in the base and keep a "
            f"multiplier of 1 ({_some(left)}), and {len(left_base)} of the base have none in the "
            f"model ({_some(left_base)})",
            stacklevel=3,
        )
    return matches


def leader(run: Optimizers, shares: Shares) -> str:
    """Return the base parameter whose group a target's parameter is in: the first one that
    trains.
    """
    return next((b for b, _ in shares if run.rate(b)), shares[0][0])


def wanted(run: Optimizers, shares: Shares, fslrs: Mapping[str, float]) -> float:
    r"""Return the FSLR that a parameter of the target has to meet.

    .. math:: \sum_b \mathrm{share}_b \frac{\mathrm{lr}_b}{\mathrm{lr}} \mathrm{FSLR}_b

    where lr is the rate of the group that the parameter is in, as its :func:`leader` is. What the
    base changes in a step is FSLR times rate, and layers that share a counterpart may have rates of
    their own.

    >>> from flerm_fx.recipe.update_rule import UpdateRule
    >>> rule = UpdateRule.from_name("SGD")
    >>> run = Optimizers((rule, rule), (0.5, 1.0), {"a": 0, "b": 1})
    >>> wanted(run, (("a", 0.5), ("b", 0.5)), {"a": 1.0, "b": 1.0})
    1.5
    """
    return sum(share * fslrs[b] * ratio for b, share, ratio in _parts(run, shares))


def wanted_estimate(run: Optimizers, shares: Shares, fslrs: Mapping[str, Estimate]) -> Estimate:
    """Return the same as :func:`wanted` with an error, for which those of the base's FSLRs add up.

    >>> from flerm_fx.recipe.update_rule import UpdateRule
    >>> run = Optimizers((UpdateRule.from_name("SGD"),), (0.5,), {})
    >>> fslrs = {"a": Estimate(1.0, 0.5, "sampled", 4), "b": Estimate(3.0, 0.5, "sampled", 4)}
    >>> wanted_estimate(run, (("a", 0.5), ("b", 0.5)), fslrs)
    Estimate(value=2.0, stderr=0.5, method='sampled', samples=8, note='')
    """
    return Estimate.total(fslrs[b] * share * ratio for b, share, ratio in _parts(run, shares))


def _parts(run: Optimizers, shares: Shares) -> Iterator[tuple[str, float, float]]:
    """Return the base parameters, each with its share and its rate over the leader's."""
    lr = run.rate(leader(run, shares)) if shares else 0.0
    for b, share in shares:
        yield b, float(share), run.rate(b) / lr if lr else 1.0


def held_as_matched(
    profile: BaseProfile, captured: Capture, matches: Mapping[str, Match]
) -> dict[str, int]:
    """Return the group of each parameter: that of the base parameter that it answers to.

    One without a counterpart goes where most base parameters of as many dimensions are, since
    rules such as Muon take matrices only.
    """
    if not profile.optimizers.others:
        return {}
    run = profile.optimizers
    by_rank: dict[int, list[int]] = {}
    for name, shape in profile.shapes.items():
        by_rank.setdefault(len(shape), []).append(run.index(name))
    held = {}
    for name, parameter in captured.parameters.items():
        base = matches[name].base
        alike = by_rank.get(parameter.ndim, [0])
        held[name] = run.index(leader(run, base)) if base else max(set(alike), key=alike.count)
    return held


def _some(names: list[str]) -> str:
    some = ", ".join(map(shown, names[:3])) or "none"
    return some + ", …" * (len(names) > 3)
