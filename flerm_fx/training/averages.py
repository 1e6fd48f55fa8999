"""What is measured again and again while a model trains is averaged."""

import math
from collections.abc import Mapping, Sequence

POINTS = 8
"""Over how many measurements a geometric mean is taken before older ones fade: as many as a start
has (:data:`flerm_fx.recipe.schedule.POINTS`)."""

Sums = dict[str, tuple[float, float]]
"""By parameter, a weighted sum of what was measured, and the sum of the weights."""


class Averages:
    """``Averages`` are weighted means by parameter, of the measurements that it took part in."""

    def __init__(self) -> None:
        self._sums: Sums = {}

    def state(self) -> Sums:
        """Return the sums, from which :meth:`load` goes on."""
        return dict(self._sums)

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go back to what :meth:`state` returned."""
        self._sums = {name: (total, weight) for name, (total, weight) in state.items()}


class RootMeanSquares(Averages):
    """``RootMeanSquares`` are roots of moving averages of squares, corrected for their start at 0.

    Args:
        decay: of an average from one measurement to the next; 0 keeps the last one alone.

    >>> fslrs = RootMeanSquares(0.5)
    >>> fslrs.add({"weight": 1.0})
    >>> fslrs.add({"weight": 7.0})
    >>> round(fslrs.values()["weight"] ** 2, 6)  # (1 * 0.5 + 49) / 1.5
    33.0
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self._decay = decay

    def add(self, values: Mapping[str, float]) -> None:
        """Add one more measurement."""
        d = self._decay
        for name, value in values.items():
            total, weight = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = d * total + (1 - d) * value**2, d * weight + 1 - d

    def values(self) -> dict[str, float]:
        """Return the roots of the averages."""
        return {name: math.sqrt(total / weight) for name, (total, weight) in self._sums.items()}


class GeometricMeans(Averages):
    """``GeometricMeans`` let older measurements fade once there are eight.

    >>> fslrs = GeometricMeans()
    >>> fslrs.add({"weight": 1.0})
    >>> fslrs.add({"weight": 4.0})
    >>> fslrs.values(), fslrs.counts()
    ({'weight': 2.0}, {'weight': 2.0})
    """

    def add(self, values: Mapping[str, float]) -> None:
        """Add one more measurement, of numbers above 0."""
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0.0))
            kept = 1.0 if count < POINTS else 1 - 1 / POINTS
            self._sums[name] = kept * total + math.log(value), kept * count + 1

    def values(self) -> dict[str, float]:
        """Return the means."""
        return {name: math.exp(total / count) for name, (total, count) in self._sums.items()}

    def counts(self) -> dict[str, float]:
        """Return of how many measurements each is, at most 8."""
        return {name: count for name, (_, count) in self._sums.items()}
