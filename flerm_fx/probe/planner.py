"""A plan says which method reaches the tolerance for the least work."""

import math
from dataclasses import dataclass
from typing import Literal

from flerm_fx.probe.cotangent import Cotangents
from flerm_fx.probe.workload import Workload

Method = Literal["auto", "exact", "sampled", "live", "full_cov", "iid", "kronecker"]
METHODS = ("auto", "exact", "sampled", "live", "full_cov", "iid", "kronecker")

EXACT_BASE, EXACT_PER_PASS = 2.5, 1.05
"""Forward passes of the exact method: the linearisation, and what a tangent takes that passes all
of the graph."""

SAMPLED_BASE, SAMPLED_PER_DRAW = 2.2, 1.7
"""Forward passes of the sampled method: of the m draws that share one forward pass, each is a
backward pass."""

UNEQUAL = 1.4
"""How many times the draws that equal examples need are to be expected: 1.4 to 1.7 were needed
where there are few examples. One is one: with hundreds of examples there is room to spare."""

UNGRAPHED_TANGENT, UNGRAPHED_EXAMPLE = 7.0, 0.3
"""The same without a graph: of one parameter's tangent, and of one example's run or gradient."""


@dataclass(frozen=True)
class Plan:
    """A ``Plan`` says what to do, and what it takes.

    Attributes:
        cotangents: what the sampled method draws; None for the exact method's tangents.
        cost: predicted work in forward passes.
    """

    cotangents: Cotangents | None
    cost: float


def exact_cost(work: Workload) -> float:
    """Forward passes that the exact method takes."""
    if work.ungraphed:
        return UNGRAPHED_TANGENT * work.parameters
    return EXACT_BASE + EXACT_PER_PASS * work.passes


def sampled_cost(work: Workload, examples: int, coordinates: int, draws: int) -> float:
    """Forward passes that m draws take, of N examples with K coordinates."""
    random = examples * coordinates * draws * work.per_random_number
    return SAMPLED_BASE + SAMPLED_PER_DRAW * draws + random


def draws_needed(rtol: float, examples: int, coordinates: int) -> int:
    r"""Draws m at which the FSLR's relative standard error is ``rtol``.

    .. math:: \tfrac12 \sqrt{r(K, m) / N} = \mathrm{rtol}, \quad r = \frac{2 (K - m)}{m (K + 2)}

    gives :math:`m = 2K / (2 + c (K + 2))` with :math:`c = 4 N \mathrm{rtol}^2`, if all examples
    change equally. From K / 2 on it is K, where nothing is left to sample: that costs at most twice
    as much, and a few directions left out would have a standard error, but heavy tails.

    >>> draws_needed(0.05, examples=20, coordinates=10_000)
    10
    """
    c = 4.0 * examples * rtol**2
    draws = max(1, math.ceil(2 * coordinates / (2 + c * (coordinates + 2))))
    return coordinates if 2 * draws >= coordinates else draws


def plan(work: Workload, *, rtol: float, examples: int, coordinates: int) -> Plan:
    """Return the cheapest that reaches ``rtol``: tangents, every coordinate, or random cotangents.

    >>> many = Workload(parameters=12, passes=6.0, per_random_number=0.0, ungraphed=False)
    >>> plan(many, rtol=0.05, examples=256, coordinates=10).cotangents.draws
    1
    """
    draws = draws_needed(rtol, examples, coordinates)
    kinds = (
        Cotangents(examples, coordinates, coordinates, every=True),
        Cotangents(examples, coordinates, draws),
    )
    expected = [coordinates, draws if draws == 1 else min(round(UNEQUAL * draws), coordinates)]
    sampled = [
        Plan(kind, sampled_cost(work, examples, coordinates, m))
        for kind, m in zip(kinds, expected, strict=True)
    ]
    return min([Plan(None, exact_cost(work)), *sampled], key=lambda p: p.cost)
