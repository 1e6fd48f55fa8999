"""Multipliers follow the base's course: as measured, or pooled and averaged."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from flerm_fx.assign.assignment import Assignment
from flerm_fx.assign.pooling import pooled
from flerm_fx.boundary.warned import warn
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.turns import Turn
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.training.averages import POINTS, Averages, GeometricMeans, RootMeanSquares, Sums
from flerm_fx.training.course import Course

SCATTER = math.log(2.0)
"""Standard deviation of the logarithm of one step's FSLR about its course: in runs of transformers
single steps were a factor of 2 off either way."""

Multipliers = Mapping[str, float]


class Following(ABC):
    """``Following`` says what multipliers become at each measurement.

    Attributes:
        course: of the base.
        rtol: relative error of a measurement by default.
        least: of a sum in the state; None for any number.
    """

    rtol: float
    least: float | None

    def __init__(self, course: Course, **averages: Averages) -> None:
        self.course = course
        self._averages = averages

    @abstractmethod
    def follow(
        self, step: int, measured: Mapping[str, Estimate], began: Multipliers, *, warming: bool
    ) -> dict[str, float]:
        """Add a measurement, and return the multipliers that follow from all there are.

        Args:
            step: of the target.
            measured: its FSLRs there.
            began: the multipliers of its first step.
            warming: whether its rate still rises; no multiplier follows then.
        """

    def turn(self, step: int, measured: int) -> Turn | None:
        """Return the examples that a step is measured on, after so many others; all if None."""
        return None

    def state(self) -> dict[str, Sums]:
        """Return what was averaged, from which :meth:`load` goes on."""
        return {name: averages.state() for name, averages in self._averages.items()}

    def load(self, state: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Go back to what :meth:`state` returned."""
        for name, averages in self._averages.items():
            averages.load(state[name])


class AsMeasured(Following):
    r"""``AsMeasured`` is algorithm 1 of Milsom et al. 2025: each parameter, as just measured.

    .. math:: m_l(t) = \frac{\sum_b \mathrm{share}_{b \to l}\,
                             \mathrm{FSLR}_b(t / \mathrm{stretch})}{\mathrm{FSLR}_l(t)}

    Args:
        course: of the base, smoothed as the target's FSLRs are to be.
        decay: of the moving averages of squares; 0 for none.
    """

    rtol = 0.05
    least = 0.0

    def __init__(self, course: Course, decay: float) -> None:
        self._own = RootMeanSquares(decay)
        super().__init__(course, own=self._own)

    def follow(
        self, step: int, measured: Mapping[str, Estimate], began: Multipliers, *, warming: bool
    ) -> dict[str, float]:
        """Return the multipliers at which smoothed FSLRs are the base's, if both are resolved."""
        self._own.add({name: estimate.value for name, estimate in measured.items()})
        if warming:
            return {}
        to_meet, smoothed = self.course.met(step), self._own.values()
        known = self.course.resolved(measured) & to_meet.keys()
        return {name: to_meet[name].value / smoothed[name] for name in known}


class Pooled(Following):
    """``Pooled`` takes the mean of all measurements so far, over the parameters of a role.

    On both sides the geometric mean is taken over the measured steps
    (:class:`flerm_fx.training.averages.GeometricMeans`), and multipliers are made of the two as
    :func:`flerm_fx.compile` makes them of two starts (:func:`flerm_fx.assign.pooling.pooled`):
    what may be noise of single blocks is left out, and few measurements are trusted less than the
    multipliers that the run began with.

    Args:
        course: of the base.
        run: the target's optimizers; parameters of different groups are not pooled.
        start: the steps of the base's start; up to the last, multipliers stay as the run began.
        trust: standard deviations of the logarithms of those that it began with
            (:func:`flerm_fx.assign.pooling.pooled`).
        is_last: whether nothing is measured behind the start.
    """

    rtol = 0.2
    """Of 16 numbers, such as 4 draws for each of 4 examples; single steps scatter by three times as
    much."""
    least = None

    def __init__(
        self,
        course: Course,
        run: Optimizers,
        start: Sequence[int],
        trust: Mapping[str, float],
        *,
        is_last: bool,
    ) -> None:
        self._own, self._met = GeometricMeans(), GeometricMeans()
        super().__init__(course, own=self._own, met=self._met)
        self._roles = {name: (role, run.index(name)) for name, role in course.roles.items()}
        self._start, self._trust = tuple(start), trust
        self._is_last = is_last

    def turn(self, step: int, measured: int) -> Turn:
        """Return the examples whose turn it was at the same step of the base's start; elsewhere,
        those that follow.
        """
        if step in self._start:
            return Turn(self._start.index(step), len(self._start))
        return Turn(measured, POINTS)

    def follow(
        self, step: int, measured: Mapping[str, Estimate], began: Multipliers, *, warming: bool
    ) -> dict[str, float]:
        """Return the pooled multipliers of all parameters that have a counterpart.

        The first step's FSLRs are those of the initial weights, and left out like those of a
        warm-up.

        Warns:
            UserWarning: the run still warms up at the last measurement.
        """
        if warming and self._is_last and step >= self._start[-1]:
            warn(
                f"the run still warms up at step {step}, where the base's start ends: multipliers "
                "stay the first guess. Record the base with settle and warmup as long as this "
                "run's, or pass stretch",
                stacklevel=2,
            )
        if warming or step == 0:
            return {}
        to_meet = self.course.met(step)
        # Means are pooled, and trust what is uncertain less.
        both = self.course.resolved(measured, noise=1.0) & to_meet.keys()
        self._own.add({name: measured[name].middle for name in both})
        self._met.add({name: to_meet[name].middle for name in both})
        if step < self._start[-1]:
            return {}
        rows = pooled(self._rows(began), self._roles, began, self._trust)
        return {row.parameter: row.multiplier for row in rows if row.base}

    def _rows(self, began: Multipliers) -> list[Assignment]:
        own, met, counts = self._own.values(), self._met.values(), self._own.counts()
        rows = []
        for name in self.course.parameters:
            value, to_meet = own.get(name, 0.0), met.get(name, 0.0)
            error = SCATTER / math.sqrt(counts.get(name, 1.0))
            rows.append(
                Assignment(
                    parameter=name,
                    node="",
                    op="",
                    shape=self.course.shapes[name],
                    base=self.course.matches[name].base,
                    base_fslr=to_meet,
                    target=Estimate(value, error * value, "mean", 0),
                    multiplier=to_meet / value if value else began[name],
                    status="matched" if value else "unresolved",
                    error=error,
                )
            )
        return rows
