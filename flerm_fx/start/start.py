"""The start is measured at the beginning of training, by a procedure that repeats anywhere."""

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.boundary.progress import MEASUREMENT, Count, counting
from flerm_fx.capture.captured import Capture
from flerm_fx.errors import EstimateError
from flerm_fx.model.inputs import Batch, device_of, to_device
from flerm_fx.model.randomness import preserved_rng, seed_all
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.turns import Turn
from flerm_fx.profile.moment import Moment
from flerm_fx.recipe.schedule import settling_steps, start_steps, step_of_round
from flerm_fx.start.output_size import output_rms
from flerm_fx.start.procedure import StartProcedure
from flerm_fx.start.update_size import update_sizes
from flerm_fx.start.walk import Multipliers, Step, Walk, fail, walking

AVERAGED_STEPS = 4
"""A late start is averaged over this many last steps (fewer if fewer were taken)."""

ANSWER = 1e-3
"""Relative change of a unit update that is worth another measurement: a tenth of what ``check()``
allows."""


@dataclass(frozen=True)
class Settled:
    """``Settled`` is what was seen on the way to a start.

    Attributes:
        moments: what was measured, by settling step.
        losses: of all steps, each on its batch and before it.
    """

    moments: Mapping[int, Moment]
    losses: tuple[float, ...]


class Allowance:
    r"""An ``Allowance`` says what error each of several measurements may have for a mean that has
    the wanted one.

    Errors of different steps are independent, so a mean of n has
    :math:`\epsilon^2 = \sum_i \epsilon_i^2 / n^2`. What one measurement had less, the rest may have
    more. The error of one is the root mean square of its parameters', all of which count alike, as
    each has a multiplier of its own.

    Args:
        rtol: relative error that the mean is to have.
        count: of measurements.

    >>> allowed = Allowance(0.1, 2)
    >>> round(allowed.next, 6)
    0.141421
    >>> allowed.spend({"weight": Estimate(1.0, 0.1, "sampled", 4)})
    >>> round(allowed.next, 6)
    0.173205
    """

    def __init__(self, rtol: float, count: int) -> None:
        self._least = rtol**2 * count / 4
        self._squares = (rtol * count) ** 2
        self._count = count

    @property
    def next(self) -> float:
        """Error of the next measurement; at least half of an equal share, at most 0.99."""
        return min(math.sqrt(max(self._squares / self._count, self._least)), 0.99)

    def spend(self, estimates: Mapping[str, Estimate]) -> None:
        """Take into account what a measurement had."""
        errors = [e.relative_error for e in estimates.values() if e.value] or [0.0]
        self._squares -= sum(error**2 for error in errors) / len(errors)
        self._count = max(self._count - 1, 1)


Follow = Callable[[int, Moment], Multipliers | None]
"""From a step and what was measured there to the multipliers that hold from this step on; None, at
the last step of a round, to end there."""


