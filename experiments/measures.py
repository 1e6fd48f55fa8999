"""What the curves say: where each is lowest, how far that moved, and what not knowing it costs."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.store import Result

Losses = NDArray[np.float64]

AROUND = 2.7
"""Octaves on each side of a curve's lowest point that the parabola is fitted through: three steps
of the grid. Through two, optima scatter a third more from seed to seed."""

# Two-sided 95 % of Student's t, by degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Optimum:
    """The lowest point of a curve: log2 of the rate, the loss, and whether it lies inside."""

    log2_rate: float
    loss: float
    inside: bool


@dataclass(frozen=True)
class Transfer:
    """What became of the base's best rate at another scale.

    Attributes:
        scale: of the model.
        seeds: how many there are of each run.
        shift: octaves from the base's optimum to this one's, mean over seeds.
        interval: half the width of its 95 % interval over seeds; NaN for one seed.
        inside: whether all optima lie inside the grid.
        loss: at the base's best rate, mean over seeds.
        best: the lowest on the grid, mean over seeds.
        collapse: root mean square difference between this curve and the base's, each above its own
            lowest, over the rates within two steps of the base's best; infinite if a run diverged
            there on one side alone.
    """

    scale: float
    seeds: int
    shift: float
    interval: float
    inside: bool
    loss: float
    best: float
    collapse: float

    @property
    def regret(self) -> float:
        """What using the base's best rate costs: ``loss - best``, in nats."""
        return self.loss - self.best


def curve(results: Iterable[Result], scale: float, rates: Sequence[float], seed: int) -> Losses:
    """Losses at the rates; NaN where there is no result, infinite where the run diverged."""
    found = {r.run.rate: r.loss for r in results if r.run.scale == scale and r.run.seed == seed}
    return np.array([found.get(rate, math.nan) for rate in rates])


def complete(results: Iterable[Result], scale: float, rates: Sequence[float]) -> list[int]:
    """The seeds that have a result at every rate."""
    there: dict[int, set[float]] = defaultdict(set)
    for result in results:
        if result.run.scale == scale:
            there[result.run.seed].add(result.run.rate)
    return sorted(seed for seed, found in there.items() if found >= {*rates})


def seed_mean(
    results: Sequence[Result], scale: float, rates: Sequence[float], seeds: Iterable[int]
) -> Losses:
    """Mean over seeds; infinite where a run diverged."""
    mean: Losses = np.mean([curve(results, scale, rates, seed) for seed in seeds], axis=0)
    return mean


def optimum(rates: Sequence[float], losses: Losses) -> Optimum:
    r"""The vertex of a parabola in log2 of the rate, by least squares around the lowest point.

    It is fitted through the points within 2.7 octaves, at least one on each side, and kept between
    the lowest point's neighbours. At the edge of the grid, or beside a run that diverged, the
    lowest point stands for itself.

    >>> found = optimum([0.25, 0.5, 1.0], np.array([2.0, 1.0, 2.0]))
    >>> round(found.log2_rate, 9), found.inside
    (-1.0, True)
    """
    x = np.log2(rates)
    finite = np.isfinite(losses)
    if not finite.any():
        return Optimum(math.nan, math.inf, False)
    best = int(np.argmin(np.where(finite, losses, np.inf)))
    low, high = best - 1, best + 1
    if low < 0 or high >= len(x) or not (finite[low] and finite[high]):
        return Optimum(float(x[best]), float(losses[best]), False)
    inside = (np.abs(x - x[best]) <= AROUND) & finite
    inside[low : high + 1] = True
    near = np.flatnonzero(inside)
    curvature, slope, height = np.polyfit(x[near] - x[best], losses[near], 2)
    if curvature <= 0:
        return Optimum(float(x[best]), float(losses[best]), True)
    vertex = float(np.clip(-slope / (2 * curvature), x[low] - x[best], x[high] - x[best]))
    loss = height + slope * vertex + curvature * vertex**2
    return Optimum(float(x[best] + vertex), float(loss), True)


def transfer(
    base: Sequence[Result],
    results: Sequence[Result],
    scale: float,
    rates: Sequence[float],
    seeds: Sequence[int],
) -> Transfer:
    """Compare a scale with the base, seed by seed."""
    here = [optimum(rates, curve(base, 1, rates, seed)) for seed in seeds]
    there = [optimum(rates, curve(results, scale, rates, seed)) for seed in seeds]
    shifts = np.array([b.log2_rate - a.log2_rate for a, b in zip(here, there, strict=True)])
    base_mean = seed_mean(base, 1, rates, seeds)
    mean = seed_mean(results, scale, rates, seeds)
    best = int(np.argmin(base_mean))
    near = slice(max(best - 2, 0), best + 3)
    heights = np.array([(mean - mean.min())[near], (base_mean - base_mean.min())[near]])
    apart = np.diff(heights[:, ~np.isinf(heights).all(axis=0)], axis=0)
    return Transfer(
        scale=scale,
        seeds=len(seeds),
        shift=float(shifts.mean()),
        interval=half_width(shifts),
        inside=all(o.inside for o in (*here, *there)),
        loss=float(mean[best]),
        best=float(mean.min()),
        collapse=float(np.sqrt(np.mean(apart**2))),
    )


@dataclass(frozen=True)
class Cell:
    """What methods end at where the base is best: losses by method and seed, at one scale."""

    scale: float
    losses: Mapping[str, Mapping[int, float]]

    def mean(self, method: str) -> float:
        """Over the seeds that all methods have."""
        return float(np.mean([self.losses[method][seed] for seed in self.seeds]))

    @property
    def seeds(self) -> list[int]:
        """Those that all methods have."""
        return sorted(set.intersection(*({*found} for found in self.losses.values())))

    def difference(self, method: str, other: str) -> tuple[float, float]:
        """Of the losses, paired by seed: its mean, and half the width of its 95 % interval.

        >>> cell = Cell(4, {"a": {0: 1.0, 1: 2.0}, "b": {0: 0.5, 1: 1.5}})
        >>> cell.difference("a", "b")
        (0.5, 0.0)
        """
        mine, theirs = self.losses[method], self.losses[other]
        apart = np.array([mine[seed] - theirs[seed] for seed in sorted({*mine} & {*theirs})])
        return float(apart.mean()), half_width(apart)


def half_width(values: NDArray[np.float64]) -> float:
    """Half the 95 % interval of the mean, by Student's t.

    >>> round(half_width(np.array([1.0, 3.0])), 3)
    12.706
    """
    count = len(values)
    if count < 2:
        return math.nan
    factor = _STUDENT[min(count - 2, len(_STUDENT) - 1)]
    return float(factor * values.std(ddof=1) / math.sqrt(count))
