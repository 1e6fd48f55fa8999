"""Simulated steps of a run's own rules, which are undone."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flerm_fx.capture.captured import Capture
from flerm_fx.errors import DivergenceError, EstimateError, InputError, OptimizerError
from flerm_fx.model.hooks import only
from flerm_fx.model.inputs import Batch, device_of, is_finite, to_device
from flerm_fx.model.randomness import seed_all
from flerm_fx.model.untouched import untouched
from flerm_fx.recipe.multiplier import group_settings
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.schedule import warmed_up
from flerm_fx.start.procedure import StartProcedure, batch_loss
from flerm_fx.start.rounding import check_moves, rounding_alone, stretch

Multipliers = Mapping[str, float]


@dataclass(frozen=True)
class Step:
    """A simulated step.

    Attributes:
        index: its number, from 0.
        batch: what it was taken on.
        before: the weights before it.
        updates: the unit update of each parameter, the step divided by its own learning rate; 0
            where that is 0.
        rounding: the parameters whose gradient is rounding alone.
    """

    index: int
    batch: Batch
    before: dict[str, Tensor]
    updates: dict[str, Tensor]
    rounding: frozenset[str]


class Walk:
    """Simulated steps on a captured model, from its weights on; all is undone at the end.

    The rate rises over the procedure's warm-up and stays. Weight decay is left out. It is to be had
    from :func:`walking`.

    Args:
        captured: the model, a copy that the caller owns.
        procedure: optimizers, warm-up, pool and loss.
        multipliers: of the learning rates; 1 if None.
        find_rounding: whether to look for gradients of rounding alone at the first step.
    """

    def __init__(
        self,
        captured: Capture,
        procedure: StartProcedure,
        multipliers: Multipliers | None = None,
        *,
        find_rounding: bool = True,
    ) -> None:
        self._model, self._weights = captured.model, captured.parameters
        self._procedure = procedure
        self._pool = to_device(procedure.pool, device_of(captured.model))
        self._is_plain = multipliers is None
        self._settings = {n: self._of(n, (multipliers or {}).get(n, 1.0)) for n in self._weights}
        # Nothing follows a first step, so it may be as large as it takes for the update not to be
        # lost in the rounding of weights: a power of two is divided out exactly.
        self._stretch = stretch(self._weights, procedure) if procedure.settle == 0 else 1.0
        self._find_rounding = find_rounding
        self._rounding: frozenset[str] = frozenset()
        self._taken: Step | None = None
        self._next = 0
        run = procedure.optimizers
        groups = _grouped(self._weights, self._settings, run, apart=procedure.settle > 0)
        self._optimizers = tuple(run.built(groups))
        # Each group, by the first parameter in it, whose rate is that of all.
        names = {id(p): name for name, p in self._weights.items()}
        self._groups = {
            names[id(group["params"][0])]: group
            for optimizer in self._optimizers
            for group in optimizer.param_groups
        }

    def step(self) -> Step:
        """Take one more.

        Raises:
            EstimateError: a loss or gradient is NaN or infinite at the first step.
            DivergenceError: so it is later.
            InputError: the loss depends on no parameter, or a gradient is sparse.
            OptimizerError: the optimizer fails, or its first step moves nothing.
        """
        index, pool, run = self._next, self._pool, self._procedure.optimizers
        batch = pool[0] if len(pool) == 1 else pool[1 + index % (len(pool) - 1)]
        before = {name: p.detach().clone() for name, p in self._weights.items()}
        _differentiate(self._model, self._weights, batch, self._procedure, index)
        if index == 0 and self._find_rounding:
            self._rounding = rounding_alone(self._model, self._weights, batch, self._procedure)
        for name, group in self._groups.items():
            group["lr"] = self._rate(name)
        for optimizer in self._optimizers:
            _take(optimizer)
        updates = {}
        for name, parameter in self._weights.items():
            rate = self._rate(name)
            moved = parameter.detach() - before[name]
            updates[name] = moved / rate if rate else torch.zeros_like(moved)  # not trained
        if index == 0 and self._is_plain:
            check_moves(before, updates, {name: run.rate(name) for name in before})
        self._taken = Step(index, batch, before, updates, self._rounding)
        self._next += 1
        return self._taken

    def rematch(self, multipliers: Multipliers) -> None:
        """Give parameters other multipliers, for the step just taken and those that follow.

        The step's updates are multiplied by new over old, which is exact for rules that are linear
        in the rate.
        """
        taken = self._taken
        assert taken is not None, "no step was taken"
        changed = {name: self._of(name, multipliers[name]) for name in self._weights}
        moved = [name for name in changed if changed[name] != self._settings[name]]
        self._settings = changed
        with torch.no_grad():
            for name in moved:
                parameter, update = self._weights[name], taken.updates[name]
                self._groups[name].update(changed[name])
                rate = changed[name]["lr"] * self._factor(taken.index)
                parameter.copy_(taken.before[name] + rate * update)

    def _of(self, name: str, multiplier: float) -> dict[str, Any]:
        run = self._procedure.optimizers
        return group_settings(run.rule(name), run.rate(name), multiplier, 0.0)

    def _factor(self, index: int) -> float:
        return self._stretch * warmed_up(index, self._procedure.warmup)

    def _rate(self, name: str) -> float:
        return float(self._settings[name]["lr"]) * self._factor(self._next)


@contextlib.contextmanager
def walking(
    captured: Capture,
    procedure: StartProcedure,
    multipliers: Multipliers | None = None,
    *,
    find_rounding: bool = True,
) -> Iterator[Walk]:
    """A :class:`Walk`; the model is as it was at the end of the ``with`` block."""
    model, parameters = captured.model, captured.parameters
    with only(model, captured.hooks), untouched(model), torch.enable_grad():
        seed_all(procedure.seed)
        weights = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            yield Walk(captured, procedure, multipliers, find_rounding=find_rounding)
        finally:
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(weights[name])


def fail(what: str, procedure: StartProcedure, step: int) -> NoReturn:
    """Say that a walk cannot go on.

    Raises:
        EstimateError: it could not begin.
        DivergenceError: it failed on the way.
    """
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


def _take(optimizer: Optimizer) -> None:
    try:
        optimizer.step()
    except Exception as error:  # whatever a rule from elsewhere may raise
        raise OptimizerError(
            f"{type(optimizer).__name__} cannot take a simulated step, in which each parameter has "
            f"its own multiplier: {type(error).__name__}: {error}"
        ) from error


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
    return {index: list(by_key.values()) for index, by_key in groups.items()}


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
        fail(f"the loss is {loss.item()}", procedure, step)
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
            fail(
                f"the gradient of parameter {name!r} is NaN or infinite",
                procedure,
                step,
            )
