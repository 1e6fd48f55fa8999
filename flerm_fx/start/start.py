"""The start: FSLRs at the beginning of training, measured by a procedure that repeats anywhere."""

import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flerm_fx.capture.tracing import Capture
from flerm_fx.errors import DivergenceError, EstimateError, InputError, OptimizerError
from flerm_fx.model.hooks import only
from flerm_fx.model.inputs import (
    Batch,
    OutputFn,
    as_real,
    call_arguments,
    device_of,
    is_finite,
    own_loss,
    select_output,
    to_device,
)
from flerm_fx.model.randomness import preserved_rng, seed_all
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.planner import Method
from flerm_fx.probe.prober import Prober
from flerm_fx.recipe.loss import Loss
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.schedule import settling_steps, start_steps, step_of_round
from flerm_fx.recipe.update_rule import group_settings
from flerm_fx.start.output_size import output_rms

MODEL_LOSS = "output.loss"
"""Name of the loss that a model returns itself."""

AVERAGED_STEPS = 4
"""A late start is averaged over this many last steps (fewer if fewer were taken)."""

ANSWER = 1e-3
"""Relative change of a unit update that is worth another measurement: a tenth of what ``check()``
allows."""

NUDGE = 2.0**-16
"""Relative change of the weights, up or down at random, that tells rounding from gradients; at
least the weights' own last bit. Far above the last bit, all rounding falls otherwise."""

ROUNDED = 0.5
"""Relative change of a gradient under such a nudge beyond which it is rounding: noise changes by
1.4 of itself, gradients by about the nudge, in bfloat16 by a few hundredths."""


@dataclass(frozen=True)
class StartProcedure:
    """How a start is measured: the same for the base model and for every target.

    Attributes:
        optimizers: update rules and learning rates of the settling steps, of each parameter group;
            weight decay is left out, as multipliers leave it alone.
        settle: simulated steps before the start; 0 measures the first step.
        loss: loss function; None takes the ``.loss`` of the model's output.
        pool: ``(inputs, targets)`` batches. FSLRs are measured on the first; steps are taken on
            the others in turn, or on the first where there is only one.
        output_fn: picks the output tensor.
        method, rtol: as for :func:`flerm_fx.measure`.
        seed: of dropout in the simulated steps and of the random cotangents.
    """

    optimizers: Optimizers
    settle: int
    loss: Loss | None
    pool: tuple[Batch, ...]
    output_fn: OutputFn | None
    method: Method
    rtol: float
    seed: int

    def after(self, steps: int) -> "StartProcedure":
        """The procedure of the late start: the same with so many more simulated steps."""
        return replace(self, settle=self.settle + steps)

    def held_as(self, held: Mapping[str, int]) -> "StartProcedure":
        """The same for parameters that its optimizers hold in this way."""
        return replace(self, optimizers=replace(self.optimizers, held=held))

    def at_rates(self, learning_rates: Sequence[float]) -> "StartProcedure":
        """The same at other learning rates, one for each parameter group."""
        return replace(
            self, optimizers=replace(self.optimizers, learning_rates=tuple(learning_rates))
        )


def batch_loss(
    model: nn.Module, batch: Batch, loss: Loss | None, output_fn: OutputFn | None
) -> Tensor:
    """Loss of one batch.

    Raises:
        InputError: no targets, no loss function, and no loss in the output.
    """
    args, kwargs = call_arguments(batch[0])
    output = model(*args, **kwargs)
    if loss is not None:
        return loss(select_output(output, output_fn), batch[1])
    own = own_loss(output)
    if own is None:
        raise InputError(
            "there are no targets to take a loss of, and the model returns no .loss: pass "
            "targets=... (and loss_fn=... unless cross entropy or mean squared error is meant)"
        )
    return own


Multipliers = Mapping[str, float]


@dataclass(frozen=True)
class Moment:
    """What is measured at a settling step.

    Attributes:
        fslrs: of the step's unit updates.
        output_rms: root mean square of the outputs on the batch that the step is taken on, before
            it, masks aside (:func:`flerm_fx.start.output_size.output_rms`).
    """

    fslrs: Mapping[str, Estimate]
    output_rms: float


