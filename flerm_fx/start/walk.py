"""A walk takes simulated steps by a run's own rules, and undoes them."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flerm_fx.capture.captured import Capture
from flerm_fx.errors import DivergenceError, EstimateError, InputError, OptimizerError
from flerm_fx.model.hooks import only
from flerm_fx.model.inputs import Batch, device_of, is_finite, to_device
from flerm_fx.model.lent import Lent
from flerm_fx.model.randomness import seed_all
from flerm_fx.model.untouched import untouched
from flerm_fx.recipe.multiplier import group_settings
from flerm_fx.recipe.schedule import warmed_up
from flerm_fx.start.procedure import StartProcedure, batch_loss
from flerm_fx.start.rounding import check_moves, rounding_alone, stretch

Multipliers = Mapping[str, float]


PARTS = 4
"""In so many parts a step that is measured is taken, where the optimizer's rule allows it: what
weights were before is kept for one of them at a time, and its gradients are let go behind it."""


@dataclass(frozen=True)
class Step:
    """A ``Step`` is a simulated step.

    Attributes:
        index: its number, from 0.
        updates: the unit update of each parameter, the step divided by its own learning rate; 0
            where that is 0.
        rounding: the parameters whose gradient was rounding alone at the first step.
    """

    index: int
    updates: dict[str, Tensor]
    rounding: frozenset[str]


class Walk:
    """A ``Walk`` takes simulated steps on a captured model, from its weights on; all is undone at
    the end.

    The rate rises over the procedure's warm-up and stays. Weight decay is left out.

    Args:
        model: runs with the weights.
        weights: that the steps change.
        procedure: optimizers, warm-up, pool and loss.
        multipliers: of the learning rates; 1 if None.
        find_rounding: whether to look for gradients of rounding alone at the first step.

    Attributes:
        weights: as given.
        index: the number of the next step.
        losses: on the batch of each step so far, before it.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        procedure: StartProcedure,
        multipliers: Multipliers | None = None,
        *,
        find_rounding: bool = True,
    ) -> None:
        self.weights = weights
        self.index = 0
        self.losses: list[float] = []
        self._model = model
        self._procedure = procedure
        self._pool = to_device(procedure.pool, device_of(model))
        self._is_plain = multipliers is None
        self._settings = {n: self._of(n, (multipliers or {}).get(n, 1.0)) for n in weights}
        # Nothing follows a first step, so it may be as large as it takes for the update not to be
        # lost in the rounding of weights: a power of two is divided out exactly.
        self._stretch = stretch(weights, procedure) if procedure.settle == 0 else 1.0
        self._find_rounding = find_rounding
        self._rounding: frozenset[str] = frozenset()
        self._names = {id(weight): name for name, weight in weights.items()}
        self._parts = [
            (tuple(procedure.optimizers.built(self._grouped(names))), names)
            for names in _parts(weights, procedure)
        ]

    @property
    def batch(self) -> Batch:
        """What the next step is taken on."""
        pool: tuple[Batch, ...] = self._pool
        return pool[0] if len(pool) == 1 else pool[1 + self.index % (len(pool) - 1)]

    def step(self) -> None:
        """Take one more step.

        Raises:
            EstimateError: a loss or gradient is NaN or infinite at the first step.
            DivergenceError: so it is later.
            InputError: the loss depends on no parameter, or a gradient is sparse.
            OptimizerError: the optimizer fails, or its first step moves nothing.
        """
        if self.index == 0:  # which is looked at
            self.take(self.propose())
            return
        self._differentiate()
        for optimizers, names in self._parts:
            self._move(optimizers, names)
        self.index += 1

    def propose(self) -> Step:
        """Return what the next step would be; weights stay what they are. :meth:`take` takes it.

        Raises:
            FlermError: as :meth:`step`.
        """
        self._differentiate()
        if self.index == 0 and self._find_rounding:
            self._rounding = rounding_alone(self._model, self.weights, self.batch, self._procedure)
        updates: dict[str, Tensor] = {}
        for position, (optimizers, names) in enumerate(self._parts):
            before = {name: self.weights[name].detach().clone() for name in names}
            self._move(optimizers, names)
            for name in names:
                weight, rate = self.weights[name].detach(), self._rate(name)
                moved = weight - before[name]
                updates[name] = moved.div_(rate) if rate else moved.zero_()  # not trained
                weight.copy_(before.pop(name))
            if self._procedure.settle == 0:  # nothing follows, and state is let go
                self._parts[position] = (), names
        if self.index == 0 and self._is_plain:
            check_moves(
                self.weights,
                updates,
                {name: self._procedure.optimizers.rate(name) for name in updates},
            )
        return Step(self.index, {name: updates[name] for name in self.weights}, self._rounding)

    def take(self, step: Step, multipliers: Multipliers | None = None) -> None:
        """Take a step that was proposed.

        Args:
            step: the proposal.
            multipliers: others, for this step already and those that follow: exact for rules that
                are linear in the rate.
        """
        if multipliers is not None:
            self._settings = {name: self._of(name, multipliers[name]) for name in self.weights}
            for optimizer in self._optimizers():
                optimizer.param_groups[:] = self._split(optimizer.param_groups)
        with torch.no_grad():
            for name, update in step.updates.items():
                self.weights[name].add_(update, alpha=self._rate(name))
        self.index += 1

    def _of(self, name: str, multiplier: float) -> dict[str, Any]:
        run = self._procedure.optimizers
        return group_settings(run.rule(name), run.rate(name), multiplier, 0.0)

    def _rate(self, name: str) -> float:
        factor = self._stretch * warmed_up(self.index, self._procedure.warmup)
        return float(self._settings[name]["lr"]) * factor

    def _optimizers(self) -> Iterator[Optimizer]:
        return (optimizer for optimizers, _ in self._parts for optimizer in optimizers)

    def _grouped(self, names: Sequence[str]) -> dict[int, list[dict[str, Any]]]:
        """Return for each of the run's groups parameter groups, one for each distinct set of
        settings: an optimizer takes few groups in less time than many.
        """
        of_kind: dict[int, list[Tensor]] = {}
        for name in names:
            index = self._procedure.optimizers.index(name)
            of_kind.setdefault(index, []).append(self.weights[name])
        return {index: self._split([{"params": held}]) for index, held in of_kind.items()}

    def _split(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the groups in parts of equal settings, each with what its group keeps."""
        parts: list[dict[str, Any]] = []
        for group in groups:
            alike: dict[str, dict[str, Any]] = {}
            for weight in group["params"]:
                settings = self._settings[self._names[id(weight)]]
                key = repr(sorted(settings.items()))
                alike.setdefault(key, {**group, "params": [], **settings})["params"].append(weight)
            parts += alike.values()
        return parts

    def _move(self, optimizers: Sequence[Optimizer], names: Sequence[str]) -> None:
        """Move weights by the optimizers' step, and let their gradients go."""
        for optimizer in optimizers:
            _take(optimizer)
        for name in names:
            self.weights[name].grad = None

    def _differentiate(self) -> None:
        """Gradients of the next batch's loss, all finite, and the rates of the step."""
        step, procedure = self.index, self._procedure
        loss = batch_loss(self._model, self.batch, procedure.loss, procedure.output_fn)
        self.losses.append(loss.item())
        if not math.isfinite(self.losses[-1]):
            fail(f"the loss is {self.losses[-1]}", procedure, step)
        if not loss.requires_grad:
            raise InputError(
                "the loss does not depend on any trainable parameter (it was detached, or computed "
                "without gradients); expected one that .backward() can be called on"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in self.weights.items():
            gradient = parameter.grad
            if gradient is not None and gradient.is_sparse:
                raise InputError(
                    f"the gradient of parameter {name!r} is sparse, which is not supported; use "
                    "sparse=False in its embedding"
                )
            if gradient is not None and not is_finite(gradient):
                fail(f"the gradient of parameter {name!r} is NaN or infinite", procedure, step)
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:  # each of one rate
                group["lr"] = self._rate(self._names[id(group["params"][0])])


@contextlib.contextmanager
def walking(
    captured: Capture,
    procedure: StartProcedure,
    multipliers: Multipliers | None = None,
    *,
    find_rounding: bool = True,
) -> Iterator[Walk]:
    """Return a :class:`Walk` on a model's own weights, which are put back at the end of the
    block.
    """
    model = captured.model
    lent = Lent(model, captured.parameters, offload=procedure.offload)
    with only(model, captured.hooks), untouched(model), lent, lent, torch.enable_grad():
        seed_all(procedure.seed)
        yield Walk(model, lent.parameters, procedure, multipliers, find_rounding=find_rounding)


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


def _parts(weights: Mapping[str, Tensor], procedure: StartProcedure) -> list[list[str]]:
    """Return the weights in :data:`PARTS` of about as many bytes; in one, for a rule that may see
    all.

    Each rule of ``torch.optim`` steps a tensor by its own gradients alone.
    """
    if any(rule.name is None or rule.factory for rule in procedure.optimizers.rules):
        return [list(weights)]
    sizes = {name: weight.numel() * weight.element_size() for name, weight in weights.items()}
    parts: dict[int, list[str]] = {}
    before, total = 0, max(sum(sizes.values()), 1)
    for name, size in sizes.items():
        parts.setdefault(PARTS * before // total, []).append(name)
        before += size
    return list(parts.values())
