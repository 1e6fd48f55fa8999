"""Which method reaches the tolerance for the least work."""

import math
from dataclasses import dataclass
from typing import Literal

from flerm_fx.probe.cotangent import Cotangents

Method = Literal["auto", "exact", "sampled", "full_cov", "iid", "kronecker"]
METHODS = ("auto", "exact", "sampled", "full_cov", "iid", "kronecker")

EXACT_PER_PARAMETER = 2.3
"""Forward passes per tangent of the exact method: 2.1 to 2.7 in ``make bench``."""

SAMPLED_BASE, SAMPLED_PER_DRAW = 9.0, 1.6
"""Forward passes of the sampled method, m draws sharing one forward pass: 10 to 13 for one draw, 24
to 29 for ten in ``make bench``."""


@dataclass(frozen=True)
class Plan:
    """What to do, and what it takes.

    Attributes:
        cotangents: what the sampled method draws; None for the exact method's tangents.
        cost: predicted work in forward passes.
    """

    cotangents: Cotangents | None
    cost: float


def exact_cost(parameters: int) -> float:
    """Forward passes that the exact method takes for L parameters."""
    return 1.0 + EXACT_PER_PARAMETER * parameters


def sampled_cost(draws: int) -> float:
    """Forward passes that m draws take."""
    return SAMPLED_BASE + SAMPLED_PER_DRAW * draws


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


def plan(*, rtol: float, parameters: int, examples: int, coordinates: int) -> Plan:
    """The cheapest that reaches ``rtol``: tangents, every coordinate, or random cotangents.

    >>> plan(rtol=0.05, parameters=12, examples=256, coordinates=10).cotangents.draws
    1
    """
    draws = draws_needed(rtol, examples, coordinates)
    candidates = [
        Plan(None, exact_cost(parameters)),
        Plan(Cotangents(examples, coordinates, coordinates, every=True), sampled_cost(coordinates)),
        Plan(Cotangents(examples, coordinates, draws), sampled_cost(draws)),
    ]
    return min(candidates, key=lambda p: p.cost)