Follow = Callable[[int, Moment], Multipliers | None]
"""From a step and what was found there to the multipliers that hold from this step on; None, at the
last step of a round, to end there."""


def measure_settling(
    captured: Capture,
    procedure: StartProcedure,
    follow: Follow | None = None,
    *,
    draw_seed: int | None = None,
    prober: Prober | None = None,
    sized: bool = True,
) -> dict[int, Moment]:
    """FSLRs of the unit updates at each settling step, of which :func:`start_of` makes the start.

    The steps are :func:`flerm_fx.recipe.schedule.settling_steps`, and after them, for as many more
    rounds of ``settle`` steps as ``follow`` asks for, those of
    :func:`flerm_fx.recipe.schedule.step_of_round` that are steps of the start.

    Multipliers are 1 at first. What ``follow`` returns holds for the measured step already, whose
    updates are multiplied by new over old, which is exact for rules that are linear in the rate.
    Everything is undone, as by :func:`measure_start`, which raises the same errors.

    Args:
        captured: the model, captured; a copy that the caller owns.
        procedure: what to do.
        follow: multipliers from each measured step on; all are 1, for one round, if None.
        draw_seed: of the random cotangents; the procedure's own if None.
        prober: of ``captured``, where there is one.
        sized: whether to measure the size of outputs, too; 0 if not.
    """
    draws = procedure.seed if draw_seed is None else draw_seed
    prober = prober or Prober(captured)
    probe = to_device(procedure.pool[0], device_of(captured.model))
    found: dict[int, Moment] = {}
    settle, wanted = procedure.settle, settling_steps(procedure.settle)
    # Errors of several steps are independent, and their mean has less.
    rtol = min(procedure.rtol * math.sqrt(len(start_steps(settle))), 0.99)
    steps = _unit_updates(captured, procedure, None)
    with contextlib.closing(steps):
        step, end, multipliers = 0, settle, None
        while step <= end:
            taken = steps.send(multipliers)
            multipliers = None
            if step_of_round(step, settle) in wanted:
                estimates = _estimate(
                    prober,
                    replace(procedure, rtol=rtol),
                    taken.before,
                    taken.updates,
                    probe,
                    draws,
                    step,
                )
                size = _output_rms(captured, procedure, taken) if sized else 0.0
                found[step] = Moment(_noted(estimates, taken.rounding), size)
                if follow is not None:
                    multipliers = follow(step, found[step])
                    if step == end and multipliers is not None:
                        end += settle
                        wanted = start_steps(settle)
            step += 1
    return found


def start_of(found: Mapping[int, Moment], settle: int) -> dict[str, Estimate]:
    """The start: the mean over the last of the settling steps, those of the last round.

    The steps are :func:`flerm_fx.recipe.schedule.start_steps`.
    """
    averaged = [found[step].fslrs for step in start_steps(settle, max(found))]
    return {name: _mean([each[name] for each in averaged]) for name in averaged[0]}


