"""A trajectory holds the FSLRs of a run's own updates, every so many steps."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flerm_fx.errors import InputError, ProfileError
from flerm_fx.probe.estimate import Estimate
from flerm_fx.recipe.schedule import RISEN


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A ``Trajectory`` holds the FSLRs of the run's own updates, every so many steps.

    Attributes:
        steps: the S steps that were measured, ascending, counted from 0.
        learning_rates: the learning rate at each step.
        fslrs: for each parameter, one estimate a step, per unit of learning rate.
        losses: of the probe batch before each step, in the units of the loss function; NaN where
            one is not known, and empty where none is.

    Raises:
        ProfileError: if the lengths differ, steps do not ascend, or a number is not finite.

    >>> trajectory = Trajectory((0,), (0.1,), {"weight": (Estimate(2.0, 0.0, "exact", 0),)})
    >>> len(trajectory), trajectory.at(0)["weight"].value
    (1, 2.0)
    """

    steps: tuple[int, ...] = ()
    learning_rates: tuple[float, ...] = ()
    fslrs: Mapping[str, tuple[Estimate, ...]] = field(default_factory=dict)
    losses: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.learning_rates) != len(self.steps):
            raise ProfileError(
                f"the trajectory has {len(self.steps)} steps, but {len(self.learning_rates)} "
                "learning rates"
            )
        if self.losses and len(self.losses) != len(self.steps):
            raise ProfileError(
                f"the trajectory has {len(self.steps)} steps, but {len(self.losses)} losses"
            )
        ascending = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not ascending or any(step < 0 for step in self.steps):
            raise ProfileError(f"the trajectory's steps {self.steps} do not ascend from 0")
        for step, rate in zip(self.steps, self.learning_rates, strict=True):
            if not (math.isfinite(rate) and rate >= 0):
                raise ProfileError(f"learning rate {rate} at step {step} is no finite number >= 0")
        for name, estimates in self.fslrs.items():
            if len(estimates) != len(self.steps):
                raise ProfileError(
                    f"the trajectory has {len(self.steps)} steps, but {len(estimates)} FSLRs of "
                    f"{name!r}"
                )
            for step, estimate in zip(self.steps, estimates, strict=True):
                check_estimate(estimate, f"FSLR of {name!r} at step {step}")

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, step: int) -> dict[str, Estimate]:
        """Return the FSLRs at a recorded step.

        Raises:
            InputError: if that step was not recorded.
        """
        if step not in self.steps:
            raise InputError(f"step {step} was not recorded; the trajectory has {self.steps}")
        index = self.steps.index(step)
        return {name: estimates[index] for name, estimates in self.fslrs.items()}

    def between(self, step: float) -> dict[str, Estimate]:
        """Return the FSLRs at any step, with logarithms interpolated between recorded ones.

        Before the first recorded step they are as there, after the last as there; beside an FSLR
        of 0, which has no logarithm, the FSLRs themselves are interpolated.

        Raises:
            InputError: no step was recorded.

        >>> fslrs = [Estimate(value, 0.0, "exact", 0) for value in (1.0, 4.0)]
        >>> Trajectory((0, 10), (0.1, 0.1), {"weight": tuple(fslrs)}).between(5)["weight"].value
        2.0
        """
        if not self.steps:
            raise InputError("the trajectory is empty; record the base while it trains")
        right = bisect.bisect_left(self.steps, step)
        if right == len(self.steps) or right == 0 or self.steps[right] == step:
            return self.at(self.steps[min(right, len(self.steps) - 1)])
        left = right - 1
        weight = (step - self.steps[left]) / (self.steps[right] - self.steps[left])
        return {
            name: estimates[left].towards(estimates[right], weight)
            for name, estimates in self.fslrs.items()
        }

    @property
    def risen(self) -> tuple[int, ...]:
        """The steps behind the first one, from where the rate has been at half of its largest on.

        >>> fslrs = (Estimate(1.0, 0.0, "exact", 0),) * 4
        >>> Trajectory((0, 5, 10, 15), (0.0, 0.4, 0.8, 0.1), {"weight": fslrs}).risen
        (5, 10, 15)
        """
        least = RISEN * max(self.learning_rates, default=0.0)
        rising = itertools.takewhile(lambda i: self.learning_rates[i] < least, range(len(self)))
        return tuple(step for step in self.steps[len(list(rising)) :] if step > 0)

    def then(self, other: Trajectory) -> Trajectory:
        """Return this one, and behind its last step another of the same parameters."""
        later = [i for i, step in enumerate(other.steps) if step > self.steps[-1]]
        return Trajectory(
            self.steps + tuple(other.steps[i] for i in later),
            self.learning_rates + tuple(other.learning_rates[i] for i in later),
            {n: fslrs + tuple(other.fslrs[n][i] for i in later) for n, fslrs in self.fslrs.items()},
            known_losses((*self.every_loss, *(other.every_loss[i] for i in later))),
        )

    @property
    def every_loss(self) -> tuple[float, ...]:
        """One loss a step, NaN where it is not known."""
        return self.losses or (math.nan,) * len(self.steps)

    def smoothed(self, decay: float) -> Trajectory:
        r"""Return roots of moving averages of the squared FSLRs, corrected for their start.

        .. math:: \bar F_k^2 = \frac{\sum_{i \le k} d^{k-i} F_i^2}{\sum_{i \le k} d^{k-i}}

        The same trajectory for a decay d of 0. Errors are kept as they are.
        """
        if not decay:
            return self
        course = {}
        for name, estimates in self.fslrs.items():
            total = weight = 0.0
            averaged = []
            for estimate in estimates:
                total = decay * total + estimate.value**2
                weight = decay * weight + 1.0
                averaged.append(replace(estimate, value=math.sqrt(total / weight)))
            course[name] = tuple(averaged)
        return replace(self, fslrs=course)


def known_losses(losses: Iterable[float]) -> tuple[float, ...]:
    """Return losses as a trajectory has them: none where not one of them is known.

    >>> known_losses([math.nan, 2.0]), known_losses([math.nan, math.nan])
    ((nan, 2.0), ())
    """
    each = tuple(losses)
    return () if all(map(math.isnan, each)) else each


def check_estimate(estimate: Estimate, what: str) -> None:
    """Raise ProfileError, naming ``what`` it is, for an estimate that is no finite FSLR."""
    for number in (estimate.value, estimate.stderr):
        if not (math.isfinite(number) and number >= 0):
            raise ProfileError(
                f"{what} is {estimate.value} ± {estimate.stderr}; expected finite numbers >= 0"
            )
    if estimate.samples < 0:
        raise ProfileError(f"{what} has {estimate.samples} samples; expected at least 0")