def measure_settling(
    captured: Capture,
    procedure: StartProcedure,
    follow: Follow | None = None,
    *,
    draw_seed: int | None = None,
    prober: CaptureProber | None = None,
    is_sized: Callable[[int], bool] = lambda step: True,
) -> Settled:
    """Return what is measured at each settling step, of which :func:`start_of` makes the start.

    The steps are :func:`flerm_fx.recipe.schedule.settling_steps`, and after them, for as many more
    rounds of ``settle`` steps as ``follow`` asks for, those of
    :func:`flerm_fx.recipe.schedule.step_of_round` that are steps of the start.

    Multipliers are 1 at first. What ``follow`` returns holds for the measured step already.
    Everything is undone, as by :func:`measure_start`, which raises the same errors.

    Args:
        captured: the model, captured.
        procedure: what to do.
        follow: multipliers from each measured step on; all are 1, for one round, if None.
        draw_seed: of the random cotangents; the procedure's own if None.
        prober: of ``captured``, where there is one.
        is_sized: whether to measure the size of the outputs at a step, too; at the first, with
            that of the update.
    """
    draws = procedure.seed if draw_seed is None else draw_seed
    prober = prober or CaptureProber(captured)
    probe = to_device(procedure.pool[0], device_of(captured.model))
    moments: dict[int, Moment] = {}
    settle, warmup = procedure.settle, procedure.warmup
    of_start, wanted = start_steps(settle, warmup), settling_steps(settle, warmup)
    allowed = Allowance(procedure.rtol, len(of_start))
    end = settle

    def next_moment(walk: Walk) -> tuple[Moment, bool]:
        """Return what is found at the next step, which is taken; and whether others follow."""
        index, sized = walk.index, is_sized(walk.index)
        is_of_start = step_of_round(index, settle) in of_start
        moment = Moment()
        if sized:  # before there are gradients, so that it takes no memory beside theirs
            moment = replace(moment, output_rms=_output_rms(captured, procedure, walk))
        if index and not (is_of_start or (sized and follow is not None)):
            walk.step()
            return replace(moment, loss=walk.losses[index]), True
        step = walk.propose()
        moment = replace(moment, loss=walk.losses[index])
        if is_of_start:
            turn = Turn(of_start.index(step_of_round(index, settle)), len(of_start))
            estimates = _estimate(prober, procedure, walk, step, probe, draws, turn, allowed)
            moment = replace(moment, fslrs=_noted(estimates, step.rounding))
        if sized and index == 0:
            sizes = update_sizes(step.updates, capture_graph(captured))
            moment = replace(moment, update_sizes=sizes)
        multipliers = follow(index, moment) if follow is not None else None
        goes_on = index != end or multipliers is not None
        if goes_on:
            walk.take(step, multipliers)
        return moment, goes_on

    with walking(captured, procedure) as walk, _counting(end + 1, len(of_start)) as count:
        goes_on = True
        while goes_on:
            index = walk.index
            if step_of_round(index, settle) not in wanted:
                walk.step()
                count(1)
                continue
            moments[index], goes_on = next_moment(walk)
            count(1 + MEASUREMENT * bool(moments[index].fslrs))
            if goes_on and index == end:
                end += settle
                wanted, allowed = of_start, Allowance(procedure.rtol, len(of_start))
        return Settled(moments, tuple(walk.losses))


def start_of(moments: Mapping[int, Moment], procedure: StartProcedure) -> dict[str, Estimate]:
    """Return the start: the mean over :func:`flerm_fx.recipe.schedule.start_steps` of the last
    round.
    """
    steps = start_steps(procedure.settle, procedure.warmup, max(moments))
    averaged = [moments[step].fslrs for step in steps]
    return {name: Estimate.mean([each[name] for each in averaged]) for name in averaged[0]}


