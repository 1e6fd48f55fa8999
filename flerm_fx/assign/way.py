"""A target is led on its way to the start."""

import math
from collections.abc import Mapping
from statistics import fmean, geometric_mean, stdev

from flerm_fx.align.aligning import Match
from flerm_fx.assign.matches import wanted
from flerm_fx.boundary.warned import warn
from flerm_fx.profile.moment import Moment
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.recipe.schedule import start_steps, step_of_round
from flerm_fx.start.procedure import StartProcedure

LARGE = 2.0
"""Outputs more than so many times as large as the base's have not settled."""

ROUNDS = 5
"""How often a target whose outputs have not settled takes the settling steps, at most. With the
mean of ways over the last steps alone, the regret of a ResMLP with 4 times the initial weights fell
from 0.8 nats after one round to about 0.1; two to eight did alike there, since outputs shrink no
further, and with 8 times them more than two were needed."""

BEHIND = 0.07
"""A loss that has fallen by more than this part less than the base's is behind it. With 1/16 of the
base's initial weights GPT-2's was, by 0.08 and 0.10, and multipliers did harm; those of wider and
deeper models were level within 0.01, or ahead, and single bases differ among themselves by 0.03."""

Settling = dict[int, Mapping[str, float]]
"""The multipliers from each step on."""


def first_guess(
    profile: BaseProfile, matches: Mapping[str, Match], sizes: Mapping[str, float]
) -> dict[str, float]:
    r"""Return multipliers at which a target's first updates are as large as the base's.

    .. math:: m_l = \frac{\sum_b \mathrm{share}_{b \to l}\, \mathrm{size}_b}{\mathrm{size}_l}

    A parameter that the first step does not move, or without a counterpart, has 1.

    Args:
        profile: of the base, settled.
        matches: of the target's parameters.
        sizes: of the target's first unit updates.
    """
    run = profile.optimizers
    guess = {}
    for name, size in sizes.items():
        to_meet = wanted(run, matches[name].base, profile.update_sizes)
        guess[name] = to_meet / size if to_meet and size else 1.0
    return guess


class Way:
    r"""A ``Way`` gives the multipliers that a target has while it settles.

    They are those of :func:`first_guess`, with the sizes of
    :func:`flerm_fx.start.update_size.update_sizes`, times
    :meth:`flerm_fx.BaseProfile.way_from`. They are not matched to FSLRs on the way. Those of the
    first steps would hold a wide model back: at its initial weights its outputs answer more to all
    that lies below the readout, which passes as it learns. Those of later single steps are noise of
    a factor of 2, and a multiplier that is too large once hurts what it trains, whose FSLR is then
    smaller, so that the next multiplier is larger still.

    Args:
        profile: of the base.
        matches: of the target's parameters.
        procedure: of the target's start.
        size: the target's number of weights.

    Attributes:
        guess: the first multipliers.
        settling: the multipliers from each step on.
    """

    def __init__(
        self,
        profile: BaseProfile,
        matches: Mapping[str, Match],
        procedure: StartProcedure,
        size: int,
    ) -> None:
        self.guess: dict[str, float] = {}
        self.settling: Settling = {}
        self._profile, self._matches = profile, matches
        self._settle, self._warmup = procedure.settle, procedure.warmup
        self._sizes: dict[int, float] = {}
        self._ways: dict[int, float] = {}
        self._losses: dict[int, float] = {}
        self._is_smaller = size < sum(map(math.prod, profile.shapes.values()))

    @property
    def length(self) -> float:
        """How much further the target had to go than the base, over all of the way."""
        return geometric_mean(self._ways.values())

    @property
    def left(self) -> float:
        """The same, over the last steps of the start."""
        steps = start_steps(self._settle, self._warmup, max(self._ways))
        return fmean(self._ways[step] for step in steps)

    @property
    def behind(self) -> float:
        r"""By which part of the base's the target's loss has fallen less.

        .. math:: 1 - \frac{L(0) - \operatorname{mean}_t L(t)}
                           {L_{base}(0) - \operatorname{mean}_t L_{base}(t)}

        over the steps t of the start, which both take on the same batches. It is negative where the
        target is ahead, and NaN where the base's loss is not known, or has not fallen by more than
        it varies between these steps.
        """
        steps = start_steps(self._settle, self._warmup)
        base = [self._profile.moments[step].loss for step in steps]
        fallen = self._profile.moments[0].loss - fmean(base)
        if len(base) < 2 or math.isnan(fallen) or fallen <= stdev(base):
            return math.nan
        return 1 - (self._losses[0] - fmean(self._losses[step] for step in steps)) / fallen

    @property
    def expected(self) -> dict[str, float]:
        """The multipliers that the guess leads to expect."""
        return {name: self.length * m for name, m in self.guess.items()}

    def looks_at(self, step: int) -> bool:
        """Tell whether the size of outputs at a step tells anything: not if they did not begin
        large.
        """
        return step == 0 or self._ways[0] > 1.0

    def follow(self, step: int, moment: Moment) -> Mapping[str, float] | None:
        """Return the multipliers from a settling step on, or None where it is the last one."""
        of_base = step_of_round(step, self._settle)
        self._losses[of_base] = moment.loss
        way = 1.0
        if self.looks_at(step):
            self._sizes[of_base] = moment.output_rms
            way = self._profile.way_from(self._sizes, of_base)
        self._ways[step] = way
        is_last = of_base == self._settle
        if is_last and (step >= ROUNDS * self._settle or self.left <= LARGE):
            return None
        if step == 0:
            self.guess = first_guess(self._profile, self._matches, moment.update_sizes)
        self.settling[step] = {name: way * m for name, m in self.guess.items()}
        return self.settling[step]

    def warn(self, *, stacklevel: int) -> None:
        """Say so if the target has not got as far as the base.

        Warns:
            UserWarning: its outputs are much larger than the base's, or it is no smaller and its
                loss has fallen by less.
        """
        if self.left > LARGE:
            warn(
                "the model's outputs begin far larger than training makes them, and after "
                f"{max(self._ways)} steps are still {self.left:.1f} times as large as the base's: "
                "it has to unlearn its initial weights before it learns; start with smaller ones",
                stacklevel=stacklevel + 1,
            )
        elif self.behind > BEHIND and not self._is_smaller:
            warn(
                f"the model's loss has fallen by {self.behind:.0%} less than the base's in as many "
                "steps: it has not learned to use its parameters by then, and multipliers that are "
                "measured there stand for little. Give it initial weights as large as the base's, "
                "since a sixteenth of them does this, or record with a longer settle and warmup",
                stacklevel=stacklevel + 1,
            )
