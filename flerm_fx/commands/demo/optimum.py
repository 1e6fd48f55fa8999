"""This module finds where a curve of loss against learning rate is lowest, and compares two
curves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """A ``Curve`` holds losses of one model trained at several rates.

    Attributes:
        name: what was trained, for the legend.
        rates: learning rates, increasing.
        losses: validation losses in nats per byte; NaN for a run that diverged.
    """

    name: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def best(self) -> int:
        """Index of the lowest loss that was measured; -1 if every run diverged."""
        finite = [i for i, loss in enumerate(self.losses) if math.isfinite(loss)]
        return min(finite, key=lambda i: self.losses[i], default=-1)


@dataclass(frozen=True)
class Optimum:
    """An ``Optimum`` is the lowest point of a curve.

    Attributes:
        log2_rate: its place, in octaves of learning rate.
        loss: its height, in nats per byte.
        bracketed: whether the curve rises on both sides of it. If not, the optimum is the edge of
            what was measured, and the true one may lie beyond.
    """

    log2_rate: float
    loss: float
    bracketed: bool


def find_optimum(curve: Curve) -> Optimum:
    r"""Return the vertex of the parabola through the lowest point and its two neighbours.

    With :math:`x = \log_2 \mathrm{lr}` the vertex of the parabola through three points is

    .. math:: x_1 - \frac{(x_1-x_0)^2 (y_1-y_2) - (x_1-x_2)^2 (y_1-y_0)}
                         {2 \left[(x_1-x_0)(y_1-y_2) - (x_1-x_2)(y_1-y_0)\right]}

    A lowest point at the edge, or beside a run that diverged, stands for itself, unbracketed.

    >>> find_optimum(Curve("", (0.25, 0.5, 1.0), (2.0, 1.0, 2.0)))
    Optimum(log2_rate=-1.0, loss=1.0, bracketed=True)
    """
    best = curve.best
    if best < 0:
        return Optimum(math.nan, math.nan, False)
    x = [math.log2(rate) for rate in curve.rates]
    around: Sequence[int] = (best - 1, best, best + 1)
    if best == 0 or best == len(x) - 1 or any(math.isnan(curve.losses[i]) for i in around):
        return Optimum(x[best], curve.losses[best], False)
    (x0, x1, x2), (y0, y1, y2) = [x[i] for i in around], [curve.losses[i] for i in around]
    left, right = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
    if left == right:  # three equal losses
        return Optimum(x1, y1, True)
    vertex = x1 - 0.5 * ((x1 - x0) * left - (x1 - x2) * right) / (left - right)
    slope = (y1 - y0) / (x1 - x0)
    curvature = ((y2 - y1) / (x2 - x1) - slope) / (x2 - x0)
    loss = y0 + slope * (vertex - x0) + curvature * (vertex - x0) * (vertex - x1)
    return Optimum(vertex, loss, True)


@dataclass(frozen=True)
class Transfer:
    """A ``Transfer`` says what became of the small model's best rate on a large one.

    Attributes:
        octaves: how far the optimum moved, in factors of two of the learning rate.
        cost: loss of the large model at the small one's best rate minus the large one's own best,
            both as measured, in nats per byte; infinite if the run diverged.
        bracketed: whether both optima lie inside the rates that were tried.
    """

    octaves: float
    cost: float
    bracketed: bool


def measure_transfer(small: Curve, large: Curve) -> Transfer:
    """Compare two curves over the same rates.

    >>> small = Curve("small", (0.25, 0.5, 1.0), (2.0, 1.0, 2.0))
    >>> measure_transfer(small, small)
    Transfer(octaves=0.0, cost=0.0, bracketed=True)
    """
    here, there = find_optimum(small), find_optimum(large)
    if small.best < 0 or large.best < 0:
        return Transfer(math.nan, math.inf, False)
    cost = large.losses[small.best] - large.losses[large.best]
    return Transfer(
        octaves=there.log2_rate - here.log2_rate,
        cost=math.inf if math.isnan(cost) else cost,
        bracketed=here.bracketed and there.bracketed,
    )


def verdict(small: Curve, standard: Curve, compiled: Curve, width: int) -> str:
    """Say in one sentence how far the optimum moved, and what the small model's best rate costs.

    >>> small = Curve("small", (0.25, 0.5, 1.0, 2.0), (2.0, 1.5, 1.0, 1.5))
    >>> large = Curve("large", (0.25, 0.5, 1.0, 2.0), (1.5, 1.0, 1.5, 2.0))
    >>> print(verdict(small, large, small, 4))  # doctest: +NORMALIZE_WHITESPACE
    Making the model 4 times wider moved the best learning rate by -1.0 octaves in standard
    training and by +0.0 octaves after flerm_fx.compile; the small model's best rate, 1, costs the
    large one 0.500 nats per byte over its own best in standard training and 0.000 after
    flerm_fx.compile.
    """
    if small.best < 0:
        return "The small model diverged at every rate, so there is no best one to carry over."
    without, with_compile = measure_transfer(small, standard), measure_transfer(small, compiled)
    sentence = (
        f"Making the model {width} times wider moved the best learning rate by "
        f"{_octaves(without)} in standard training and by {_octaves(with_compile)} after "
        f"flerm_fx.compile; the small model's best rate, {small.rates[small.best]:.3g}, costs the "
        f"large one {_cost(without)} nats per byte over its own best in standard training and "
        f"{_cost(with_compile)} after flerm_fx.compile."
    )
    if not (without.bracketed and with_compile.bracketed):
        sentence += (
            " (An optimum lies at the edge of the rates tried, or beside a diverged run: "
            "other --rates would place it.)"
        )
    return sentence


def _octaves(transfer: Transfer) -> str:
    if math.isnan(transfer.octaves):
        return "nobody knows how many octaves (every run diverged)"
    return f"{round(transfer.octaves, 1) + 0.0:+.1f} octaves"  # + 0.0 turns -0.0 into 0.0


def _cost(transfer: Transfer) -> str:
    return "infinitely many (it diverges)" if math.isinf(transfer.cost) else f"{transfer.cost:.3f}"