def measure_start(
    captured: Capture,
    procedure: StartProcedure,
    multipliers: Multipliers | None = None,
    *,
    draw_seed: int | None = None,
    prober: CaptureProber | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Estimate]:
    r"""FSLRs of the unit update after ``settle`` steps of the optimizer's own rule.

    .. math:: u_l = \frac{\Delta\theta_l}{m_l\, \mathrm{lr}}

    The steps are taken on ``captured.model`` itself and undone: weights, buffers, mode and random
    state end as they were.

    Args:
        captured: the model, captured.
        procedure: what to do.
        multipliers: learning-rate multiplier m_l of each parameter while settling; 1 if None.
        draw_seed: of the random cotangents; the procedure's own if None.
        prober: of ``captured``, where there is one: it knows whether examples are coupled.
        names: the parameters to measure, none of which has a gradient of rounding alone; all if
            None.

    Returns:
        An estimate for each of them, averaged over the last few steps.

    Raises:
        DivergenceError: a loss, gradient, update or FSLR is NaN or infinite after the first step.
        EstimateError: so it is at the first step.
    """
    draws = procedure.seed if draw_seed is None else draw_seed
    prober = prober or CaptureProber(captured)
    averaged = min(AVERAGED_STEPS, procedure.settle + 1)
    allowed = Allowance(procedure.rtol, averaged)
    probe = to_device(procedure.pool[0], device_of(captured.model))
    wanted = [n for n in captured.parameters if names is None or n in names]
    measured: list[dict[str, Estimate]] = []
    with (
        walking(captured, procedure, multipliers, find_rounding=names is None) as walk,
        _counting(procedure.settle + 1, averaged) as count,
    ):
        for _ in range(procedure.settle + 1):
            if walk.index <= procedure.settle - averaged:
                walk.step()
                count(1)
                continue
            step = walk.propose()
            chosen = replace(step, updates={name: step.updates[name] for name in wanted})
            turn = Turn(len(measured), averaged)
            estimates = _estimate(prober, procedure, walk, chosen, probe, draws, turn, allowed)
            measured.append(_noted(estimates, step.rounding))
            count(1 + MEASUREMENT)
            walk.take(step)
            del step, chosen  # as large as the weights
    return {name: Estimate.mean([estimates[name] for estimates in measured]) for name in wanted}


def _counting(steps: int, measured: int) -> AbstractContextManager[Count]:
    """Tells whoever waits of simulated steps, at some of which FSLRs are measured."""
    what = (
        f"{steps} simulated steps, FSLRs at {measured} of them" if steps > 1 else "the first step"
    )
    return counting(what, steps + MEASUREMENT * measured)


def _estimate(
    prober: CaptureProber,
    procedure: StartProcedure,
    walk: Walk,
    step: Step,
    probe: Batch,
    draws: int,
    turn: Turn,
    allowed: Allowance,
) -> dict[str, Estimate]:
    try:
        estimates = prober.estimate(
            walk.weights,
            step.updates,
            probe[0],
            method=procedure.method,
            rtol=allowed.next,
            generator=torch.Generator().manual_seed((draws + step.index) % 2**64),
            turn=turn,
        )
    except EstimateError as error:
        if step.index:
            fail(f"{error}; that is", procedure, step.index)
        raise
    allowed.spend(estimates)
    return estimates


def answers_to(
    captured: Capture, procedure: StartProcedure, multipliers: Mapping[str, float]
) -> frozenset[str]:
    """Return the parameters whose first unit update is another one under these multipliers.

    It is where an ``eps`` is not small beside a gradient: a scale node of s makes it ``eps / s``.
    """
    has_eps = any(rule.has_eps for rule in procedure.optimizers.rules)
    if not has_eps or all(math.isclose(m, 1.0) for m in multipliers.values()):
        return frozenset()
    plain, scaled = (first_update(captured, procedure, given) for given in (None, multipliers))
    return frozenset(
        name
        for name, update in plain.items()
        if float((scaled[name] - update).norm()) > ANSWER * float(update.norm())
    )


def first_update(
    captured: Capture, procedure: StartProcedure, multipliers: Multipliers | None = None
) -> dict[str, Tensor]:
    """Return the unit update of the first step, which is undone."""
    first = replace(procedure, settle=0, warmup=0)
    with walking(captured, first, multipliers, find_rounding=False) as walk:
        return walk.propose().updates


def _output_rms(captured: Capture, procedure: StartProcedure, walk: Walk) -> float:
    """Measure the outputs on the batch of a step, before it."""
    batch = walk.batch

    def run(weights: Mapping[str, Tensor]) -> Tensor:
        with preserved_rng():
            seed_all(procedure.seed)
            return captured.apply(weights, batch[0])

    return output_rms(run, dict(captured.model.named_parameters()))


def _noted(estimates: Mapping[str, Estimate], rounding: frozenset[str]) -> dict[str, Estimate]:
    return {
        name: estimate.unresolved().noted("its gradient is rounding")
        if name in rounding
        else estimate
        for name, estimate in estimates.items()
    }
