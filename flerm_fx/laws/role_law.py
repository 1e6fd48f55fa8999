"""The law of one role says how far it reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flerm_fx.errors import LawError, shown
from flerm_fx.laws.holding import DRIFT, Finding, HeldOut, findings, held_out
from flerm_fx.laws.points import Point, Role, named, spread_of
from flerm_fx.laws.regression import Line, fit_points, on_axes, reach
from flerm_fx.laws.student import freedom_of, quantile

LEVEL = 0.9
"""Of intervals."""

OF_DRIFT = 4
"""Degrees of freedom of a law's drift, half of which is what one law tells of it."""

UNMOVED = math.log(1.05)
"""A dimension that a fit has not moved may be so much larger, as a vocabulary that is padded."""

APART = 0.1
"""Dimensions that have moved as one in a fit may differ by this part of the larger logarithm."""


@dataclass(frozen=True)
class Prediction:
    """A ``Prediction`` is the multiplier of one parameter that a law gives.

    Attributes:
        multiplier: the learning-rate multiplier m_l.
        low: lower end of its interval, of 90 %.
        high: upper end of it.
        error: standard error of its logarithm.
    """

    multiplier: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class RoleLaw:
    """A ``RoleLaw`` is the law of one role.

    Attributes:
        role: which parameters.
        points: what it was fitted to.
        line: the fit.
        held_out: how well the other sizes predict the largest; None where they say nothing of it.
        findings: where it does not hold, or is not known to.
        drift: of its exponents, while a size grows by a factor of e
            (:func:`flerm_fx.laws.holding.drift_of`).
    """

    role: Role
    points: tuple[Point, ...]
    line: Line
    held_out: HeldOut | None
    findings: tuple[Finding, ...]
    drift: float = DRIFT

    @classmethod
    def fit(cls, role: Role, points: tuple[Point, ...]) -> RoleLaw:
        """Return the law of a role's points."""
        line = fit_points(points, role)
        tested = held_out(points, role, LEVEL)
        return cls(role, points, line, tested, findings(role, points, line, tested))

    @property
    def _places(self) -> list[tuple[float, ...]]:
        """Of the points, on the axes."""
        return [on_axes(self.line.axes, point.log_sizes) for point in self.points]

    def predict(self, log_sizes: Sequence[float], share: float) -> Prediction:
        """Return the multiplier at a size within :meth:`obstacle`'s reach.

        Its error is that of the line, of exponents that drift beyond the largest size, and of one
        parameter about the mean over its role.

        Args:
            log_sizes: as those of a point, with the depth.
            share: of the base's mass.

        Raises:
            LawError: the multiplier is no finite number above 0.
        """
        place = on_axes(self.line.axes, log_sizes)
        value, error = self.line.at(place)
        own = math.hypot(error if place else self.line.residual, spread_of(self.points))
        parts = (own, self.line.freedom), (self.drift * reach(place, self._places), OF_DRIFT)
        error = math.hypot(*(part for part, _ in parts))
        half = error * quantile(LEVEL, freedom_of(parts)) if error else 0.0
        low, high = (_exp(value + end) for end in (-half, half))
        multiplier = share * _exp(value)
        if not 0 < multiplier < math.inf:
            raise LawError(
                f"{shown(self.role.name)}: its multiplier there is {multiplier}; the law does not "
                "reach so far, so fit larger models"
            )
        return Prediction(multiplier, share * low, share * high, error)

    @property
    def knows_depth(self) -> bool:
        """Whether models of the fit were deeper, or less deep, than the base."""
        return any(len(self.role.shape) in axis for axis in self.line.axes)

    def is_below(self, log_sizes: Sequence[float]) -> bool:
        """Tell whether a size is below the base's and all that were fitted."""
        least = [min(0.0, *column) for column in zip(*self._places, strict=True)]
        place = on_axes(self.line.axes, log_sizes)
        return any(x < low - UNMOVED for x, low in zip(place, least, strict=True))

    def obstacle(self, log_sizes: Sequence[float]) -> str:
        """Return why a law says nothing of these sizes; empty if it does."""
        axes, rank = self.line.axes, len(self.role.shape)
        moved = {k for axis in axes for k in axis}
        for k, x in enumerate(log_sizes[:rank]):  # of a depth that has not, mass is conserved
            if k not in moved and abs(x) > UNMOVED:
                return (
                    f"its dimension {k} is {math.exp(x):.4g} times the base's, and no model that "
                    "the law was fitted to has moved it; fit one more in which it differs"
                )
        for axis in axes:
            own = [log_sizes[k] for k in axis]
            if max(own) - min(own) > max(APART * max(map(abs, own)), UNMOVED):
                ratios = " and ".join(f"{math.exp(log_sizes[k]):.4g}" for k in axis)
                return (
                    f"its {named(axis, rank)} are {ratios} times the base's, and in the models "
                    "that the law was fitted to they grow as one; fit one more in which they do not"
                )
        if len(axes) < 2:
            return ""
        place = np.array(on_axes(axes, log_sizes))
        design = np.array(self._places)
        left = place - np.linalg.pinv(design, rcond=0.05) @ (design @ place)
        if np.linalg.norm(left) > APART * np.linalg.norm(place):
            return (
                "its sizes have grown in one proportion alone in the models that the law was "
                "fitted to, and it has another; fit one more in which they do not"
            )
        return ""


def _exp(log: float) -> float:
    """Return an exponential, which is infinite where it is more than a number holds."""
    return math.exp(log) if log < 700 else math.inf
