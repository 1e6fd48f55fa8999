"""A plan says when a run is matched, to which course of the base, and how closely."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from flerm_fx.boundary.options import checked
from flerm_fx.errors import InputError
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.trajectory import Trajectory
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.schedule import Schedule
from flerm_fx.training.course import Course
from flerm_fx.training.following import AsMeasured, Following, Pooled


@dataclass(frozen=True)
class Plan:
    """A ``Plan`` is what :func:`flerm_fx.match` is asked for.

    Attributes:
        schedule: the steps to measure at.
        trajectory: the base's FSLRs that are followed.
        decay: of moving averages of each parameter by itself; None where parameters are pooled.
        start: the steps of the base's start, on the target's run.
        at_start: whether nothing is measured behind them.
    """

    schedule: Schedule
    trajectory: Trajectory
    decay: float | None
    start: tuple[int, ...] = ()
    at_start: bool = False

    @classmethod
    def of(
        cls,
        profile: BaseProfile,
        every: int,
        at: Iterable[int] | Literal["start"] | None,
        stretch: float,
        ema: float | None,
    ) -> "Plan":
        """Make a plan of a base and the options.

        Raises:
            InputError: options that are none, or that the base has not been recorded for.
        """
        settling = profile.settling
        start = [round(stretch * step) for step in settling.steps] if profile.settle else []
        if isinstance(at, str) and at == "start":
            if not start:
                raise InputError(
                    "at='start' follows the settling steps of the base, and the profile has none: "
                    "record it with several batches, or with settle=…"
                )
            return cls(Schedule(at=(), beside=[0, *start]), settling, None, tuple(start), True)
        if not profile.trajectory.steps:
            raise InputError(
                "the profile has no trajectory to match: train the base inside of "
                "flerm_fx.record(...), take at='start', which needs none, or compile the model"
            )
        if start and ema is None:
            followed = settling.then(profile.trajectory)
            return cls(Schedule(every, at, [0, *start]), followed, None, tuple(start))
        decay = 0.0 if ema is None else checked("ema", ema)
        return cls(Schedule(every, at), profile.trajectory.smoothed(decay), decay)

    @property
    def rtol(self) -> float:
        """Return the relative error of a measurement by default."""
        return AsMeasured.rtol if self.decay is not None else Pooled.rtol

    def following(self, course: Course, run: Optimizers, trust: Mapping[str, float]) -> Following:
        """Return what makes multipliers of measurements.

        Args:
            course: of the base.
            run: the target's optimizers.
            trust: standard deviations of the logarithms of multipliers that the run begins with.
        """
        if self.decay is None:
            return Pooled(course, run, self.start, trust, is_last=self.at_start)
        return AsMeasured(course, self.decay)
