"""An architecture of several depths, and whether it is matched as its names tell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    import networkx as nx

from flerm_fx.align.aligning import Match, align
from flerm_fx.align.parameter_graph import capture_graph, parameters
from flerm_fx.align.patterns import mapped_shares
from flerm_fx.capture.tracing import capture
from flerm_fx.errors import MatchError
from flerm_fx.model.inputs import Inputs
from zoo.graphs import kept
from zoo.verdicts import Verdict

Depths = tuple[int, ...]
Pair = tuple[Depths, Depths]
Answer = str | Sequence[str]
Rule = Mapping[str, Answer] | Callable[[Pair], Mapping[str, Answer]]


@dataclass(frozen=True)
class Stack:
    """A model of given depths, one for each stage.

    Attributes:
        name: unique among stacks.
        kind: what makes it hard to match.
        build: the model of some depths.
        inputs: a batch that fits all of them.
        pairs: depths of bases and targets.
        rule: what answers to what, as a mapping by patterns, from target to base, for parameters
            that do not answer to those of their own name with a star for each number. A key stands
            for all whose names differ from it in numbers alone.
    """

    name: str
    kind: str
    build: Callable[[Depths], nn.Module]
    inputs: Callable[[], Inputs]
    pairs: Sequence[Pair]
    rule: Rule | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of one pair of depths; the message names what is wrong or in doubt."""

    stack: Stack
    pair: Pair
    verdict: Verdict
    message: str = ""


def outcome(stack: Stack, pair: Pair) -> Outcome:
    """Align two depths of an architecture and compare with what names tell."""
    return judged(stack, pair, graph(stack, pair[0]), graph(stack, pair[1]))


def graph(stack: Stack, depths: Depths) -> nx.DiGraph:
    """The parameter graph of an architecture at some depths."""
    name = "-".join([stack.kind, stack.name, *map(str, depths)])
    return captured(name, lambda: stack.build(depths), stack.inputs())


def captured(name: str, build: Callable[[], nn.Module], inputs: Inputs) -> nx.DiGraph:
    """The parameter graph of a model in training mode, kept under a name."""

    def capturing() -> nx.DiGraph:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return capture_graph(capture(build().train(), inputs))

    return kept(name, capturing)


def judged(stack: Stack, pair: Pair, base: nx.DiGraph, target: nx.DiGraph) -> Outcome:
    """What comes of laying one depth over another."""
    rule = stack.rule(pair) if callable(stack.rule) else stack.rule
    expected = expected_shares(used(base), used(target), rule or {})
    try:
        matches = align(base, target)
    except MatchError as error:
        return Outcome(stack, pair, "refused", str(error))
    return Outcome(stack, pair, *held(matches, expected))


def used(graph: nx.DiGraph) -> list[str]:
    """The parameters of a graph that its output depends on."""
    return [name for name in parameters(graph) if graph.nodes[name]["op"]]


def held(
    matches: Mapping[str, Match], expected: Mapping[str, Mapping[str, float]]
) -> tuple[Verdict, str]:
    """What comes of holding matches to the shares of those that are expected, and why."""
    found = {name: dict(matches[name].base) for name in expected}
    wrong = {
        name: (sorted(found[name]), sorted(shares))
        for name, shares in expected.items()
        if not _same(found[name], shares)
    }
    doubts = {name: str(m.doubt) for name, m in matches.items() if m.doubt is not None}
    if wrong:
        some = "; ".join(f"{n}: {got} for {due}" for n, (got, due) in list(wrong.items())[:3])
        silent: Verdict = "wrong, in doubt" if wrong.keys() <= doubts.keys() else "wrong"
        return silent, f"{len(wrong)} of {len(found)}: {some}"
    return "in doubt" if doubts else "right", "; ".join(list(doubts.values())[:2])


def expected_shares(
    base: Sequence[str], target: Sequence[str], rule: Mapping[str, Answer]
) -> dict[str, dict[str, float]]:
    """Shares of base parameters by target parameter, as names tell.

    >>> expected_shares(["h.0.w", "o.w"], ["h.0.w", "h.1.w", "o.w"], {})["h.1.w"]
    {'h.0.w': 0.5}
    """
    by_names = {re.sub(r"(?<![^.])\d+(?![^.])", "*", name): None for name in target}
    covered = [re.compile(_as_regex(key)) for key in rule]
    mapping = {k: k for k in by_names if not any(r.match(k.replace("*", "0")) for r in covered)}
    turned: dict[str, dict[str, float]] = {name: {} for name in target}
    for other, row in mapped_shares(base, target, {**mapping, **rule}).items():
        for name, share in row.items():
            turned[name][other] = float(share)
    return turned


def _as_regex(pattern: str) -> str:
    return re.sub(r"\\\{\w+\\\}|\\\*", r"\\d+", re.escape(pattern)) + r"(\.|$)"


def _same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(abs(one[k] - other[k]) < 1e-6 for k in one)
