"""A matcher holds what was measured so far, and the multipliers that followed from it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flerm_fx.boundary.notebook import folded_table
from flerm_fx.boundary.options import number
from flerm_fx.errors import InputError, ProfileError
from flerm_fx.probe.estimate import Estimate, rows
from flerm_fx.profile.trajectory import Trajectory
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.schedule import Schedule
from flerm_fx.training.averages import MovingAverage
from flerm_fx.training.course import Course
from flerm_fx.training.logs import FSLR, MULTIPLIER, Log, log_call
from flerm_fx.training.observer import Attached, Observed, UpdateObserver, measured_at
from flerm_fx.training.running import RunningProber
from flerm_fx.training.states import State, a_rate, a_step, items
from flerm_fx.training.targets import PlainTarget, ScaledTarget

RISEN = 0.5
"""The part of a run's rate below which it still warms up."""


@dataclass(frozen=True)
class Measurement:
    """A ``Measurement`` is one of a model in training, with the multipliers that followed from it.

    Attributes:
        step: at which it was.
        learning_rate: of the step.
        fslrs: FSLR of each trained parameter's unit update, before its multiplier.
        multipliers: of all parameters from this step on.
    """

    step: int
    learning_rate: float
    fslrs: Mapping[str, Estimate]
    multipliers: Mapping[str, float]


