"""A power law goes through the base, and has errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flerm_fx.laws.points import Point, Role
from flerm_fx.laws.student import quantile

LEAST_ERROR = 1e-4
"""Of a point, in the logarithm: exact FSLRs in float32 are rounded too."""

TOGETHER = 0.05
"""Dimensions whose ratios' logarithms differ by no more than this part of the largest move as one:
an inner width that is rounded to a multiple of 64 still grows with the width."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    r"""A ``Line`` holds the exponents of a role's multiplier, :math:`\log m = \sum_a e_a \log n_a`.

    Attributes:
        axes: the dimensions that have moved; those that moved as one are one axis.
        exponents: one an axis.
        covariance: of them, of shape (axes, axes).
        scatter: standard deviation of points about the line beyond their own errors, at the base's
            size; see :func:`shrinkage`.
        residual: root mean square of the points about it.
        freedom: points less axes.
    """

    axes: tuple[tuple[int, ...], ...]
    exponents: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    scatter: float
    residual: float
    freedom: int

    @property
    def stderrs(self) -> tuple[float, ...]:
        """Standard errors of the exponents."""
        return tuple(math.sqrt(row[i]) for i, row in enumerate(self.covariance))

    def interval(self, level: float = 0.9) -> tuple[tuple[float, float], ...]:
        """Lower and upper end of each exponent, by the t distribution."""
        t = quantile(level, self.freedom)
        return tuple(
            (e - t * s, e + t * s) for e, s in zip(self.exponents, self.stderrs, strict=True)
        )

    def at(self, sizes: Sequence[float]) -> tuple[float, float]:
        """Return the logarithm of the multiplier at a place on the axes, and its standard error."""
        x = np.asarray(sizes)
        if not x.any():
            return 0.0, 0.0
        return float(x @ self.exponents), math.sqrt(float(x @ np.asarray(self.covariance) @ x))


def axes_of(moved: Sequence[Sequence[float]]) -> tuple[tuple[int, ...], ...]:
    """Return the dimensions that have moved, grouped by those that have moved as one.

    Args:
        moved: logarithms of the dimensions' ratios, a row a point.

    >>> axes_of([(0.7, 0.7, 0.0), (1.4, 1.4, 0.0)])
    ((0, 1),)
    >>> axes_of([(0.7, 0.0), (0.0, 0.7)])
    ((0,), (1,))
    """
    x = np.asarray(moved, dtype=float)
    if not x.size:
        return ()
    largest = float(np.abs(x).max())
    axes: list[list[int]] = []
    for k in range(x.shape[1]):
        if not x[:, k].any():
            continue
        for axis in axes:
            if np.abs(x[:, k] - x[:, axis[0]]).max() <= TOGETHER * largest:
                axis.append(k)
                break
        else:
            axes.append([k])
    return tuple(map(tuple, axes))


def on_axes(axes: Sequence[Sequence[int]], sizes: Sequence[float]) -> tuple[float, ...]:
    """Return a place on the axes: the mean of the dimensions of each.

    >>> on_axes(((0, 1),), (0.5, 0.7, 0.0))
    (0.6,)
    """
    return tuple(sum(sizes[k] for k in axis) / len(axis) for axis in axes)


def fitted(
    axes: tuple[tuple[int, ...], ...],
    x: Sequence[Sequence[float]],
    y: Sequence[float],
    errors: Sequence[float],
    common: float,
    recordings: float,
) -> Line:
    r"""Fit a line through the origin by generalised least squares.

    .. math:: y_i = \sum_a e_a x_{ia} + \delta + \epsilon_i, \quad
              \mathrm{Cov} = \mathrm{diag}(\sigma_i^2 + \tau^2 / n_i) + \sigma_\delta^2 1 1^T

    An error of the base is one and the same in all points, and is told so from the exponents. The
    scatter :math:`\tau`, which initial weights make and which shrinks with the size :math:`n_i`
    (:func:`shrinkage`), is what makes :math:`\chi^2` the number of degrees of freedom, and 0 where
    it is below that already. Axes that the points do not tell apart share the exponent that they
    have together.

    The k recordings of the base scatter as models of its size do, so that
    :math:`\sigma_\delta \ge \tau / \sqrt k`. Where few lie closer by chance, the weights are as
    they say, which leaves the line at the base, and the exponents' covariance is not.

    Args:
        axes: of the columns of ``x``.
        x: places of the points, of shape (points, axes).
        y: logarithms of their multipliers.
        errors: standard errors of ``y``.
        common: standard error that all share, the base's.
        recordings: number k of initial weights that the base is a mean over.
    """
    design, values = np.asarray(x, dtype=float).reshape(len(y), len(axes)), np.asarray(y)
    own = np.maximum(np.asarray(errors), LEAST_ERROR)
    shrunk = np.array([shrinkage(place) for place in x])
    freedom = len(y) - int(np.linalg.matrix_rank(design))

    def solved(scatter: float) -> tuple[Values, Values, float]:
        apart = np.diag(own**2 + (scatter * shrunk) ** 2)
        weights = np.linalg.inv(apart + common**2)
        inverse = np.linalg.pinv(design.T @ weights @ design, rcond=1e-9, hermitian=True)
        solve = inverse @ design.T @ weights
        left = values - design @ solve @ values
        covariance = solve @ (apart + max(common**2, scatter**2 / recordings)) @ solve.T
        return solve @ values, covariance, float(left @ weights @ left)

    scatter = 0.0
    if freedom > 0 and solved(0.0)[2] > freedom:
        low, high = 0.0, float(np.abs(values).max()) + 1.0
        for _ in range(30):
            scatter = (low + high) / 2
            low, high = (scatter, high) if solved(scatter)[2] > freedom else (low, scatter)
    exponents, covariance, _ = solved(scatter)
    left = values - design @ exponents
    return Line(
        axes,
        tuple(map(float, exponents)),
        tuple(tuple(map(float, row)) for row in covariance),
        scatter,
        float(np.sqrt(np.mean(left**2))),
        freedom,
    )


def shrinkage(place: Sequence[float]) -> float:
    """Return what is left of the scatter at a place on the axes: 1 over the root of the size.

    Initial weights are many, and what a mean over n of them comes to varies as n to the power -1/2.

    >>> shrinkage((math.log(4),))
    0.5
    """
    return math.exp(-max(place, default=0.0) / 2)


def reach(place: Sequence[float], places: Sequence[Sequence[float]]) -> float:
    """Return by how much a prediction beyond all places that were fitted misses, for each unit by
    which an exponent drifts while a size grows by a factor of e.

    An exponent that drifts makes a line bend; one that is right up to x misses x' by the drift
    times ``x' (x' - x) / 2``.

    >>> reach((math.log(4),), [(math.log(2),), (math.log(4),)])
    0.0
    """
    furthest = np.abs(np.asarray(places, dtype=float)).max(axis=0, initial=0.0)
    x = np.abs(np.asarray(place, dtype=float))
    return float(np.linalg.norm(x * np.maximum(x - furthest, 0.0))) / 2


def fit_points(points: Sequence[Point], role: Role) -> Line:
    """Return the line of one role's points, on the axes that they have moved."""
    axes = axes_of([point.log_sizes for point in points])
    return fitted(
        axes,
        [on_axes(axes, point.log_sizes) for point in points],
        [point.log_multiplier for point in points],
        [point.error for point in points],
        role.base_error,
        role.recordings,
    )
