"""This module tells where a law holds: what its points, its curvature and its largest size say of
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from flerm_fx.laws.points import Point, Role, named, spread_of
from flerm_fx.laws.regression import (
    Line,
    axes_of,
    fit_points,
    fitted,
    on_axes,
    reach,
    shrinkage,
)
from flerm_fx.laws.student import quantile

DRIFT = 0.2
"""By how much an exponent changes while a size grows by a factor of e, the root mean square over
roles: 0.1 at the first step of a transformer, 0.3 after settling, from what laws of up to 8 times
the width miss at 16 times (``python -m experiments.laws``)."""

KNOWN = 0.5
"""How much of a law's drift is what was seen in other models (:data:`DRIFT`), whatever its own
roles miss: they bend together, and say little more than one of them does."""

CURVED = 0.99
"""Level at which a curvature is told from none: a law of 30 roles has a false one every third
time."""

BEND = 0.1
"""Logarithm by which a line has to miss the largest size to be worth a word."""

DISAGREE = 0.5
"""Spread of one role's parameters, as a logarithm, above which they have no multiplier in common.
Initial weights and batches make it 0.2 to 0.3."""

SUPPORTED = 0.5
"""Half width of an exponent's interval above which it tells nothing: -1 and 0, which are what muP
has, are both as likely as what lies between."""


@dataclass(frozen=True)
class Finding:
    """A ``Finding`` says where a law does not hold, or is not known to.

    Attributes:
        role: the role's name; empty for the law as a whole.
        kind: in a word or two, such as ``"curvature"``.
        text: what the figures are, and what to do.
    """

    role: str
    kind: str
    text: str


@dataclass(frozen=True)
class HeldOut:
    """A ``HeldOut`` says how well the law of the other sizes predicts the largest.

    Attributes:
        predicted: logarithm of the multiplier there.
        measured: the same, the mean over its models.
        low: lower end of the interval that the measured one was to be in.
        high: upper end of it.
        error: standard error of the difference, where exponents do not drift.
        reach: of the largest from the others (:func:`flerm_fx.laws.regression.reach`).
    """

    predicted: float
    measured: float
    low: float
    high: float
    error: float
    reach: float

    @property
    def miss(self) -> float:
        """The measured less the predicted."""
        return self.measured - self.predicted


def held_out(points: Sequence[Point], role: Role, level: float) -> HeldOut | None:
    """Predict the largest models by the line of the others.

    Returns:
        None where there are no others, or they have not moved what the largest have.
    """
    most = max(point.parameters for point in points)
    largest = [point for point in points if point.parameters == most]
    rest = [point for point in points if point.parameters < most]
    if not rest or axes_of([p.log_sizes for p in rest]) != axes_of([p.log_sizes for p in points]):
        return None
    line = fit_points(rest, role)
    measured = fmean(point.log_multiplier for point in largest)
    place = on_axes(line.axes, largest[0].log_sizes)
    scatter = line.scatter * shrinkage(place)
    own = math.sqrt(fmean(scatter**2 + point.error**2 for point in largest) / len(largest))
    value, error = line.at(place)
    beyond = reach(place, [on_axes(line.axes, point.log_sizes) for point in rest])
    error = math.hypot(error, own, role.error_of_base(line.scatter))
    half = quantile(level, line.freedom) * math.hypot(error, DRIFT * beyond)
    return HeldOut(value, measured, value - half, value + half, error, beyond)


def drift_of(tested: Iterable[HeldOut]) -> float:
    r"""Return by how much a law's exponents drift while a size grows by a factor of e.

    It is the :math:`\kappa` at which all roles r miss their largest size as they should,

    .. math:: \frac12 \frac{\kappa_0^2}{\kappa^2}
              + \frac12 \frac1R \sum_r \frac{m_r^2}{\sigma_r^2 + \kappa^2 g_r^2} = 1

    with the misses :math:`m_r`, their standard errors :math:`\sigma_r` without a drift, and the
    reach :math:`g_r`: the estimate of Paule and Mandel (1982), drawn to :data:`DRIFT`, which it is
    where nothing was held out.

    >>> drift_of([])
    0.2
    >>> round(drift_of([HeldOut(0.0, 1.0, -0.1, 0.1, error=0.1, reach=1.0)]), 2)
    0.71
    """
    far = [each for each in tested if each.reach]
    if not far:
        return DRIFT
    missed, error, beyond = (
        np.array([getattr(each, name) for each in far]) for name in ("miss", "error", "reach")
    )
    low, high = 0.0, 2 * (DRIFT + float(np.max(np.abs(missed) / beyond)))
    for _ in range(50):
        drift = (low + high) / 2
        own = float(np.mean(missed**2 / (error**2 + (drift * beyond) ** 2)))
        excess = KNOWN * (DRIFT / drift) ** 2 + (1 - KNOWN) * own
        low, high = (drift, high) if excess > 1 else (low, drift)
    return drift


def findings(
    role: Role, points: Sequence[Point], line: Line, tested: HeldOut | None
) -> tuple[Finding, ...]:
    """Return what speaks against the law of one role."""
    texts = [
        *_moves_without_size(points, line),
        *_too_few(points, line),
        *_unsupported(line, len(role.shape)),
        *_curved(points, line, role),
        *_apart_from_the_base(points, line),
        *_disagreeing(points),
        *_missed(tested),
    ]
    return tuple(Finding(role.name, kind, text) for kind, text in texts)


_Found = Iterator[tuple[str, str]]


def _moves_without_size(points: Sequence[Point], line: Line) -> _Found:
    average = fmean(point.log_multiplier for point in points)
    if not line.axes and abs(average) > DISAGREE:
        yield (
            "no axis",
            "none of its dimensions differs from the base's in any model, and its multiplier is "
            f"{math.exp(average):.2g} on average; it is predicted as 1",
        )


def _sizes(points: Sequence[Point], line: Line) -> set[tuple[float, ...]]:
    places = {tuple(round(x, 6) for x in on_axes(line.axes, p.log_sizes)) for p in points}
    return {place for place in places if any(place)}


def _too_few(points: Sequence[Point], line: Line) -> _Found:
    sizes = len(_sizes(points, line))
    if line.axes and sizes <= len(line.axes):
        yield (
            "too few sizes",
            f"{sizes} size{'' if sizes == 1 else 's'} beside the base for {len(line.axes)} "
            f"exponent{'' if len(line.axes) == 1 else 's'} cannot show whether powers of size hold "
            "at all; fit another one",
        )


def _unsupported(line: Line, rank: int) -> _Found:
    for axis, (low, high) in zip(line.axes, line.interval(), strict=True):
        if (high - low) / 2 > SUPPORTED:
            yield (
                "exponent",
                f"the exponent of {named(axis, rank)} is between {low:.2f} and {high:.2f} at 90 %, "
                "which tells nothing; fit more seeds or sizes",
            )


def _curved(points: Sequence[Point], line: Line, role: Role) -> _Found:
    if len(line.axes) != 1 or len(_sizes(points, line)) < 2:
        return
    x = [on_axes(line.axes, point.log_sizes)[0] for point in points]
    y, errors = [p.log_multiplier for p in points], [p.error for p in points]
    curve = fitted(
        (*line.axes, *line.axes),
        [(a, a * abs(a)) for a in x],
        y,
        errors,
        role.base_error,
        role.recordings,
    )
    bend, error = curve.exponents[1], curve.stderrs[1]
    if curve.freedom < 1 or abs(bend) <= quantile(CURVED, curve.freedom) * error:
        return
    most = max(x, key=abs)
    apart = curve.at((most, most * abs(most)))[0] - curve.exponents[0] * most
    if abs(apart) > BEND:
        local = curve.exponents[0] + 2 * bend * abs(most)
        yield (
            "curvature",
            f"the exponent is {curve.exponents[0]:.2f} at the base and {local:.2f} at "
            f"{math.exp(most):.3g} times its size, so no one power holds; start from a larger base",
        )


def _apart_from_the_base(points: Sequence[Point], line: Line) -> _Found:
    """Compare the base with a line that need not go through it.

    What a base is off by in all multipliers alike is taken for its error and told from exponents. A
    measurement of the target has it all the same, and a prediction has not.
    """
    places = [(*on_axes(line.axes, point.log_sizes), -1.0) for point in points]
    if not line.axes or np.linalg.matrix_rank(np.array(places)) < len(places[0]):
        return
    free = fitted(
        (*line.axes, ()),
        places,
        [point.log_multiplier for point in points],
        [point.error for point in points],
        common=0.0,
        recordings=math.inf,
    )
    off, error = -free.exponents[-1], free.stderrs[-1]
    if free.freedom < 1 or abs(off) <= max(quantile(CURVED, free.freedom) * error, DISAGREE):
        return
    yield (
        "base",
        f"the larger models lie on a line that is {math.exp(off):.2g} at the base's size, where "
        "the base is 1, so it is not one of them; record it at its best rate and under more "
        "seeds, let it settle for longer, or start from a larger one",
    )


def _disagreeing(points: Sequence[Point]) -> _Found:
    spread = spread_of(points)
    noise = math.sqrt(fmean(point.noise**2 for point in points))
    if spread > max(DISAGREE, 2 * noise):
        yield (
            "disagreeing blocks",
            f"multipliers of its parameters in one model differ by a factor of "
            f"{math.exp(spread):.2g}, so that one law for all of them is the mean of several; "
            "record more seeds of the base",
        )


def _missed(tested: HeldOut | None) -> _Found:
    if tested and abs(tested.miss) > BEND and not tested.low <= tested.measured <= tested.high:
        yield (
            "largest size",
            f"the other sizes predict {math.exp(tested.predicted):.3g} at the largest, and "
            f"{math.exp(tested.measured):.3g} was measured, outside of the interval of 90 %",
        )
