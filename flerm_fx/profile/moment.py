"""A moment holds what is measured at one settling step, of the base and of every target."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from flerm_fx.errors import ProfileError
from flerm_fx.probe.estimate import Estimate
from flerm_fx.recipe.schedule import settling_steps, start_steps


@dataclass(frozen=True)
class Moment:
    """A ``Moment`` holds what is measured at a settling step.

    Attributes:
        fslrs: FSLRs of the step's unit updates; empty where it is no step of the start.
        output_rms: root mean square of the outputs on the batch that the step is taken on, before
            it; of those entries that the weights make, so that a mask has no size, whichever
            number it is (:func:`flerm_fx.start.output_size.output_rms`).
        update_sizes: sizes of the first step's unit updates, from which a target's first guess is
            made (:func:`flerm_fx.start.update_size.update_sizes`); empty at other steps.
        loss: on the batch that the step is taken on, before it, in the units of the loss function;
            NaN in files from before it was kept.
    """

    fslrs: Mapping[str, Estimate] = field(default_factory=dict)
    output_rms: float = 0.0
    update_sizes: Mapping[str, float] = field(default_factory=dict)
    loss: float = math.nan

    @staticmethod
    def mean(moments: Sequence[Moment]) -> Moment:
        """Return the mean over recordings: see ``BaseProfile.mean``.

        >>> Moment.mean([Moment(output_rms=1.0), Moment(output_rms=7.0)]).output_rms
        5.0
        """
        first = moments[0]
        return Moment(
            {
                name: mean_of_recordings([moment.fslrs[name] for moment in moments])
                for name in first.fslrs
            },
            math.sqrt(sum(moment.output_rms**2 for moment in moments) / len(moments)),
            {
                name: math.fsum(moment.update_sizes[name] for moment in moments) / len(moments)
                for name in first.update_sizes
            },
            math.fsum(moment.loss for moment in moments) / len(moments),
        )


def check_warmup(settle: int, warmup: int) -> None:
    """Raise ProfileError where the rate would still rise at the last settling step."""
    if not 0 <= warmup <= max(settle - 1, 0):
        raise ProfileError(f"warmup is {warmup} of {settle} settling steps; expected fewer of them")


def check_outputs(settle: int, warmup: int, number: int) -> None:
    """Raise ProfileError where outputs were not measured at each of the settling steps."""
    expected = len(settling_steps(settle, warmup)) if settle else 0
    if number != expected:
        raise ProfileError(
            f"outputs were measured at {number} steps on the way; expected {expected}: record again"
        )


def check_measured(settle: int, warmup: int, steps: tuple[int, ...]) -> None:
    """Raise ProfileError where FSLRs were measured at other steps than those of the start."""
    expected = start_steps(settle, warmup) if settle else ()
    if steps != expected:
        raise ProfileError(
            f"settle is {settle}, and FSLRs were measured at steps {steps} on the way; expected "
            f"{expected}, as this version's flerm_fx.record measures them: record again"
        )


def mean_of_recordings(estimates: Sequence[Estimate]) -> Estimate:
    """Return the geometric mean over recordings of one model, whose note says of how many."""
    mean = Estimate.geometric_mean(estimates)
    notes = (f"mean of {len(estimates)} profiles", mean.note)
    return replace(mean, note="; ".join(filter(None, notes)))


def recordings(estimate: Estimate) -> int:
    """Return of how many recordings an estimate is the mean; 1 of one that is none.

    >>> one = Estimate(1.0, 0.1, "exact", 0)
    >>> recordings(one), recordings(mean_of_recordings([one] * 3))
    (1, 3)
    """
    found = re.search(r"mean of (\d+) profiles", estimate.note)
    return int(found[1]) if found else 1