class Matcher(Attached):
    """A ``Matcher`` is matching in progress; see :func:`flerm_fx.match`.

    Leaving the ``with`` block, or :meth:`close`, takes the hooks off; multipliers of a plain model
    no longer hold then.

    Attributes:
        multipliers: the present multiplier of each trainable parameter, in execution order.
        history: the measurements so far.

    Args:
        model: the target, which trains.
        optimizers: its optimizers.
        run: their rules and rates.
        target: gives the model its multipliers.
        course: the base's, which they follow.
        prober: measures the run's own updates.
        schedule: the steps to measure at.
        log: as for :func:`flerm_fx.match`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        run: Optimizers,
        target: PlainTarget | ScaledTarget,
        course: Course,
        prober: RunningProber,
        schedule: Schedule,
        log: Log | None,
    ) -> None:
        self.multipliers = dict.fromkeys(course.parameters, 1.0) | target.multipliers()
        self.history: list[Measurement] = []
        self._run, self._target, self._course, self._prober = run, target, course, prober
        self._squares = MovingAverage(course.decay)
        self._log = log
        self._observer = UpdateObserver(
            model, optimizers, run, schedule.due, self._observed, self._saved
        )
        super().__init__(optimizers, self._before, self._after)

    @property
    def step(self) -> int:
        """Optimizer steps seen so far; those that a gradient scaler skipped are none."""
        return self._observer.step

    @property
    def trajectory(self) -> Trajectory:
        """FSLRs of the model's unit updates, before their multipliers, at each measurement."""
        never = Estimate(0.0, 0.0, "exact", 0, "not trained at this step")
        return Trajectory(
            tuple(row.step for row in self.history),
            tuple(row.learning_rate for row in self.history),
            {
                name: tuple(row.fslrs.get(name, never) for row in self.history)
                for name in self.multipliers
            },
        )

    def __repr__(self) -> str:
        values = self.multipliers.values()
        return (
            f"Matcher({len(values)} parameters; "
            f"multipliers {min(values):.2g} to {max(values):.2g}; "
            f"step {self.step}, {measured_at([matched.step for matched in self.history])})"
        )

    def _repr_html_(self) -> str:
        fslrs = self.history[-1].fslrs if self.history else {}
        rows = [
            (name, f"{fslrs[name].value:.4g}" if name in fslrs else "-", f"{multiplier:.4g}")
            for name, multiplier in self.multipliers.items()
        ]
        header = ("parameter", "FSLR", "multiplier")
        return folded_table(repr(self), header, rows, header[1:])

    def state_dict(self) -> dict[str, Any]:
        """Multipliers, and what was measured so far, in plain numbers, for a checkpoint."""
        return {
            "step": self._observer.step,
            "waiting": self._observer.waiting,
            "multipliers": dict(self.multipliers),
            "squares": self._squares.state(),
            "history": [
                [row.step, row.learning_rate, rows(row.fslrs), dict(row.multipliers)]
                for row in self.history
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run was interrupted.

        Attach a matcher as in the first run, then load the states of model, optimizer and matcher,
        in this order.

        Raises:
            InputError: the state is of other parameters, of another version, or of other scales
                than the model's, or has a number that is none of a matching; the matcher is as it
                was.
        """
        given = State("matcher", state, self.state_dict(), self.multipliers)

        def row(what: str, value: Any) -> Measurement:
            step, rate, fslrs, multipliers = items(what, value, 4)
            return Measurement(
                a_step(what, step),
                a_rate(what, rate),
                given.some_estimates(what, fslrs),
                given.multipliers(what, multipliers),
            )

        def square(what: str, value: Any) -> tuple[float, float]:
            total, weight = items(what, value, 2)
            return number(what, total, least=0), number(what, weight, above=0)

        step, waiting = given.step(), given.waiting()
        multipliers = given.part("multipliers", given.multipliers)
        squares = given.of_some("squares", given.by("squares", square))
        twin = copy.copy(self)
        twin.history = given.each("history", row)
        try:
            _ = twin.trajectory  # which raises where steps do not ascend
        except ProfileError as error:
            raise InputError(f"the matcher's state is of no matching: {error}") from error
        self._target.check(multipliers)
        self._observer.step, self._observer.waiting = step, waiting
        self.multipliers = multipliers
        self.history = twin.history
        self._squares.load(squares)

    def close(self) -> None:
        """Take the hooks off the optimizer."""
        super().close()
        self._target.stepped()

    def _before(self, optimizer: Optimizer) -> None:
        self._observer.before(optimizer)
        try:
            self._target.stepping(optimizer, self.multipliers)
        except BaseException:
            self._target.stepped()
            raise

    def _after(self, optimizer: Optimizer) -> None:
        self._target.stepped()
        self._observer.after(optimizer)
        self._target.forget()

    def _saved(self) -> Callable[[], None]:
        """Return what undoes :meth:`_observed`."""
        multipliers, measured = self.multipliers, len(self.history)
        squares, restore = self._squares.state(), self._target.saved()

        def undo() -> None:
            restore()
            self.multipliers = multipliers
            self._squares.load(squares)
            del self.history[measured:]

        return undo

    def _observed(self, observed: Observed) -> Callable[[], None]:
        unit = self._target.unit(observed, self.multipliers)
        fslrs = self._prober.estimate(unit)
        smoothed = self._squares.after(fslrs)
        following = self._next_multipliers(unit, smoothed, fslrs)
        self._target.rematch(observed, self.multipliers, following)
        self._squares.keep(fslrs)
        self.multipliers = following
        rate = next(rate for rate in observed.rates.values() if rate > 0)
        self.history.append(Measurement(observed.step, rate, fslrs, dict(following)))
        numbers = {FSLR + name: estimate.value for name, estimate in fslrs.items()}
        numbers |= {MULTIPLIER + name: m for name, m in following.items()}
        return log_call(self._log, numbers, observed.step)

    def _next_multipliers(
        self, observed: Observed, smoothed: Mapping[str, float], fslrs: Mapping[str, Estimate]
    ) -> dict[str, float]:
        """Return multipliers at which the smoothed FSLRs meet the base's.

        Old ones where that is not resolved, and the first guess while the rate still rises.
        """
        if self._has_risen(observed):
            return self.multipliers | self._course.multipliers(observed.step, fslrs, smoothed)
        first = not self.history and isinstance(self._target, PlainTarget)
        return self.multipliers | (self._course.guess(observed.updates) if first else {})

    def _has_risen(self, observed: Observed) -> bool:
        """Tell whether the rate has been at half of the run's peak, or does not rise any more."""
        name, rate = next((n, r) for n, r in observed.rates.items() if r > 0)
        before = [row.learning_rate for row in self.history]
        if before and rate <= before[-1]:
            return True
        return max([rate, *before]) >= RISEN * self._run.rate(name)