def measure_start(
    captured: Capture,
    procedure: StartProcedure,
    multipliers: Mapping[str, float] | None = None,
    *,
    draw_seed: int | None = None,
    prober: Prober | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Estimate]:
    r"""FSLRs of the unit update after ``settle`` steps of the optimizer's own rule.

    .. math:: u_l = \frac{\Delta\theta_l}{m_l\, \mathrm{lr}}

    The steps are taken on ``captured.model`` itself, a copy that the caller owns, and undone:
    weights, buffers, mode and random state end as they were.

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
    prober = prober or Prober(captured)
    averaged = min(AVERAGED_STEPS, procedure.settle + 1)
    probe = to_device(procedure.pool[0], device_of(captured.model))
    wanted = [n for n in captured.parameters if names is None or n in names]
    measured: list[dict[str, Estimate]] = []
    steps = _unit_updates(captured, procedure, multipliers, find_rounding=names is None)
    with contextlib.closing(steps):
        for step, taken in enumerate(itertools.islice(steps, procedure.settle + 1)):
            if step <= procedure.settle - averaged:
                continue
            # Errors of several steps are independent, and their mean has less.
            rtol = min(procedure.rtol * math.sqrt(averaged), 0.99)
            chosen = {name: taken.updates[name] for name in wanted}
            found = _estimate(
                prober, replace(procedure, rtol=rtol), taken.before, chosen, probe, draws, step
            )
            measured.append(_noted(found, taken.rounding))
    return {name: _mean([found[name] for found in measured]) for name in wanted}


def _estimate(
    prober: Prober,
    procedure: StartProcedure,
    before: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    probe: Batch,
    draws: int,
    step: int,
) -> dict[str, Estimate]:
    try:
        return prober.estimate(
            before,
            updates,
            probe[0],
            method=procedure.method,
            rtol=procedure.rtol,
            generator=torch.Generator().manual_seed((draws + step) % 2**64),
        )
    except EstimateError as error:
        if step:
            _fail(f"{error}; that is", procedure, step)
        raise


def answers_to(
    captured: Capture, procedure: StartProcedure, multipliers: Mapping[str, float]
) -> frozenset[str]:
    """The parameters whose first unit update is another one under these multipliers.

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
    captured: Capture,
    procedure: StartProcedure,
    multipliers: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """The unit update of the first step, which is undone."""
    first = replace(procedure, settle=0)
    steps = _unit_updates(captured, first, multipliers, find_rounding=False)
    with contextlib.closing(steps):
        return next(steps).updates


@dataclass(frozen=True)
class _Step:
    """A simulated step: weights before it, their unit updates, those that rounding makes, batch."""

    before: dict[str, Tensor]
    updates: dict[str, Tensor]
    rounding: frozenset[str]
    batch: Batch


def _unit_updates(
    captured: Capture,
    procedure: StartProcedure,
    multipliers: Mapping[str, float] | None,
    *,
    find_rounding: bool = True,
) -> Generator[_Step, Multipliers | None, None]:
    """Simulated steps, without an end. What is sent are other multipliers, for it and the next."""
    model, parameters = captured.model, captured.parameters
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    pool = to_device(procedure.pool, device_of(model))
    run = procedure.optimizers

    def settings(name: str, multiplier: float) -> dict[str, Any]:
        return group_settings(run.rule(name), run.rate(name), multiplier, 0.0)

    rates = {name: settings(name, (multipliers or {}).get(name, 1.0)) for name in parameters}
    # Nothing follows a first step, so it may be as large as it takes for the update not to be lost
    # in the rounding of weights: a power of two is divided out exactly.
    stretch = _stretch(parameters, procedure) if procedure.settle == 0 else 1.0
    rounding: frozenset[str] = frozenset()
    with only(model, captured.hooks), untouched(model), torch.enable_grad():
        seed_all(procedure.seed)
        try:
            optimizers = run.built(_grouped(parameters, rates, run, apart=procedure.settle > 0))
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] *= stretch
            for step in itertools.count():
                batch = pool[0] if len(pool) == 1 else pool[1 + step % (len(pool) - 1)]
                before = {name: p.detach().clone() for name, p in parameters.items()}
                _differentiate(model, parameters, batch, procedure, step)
                if step == 0 and find_rounding:
                    rounding = _rounding(model, parameters, batch, procedure)
                for optimizer in optimizers:
                    _take(optimizer)
                updates = {
                    name: (p.detach() - before[name]) / (stretch * rates[name]["lr"])
                    if rates[name]["lr"]
                    else torch.zeros_like(p)  # its group is not trained
                    for name, p in parameters.items()
                }
                if step == 0 and multipliers is None:
                    _check_moves(before, updates, {name: run.rate(name) for name in before})
                changed = yield _Step(before, updates, rounding, batch)
                if changed is not None:
                    other = {name: settings(name, changed[name]) for name in parameters}
                    _turn(parameters, optimizers, before, updates, rates, other)
                    rates = other
        finally:
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(weights[name])


