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
from flerm_fx.profile.trajectory import Trajectory, known_losses
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.schedule import RISEN, Schedule
from flerm_fx.training.following import Following
from flerm_fx.training.logs import FSLR, MULTIPLIER, Log, log_call
from flerm_fx.training.observer import Attached, Observed, UpdateObserver, measured_at
from flerm_fx.training.running import RunningProber
from flerm_fx.training.states import State, a_loss, a_rate, a_step, items
from flerm_fx.training.targets import PlainTarget, ScaledTarget


@dataclass(frozen=True)
class Measurement:
    """A ``Measurement`` is one of a model in training, with the multipliers that followed from it.

    Attributes:
        step: at which it was.
        learning_rate: of the step.
        fslrs: FSLR of each trained parameter's unit update, before its multiplier.
        multipliers: of all parameters from this step on.
        loss: of the probe batch before the step; NaN where it is not known.
    """

    step: int
    learning_rate: float
    fslrs: Mapping[str, Estimate]
    multipliers: Mapping[str, float]
    loss: float


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
        predicted: the multipliers that it is to begin with; none if empty.
        following: how they follow the base's course.
        prober: measures the run's own updates.
        schedule: the steps to measure at.
        log: as for :func:`flerm_fx.match`.

    Example::

        >>> import flerm_fx, torch
        >>> _ = torch.manual_seed(0)
        >>> small, large, x, y = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(8, 4), torch.ones(8)
        >>> def train(model, optimizer):
        ...     nn.functional.cross_entropy(model(x), y.long()).backward()
        ...     optimizer.step()
        >>> adam = torch.optim.Adam(small.parameters(), lr=1e-3)
        >>> with flerm_fx.record(small, adam, x, y.long(), settle=0, every=1) as recorder:
        ...     train(small, adam)
        >>> adam = torch.optim.Adam(large.parameters(), lr=1e-3)
        >>> with flerm_fx.match(large, adam, recorder.profile, every=1) as matcher:
        ...     train(large, adam)
        >>> list(matcher.multipliers), matcher.trajectory.steps
        (['weight', 'bias'], (0,))
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        run: Optimizers,
        target: PlainTarget | ScaledTarget,
        predicted: Mapping[str, float],
        following: Following,
        prober: RunningProber,
        schedule: Schedule,
        log: Log | None,
    ) -> None:
        given = target.multipliers()
        ones = dict.fromkeys(following.course.parameters, 1.0)
        self.multipliers: dict[str, float] = ones | dict(predicted) | given
        self.history: list[Measurement] = []
        self._began = self.multipliers | dict(predicted) if given or predicted else {}
        self._run, self._target, self._following, self._prober = run, target, following, prober
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
            known_losses(row.loss for row in self.history),
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
        """Return multipliers, and what was measured so far, in plain numbers, for a checkpoint."""
        return {
            "step": self._observer.step,
            "waiting": self._observer.waiting,
            "multipliers": dict(self.multipliers),
            "began": dict(self._began),
            "averages": self._following.state(),
            "history": [
                [row.step, row.learning_rate, rows(row.fslrs), dict(row.multipliers), row.loss]
                for row in self.history
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run was interrupted.

        Attach a matcher as in the first run, then load the states of model, optimizer and matcher,
        in this order.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            InputError: the state is of other parameters, of another version, or of other scales
                than the model's, or has a number that is none of a matching; the matcher is as it
                was.
        """
        given = State("matcher", state, self.state_dict(), self.multipliers)

        def row(what: str, value: Any) -> Measurement:
            step, rate, fslrs, multipliers, loss = items(what, value, 5)
            return Measurement(
                a_step(what, step),
                a_rate(what, rate),
                given.some_estimates(what, fslrs),
                given.multipliers(what, multipliers),
                a_loss(what, loss),
            )

        def sums(what: str, value: Any) -> dict[str, tuple[float, float]]:
            pairs = {n: items(what, pair, 2) for n, pair in given.of_some(what, value).items()}
            least = self._following.least
            return {
                name: (number(what, total, least=least), number(what, weight, above=0))
                for name, (total, weight) in pairs.items()
            }

        step, waiting = given.step(), given.waiting()
        multipliers = given.part("multipliers", given.multipliers)
        began = given.part("began", given.multipliers) if state["began"] else {}
        averages = given.by("averages", sums)
        if averages.keys() != self._following.state().keys():
            raise InputError(
                "the matcher's state is of another way of matching: it averages "
                f"{', '.join(averages) or 'nothing'}, and this matcher "
                f"{', '.join(self._following.state())}; attach it with the same ema and profile"
            )
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
        self._began = began
        self._following.load(averages)

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
        multipliers, began, measured = self.multipliers, self._began, len(self.history)
        averages, restore = self._following.state(), self._target.saved()

        def undo() -> None:
            restore()
            self.multipliers, self._began = multipliers, began
            self._following.load(averages)
            del self.history[measured:]

        return undo

    def _observed(self, observed: Observed) -> Callable[[], None]:
        unit = self._target.unit(observed, self.multipliers)
        turn = self._following.turn(observed.step, len(self.history))
        fslrs = self._prober.estimate(unit, turn)
        loss = self._prober.loss(unit)
        following = self._next_multipliers(unit, fslrs)
        self._target.rematch(observed, self.multipliers, following)
        self.multipliers = following
        rate = next(rate for rate in observed.rates.values() if rate > 0)
        self.history.append(Measurement(observed.step, rate, fslrs, dict(following), loss))
        numbers = {FSLR + name: estimate.value for name, estimate in fslrs.items()}
        numbers |= {MULTIPLIER + name: m for name, m in following.items()}
        return log_call(self._log, numbers, observed.step)

    def _next_multipliers(
        self, observed: Observed, fslrs: Mapping[str, Estimate]
    ) -> dict[str, float]:
        """Return the multipliers after a measurement: at first those of the first guess."""
        present = self.multipliers
        if not self._began:
            present = self._began = present | self._following.course.guess(observed.updates)
        return present | self._following.follow(
            observed.step, fslrs, self._began, warming=not self._has_risen(observed)
        )

    def _has_risen(self, observed: Observed) -> bool:
        """Tell whether the rate has been at half of the run's peak, or does not rise any more."""
        name, rate = next((n, r) for n, r in observed.rates.items() if r > 0)
        before = [row.learning_rate for row in self.history]
        if before and rate <= before[-1]:
            return True
        return max([rate, *before]) >= RISEN * self._run.rate(name)