def _take(optimizer: Optimizer) -> None:
    try:
        optimizer.step()
    except Exception as error:  # whatever a rule from elsewhere may raise
        raise OptimizerError(
            f"{type(optimizer).__name__} cannot take a simulated step, in which each parameter has "
            f"its own multiplier: {type(error).__name__}: {error}"
        ) from error


def _check_moves(
    before: Mapping[str, Tensor], updates: Mapping[str, Tensor], rates: Mapping[str, float]
) -> None:
    """Whether a step at each of the rates moves anything that is not 0.

    Raises:
        OptimizerError: rounding takes all of it.
    """
    for rate in {rate for rate in rates.values() if rate}:
        of_rate = [name for name in updates if rates[name] == rate]
        if all(lost_in_rounding(before[n], updates[n], rate) for n in of_rate) and any(
            bool(before[n].any()) for n in of_rate
        ):
            raise OptimizerError(
                f"a step at learning rate {rate:g} moves no weight: of {of_rate[0]!r}, for one, it "
                f"is below half of the last place of each in {before[of_rate[0]].dtype}; record at "
                "a higher learning rate"
            )


def lost_in_rounding(weight: Tensor, unit_update: Tensor | float, rate: float) -> bool:
    r"""Whether a step leaves each entry of a weight that is not 0 as it is.

    Half of the last place of w is at least :math:`\epsilon |w| / 4` on either side, so that
    :math:`w + \mathrm{lr}\,u = w` in floating point where :math:`\mathrm{lr} |u|` is less. A unit
    update is taken to be 1 at least, as Adam's is: where gradients vanish it is not the rate that
    is to blame.

    >>> weight = torch.tensor([0.5, 0.0])
    >>> lost_in_rounding(weight, 1.0, 1e-9), lost_in_rounding(weight, 1.0, 1e-7)
    (True, False)
    """
    sizes = weight.detach().abs()
    last = torch.finfo(weight.dtype).eps / 4 * sizes
    moved = rate * torch.as_tensor(unit_update).abs().clamp_min(1.0).to(last) >= last
    return not bool((moved & (sizes > 0)).any())


def _stretch(parameters: Mapping[str, nn.Parameter], procedure: StartProcedure) -> float:
    """Factor on the learning rate, well inside the range of the weights' type."""
    smallest_range = min(torch.finfo(p.dtype).max for p in parameters.values())
    factor = 2.0**8 if smallest_range < 1e6 else 2.0**24
    return factor if all(procedure.optimizers.linear(factor)) else 1.0


def _turn(
    parameters: Mapping[str, nn.Parameter],
    optimizers: Sequence[Optimizer],
    before: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    rates: Mapping[str, dict[str, Any]],
    other: Mapping[str, dict[str, Any]],
) -> None:
    """Give parameters other rates, for the step just taken and those that follow."""
    groups = {id(group["params"][0]): group for o in optimizers for group in o.param_groups}
    with torch.no_grad():
        for name, parameter in parameters.items():
            if other[name] != rates[name]:
                parameter.copy_(before[name] + other[name]["lr"] * updates[name])
                groups[id(parameter)].update(other[name])


def _grouped(
    parameters: Mapping[str, nn.Parameter],
    rates: Mapping[str, dict[str, Any]],
    run: Optimizers,
    *,
    apart: bool,
) -> dict[int, list[dict[str, Any]]]:
    """For each of the run's groups, parameter groups, one for each distinct set of settings.

    With ``apart`` there is one for each parameter, whose settings may change.
    """
    groups: dict[int, dict[str, dict[str, Any]]] = {}
    for name, parameter in parameters.items():
        settings = {**rates[name]}
        key = name if apart else repr(sorted(settings.items()))
        of_kind = groups.setdefault(run.index(name), {})
        of_kind.setdefault(key, {"params": [], **settings})["params"].append(parameter)
    return {index: list(found.values()) for index, found in groups.items()}


def _differentiate(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    procedure: StartProcedure,
    step: int,
) -> None:
    """Gradients of one batch's loss, all finite."""
    model.zero_grad(set_to_none=True)
    loss = batch_loss(model, batch, procedure.loss, procedure.output_fn)
    if not math.isfinite(loss.item()):
        _fail(f"the loss is {loss.item()}", procedure, step)
    if not loss.requires_grad:
        raise InputError(
            "the loss does not depend on any trainable parameter (it was detached, or computed "
            "without gradients); expected one that .backward() can be called on"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in parameters.items():
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise InputError(
                f"the gradient of parameter {name!r} is sparse, which is not supported; use "
                "sparse=False in its embedding"
            )
        if parameter.grad is not None and not is_finite(parameter.grad):
            _fail(
                f"the gradient of parameter {name!r} is NaN or infinite",
                procedure,
                step,
            )


def _output_rms(captured: Capture, procedure: StartProcedure, taken: _Step) -> float:
    """Of the outputs on the batch of a step, before it."""

    def run(weights: Mapping[str, Tensor]) -> Tensor:
        with preserved_rng():
            seed_all(procedure.seed)
            return captured.apply(weights, taken.batch[0])

    return output_rms(run, {**dict(captured.model.named_parameters()), **taken.before})


def _rounding(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    procedure: StartProcedure,
) -> frozenset[str]:
    """Parameters whose gradient is rounding alone: a nudge of the weights makes it another.

    The loss may not depend on a parameter that the output depends on: cross entropy does not see a
    number added to all logits. Adam turns what rounding leaves of its gradient into a full step.
    """
    gradients = {name: p.grad for name, p in parameters.items()}
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(procedure.seed)
    found = set()
    with untouched(model):
        seed_all(procedure.seed)
        try:
            with torch.no_grad():
                for p in parameters.values():
                    part = as_real(p)
                    sign = 2 * torch.randint(2, part.shape, generator=generator) - 1
                    nudge = max(torch.finfo(p.dtype).eps, NUDGE)
                    part.mul_(1 + nudge * sign.to(part.device, part.dtype))
            model.zero_grad(set_to_none=True)
            loss = batch_loss(model, batch, procedure.loss, procedure.output_fn)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, p in parameters.items():
                gradient = gradients[name]
                if gradient is not None and p.grad is not None:
                    before, after = as_real(gradient).float(), as_real(p.grad).float()
                    if (after - before).norm() > ROUNDED * before.norm():
                        found.add(name)
        finally:
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(weights[name])
                    p.grad = gradients[name]
    return frozenset(found)


def _fail(what: str, procedure: StartProcedure, step: int) -> None:
    if step == 0:
        raise EstimateError(
            f"{what} on the first batch of the probe pool; expected finite numbers: check the "
            "model, its initialisation and the batch"
        )
    rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(procedure.optimizers.learning_rates))
    last = max(step, procedure.settle)  # a target may settle for longer
    raise DivergenceError(
        f"{what} at step {step} of {last} settling steps at learning rate {rates}: "
        "the start diverges; record with a lower learning rate, or a smaller settle or "
        "resolve_after"
    )


def _noted(estimates: Mapping[str, Estimate], rounding: frozenset[str]) -> dict[str, Estimate]:
    return {n: _rounded(e) if n in rounding else e for n, e in estimates.items()}


def _rounded(estimate: Estimate) -> Estimate:
    return replace(
        estimate,
        stderr=max(estimate.stderr, estimate.value),
        note="; ".join(filter(None, (estimate.note, "its gradient is rounding"))),
    )


def _mean(estimates: list[Estimate]) -> Estimate:
    """Mean of a parameter's FSLRs over steps, their errors independent."""
    if len(estimates) == 1:
        return estimates[0]
    return Estimate(
        value=sum(e.value for e in estimates) / len(estimates),
        stderr=math.sqrt(sum(e.stderr**2 for e in estimates)) / len(estimates),
        method=estimates[-1].method,
        samples=sum(e.samples for e in estimates),
        note=estimates[-1].note,
    )
