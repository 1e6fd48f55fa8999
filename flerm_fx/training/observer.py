"""Hooks on optimizers see what the steps of a real run do to the weights."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flerm_fx.model.distributed import check_finite_on_ranks, holds
from flerm_fx.recipe.multiplier import decay_per_step
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.start.precision import finer


@dataclass(frozen=True)
class Observed:
    """An ``Observed`` is one step of the run.

    Attributes:
        step: its number, from 0.
        before: all parameters before it, by canonical name.
        updates: unit update of each parameter that was trained: the step divided by the learning
            rate, without the decay that is not part of the gradient.
        rates: their learning rates.
        decays: the part of a weight that the step took off beside its update.

    Parameters and updates may be sharded over ranks.
    """

    step: int
    before: dict[str, Tensor]
    updates: dict[str, Tensor]
    rates: dict[str, float]
    decays: dict[str, float]


class UpdateObserver:
    r"""An ``UpdateObserver`` takes the unit updates of a run's own steps.

    .. math:: u_l = (\Delta\theta_l + c\,\theta_l) / \mathrm{lr}_l

    where c is the weight decay of a step, if the rule takes it from the weights (AdamW).
    Multipliers leave that alone, so it is no part of what they are made from. A parameter that a
    step leaves exactly as it is has not decayed either: it had no gradient, or the rule's first
    step only fills its state. Its unit update is 0.

    The owner calls :meth:`before` and :meth:`after` from hooks on each optimizer. A step of the run
    is one of all its optimizers, in whichever order; where one of them does not take part, the step
    ends when another begins its next. A step that a gradient scaler skips is none.

    Should ``observed`` raise, or anything else that interrupts it, weights and optimizer states are
    put back as they were before the step, and then what ``saved`` has returned is called. What
    ``observed`` returns is called after that can no longer be: it is for whoever looks on.

    Args:
        model: in training, without wrappers around it.
        optimizers: of all its trainable parameters.
        run: their rules.
        due: whether to take a step with this number; the next one with a learning rate above 0 is
            taken instead where all are 0.
        observed: given what was taken; returns what is left to do once it stands.
        saved: called before it; returns what undoes all else that it changes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        run: Optimizers,
        due: Callable[[int], bool],
        observed: Callable[[Observed], Callable[[], None]],
        saved: Callable[[], Callable[[], None]] = lambda: _nothing,
    ) -> None:
        self.step = 0
        self.waiting = False
        self._model = model
        self._run = run
        self._optimizers = tuple(optimizers)
        self._due = due
        self._observed = observed
        self._saved = saved
        self._undo: Callable[[], None] = _nothing
        self._snapshots: dict[int, _Snapshot] = {}
        self._stepped: set[int] = set()

    @property
    def resting(self) -> bool:
        """Whether a step is due, but all learning rates are 0."""
        rates = (float(g["lr"]) for o in self._optimizers for g in o.param_groups)
        return self.waiting and not any(rates)

    def before(self, optimizer: Optimizer) -> None:
        """Look at a step of this optimizer before it is taken."""
        if id(optimizer) in self._stepped:
            self._all_or_nothing(self._ended)
        if self._due(self.step):
            self.waiting = True
        if self.waiting and not self.resting:
            self._snapshots[id(optimizer)] = _Snapshot.of(self._model, optimizer, self._run)

    def after(self, optimizer: Optimizer) -> None:
        """Look at a step of this optimizer after it was taken."""
        self._all_or_nothing(lambda: self._after(optimizer))

    def _after(self, optimizer: Optimizer) -> Callable[[], None]:
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            self._snapshots.pop(id(optimizer), None)
            return _nothing
        self._stepped.add(id(optimizer))
        return self._ended() if len(self._stepped) == len(self._optimizers) else _nothing

    def _ended(self) -> Callable[[], None]:
        tell = _nothing
        if self._snapshots:
            self._undo = self._saved()
            tell = self._observed(self._taken(self.step, list(self._snapshots.values())))
            self.waiting = False
        self._snapshots = {}
        self._stepped.clear()
        self.step += 1
        return tell

    def _all_or_nothing(self, change: Callable[[], Callable[[], None]]) -> None:
        snapshots, step = list(self._snapshots.values()), self.step
        try:
            tell = change()
        except BaseException:
            for snapshot in snapshots:
                snapshot.restore()
            self._undo()
            self._undo, self._snapshots = _nothing, {}
            self._stepped.clear()
            self.step, self.waiting = step, self.waiting or bool(snapshots)
            raise
        self._undo = _nothing
        tell()

    def _taken(self, step: int, snapshots: list["_Snapshot"]) -> Observed:
        weights = dict(self._model.named_parameters())
        before = {name: value for s in snapshots for name, value in s.weights.items()}
        rates = {name: rate for s in snapshots for name, rate in s.rates.items()}
        decays = {name: decay for s in snapshots for name, decay in s.decays.items()}
        updates = {}
        for name, old in before.items():
            if name in weights and rates[name] > 0:
                moved = finer(weights[name].detach()) - finer(old)
                if not holds(moved.any()):
                    decays[name] = 0.0
                elif decays[name]:
                    moved += decays[name] * old
                updates[name] = moved / rates[name]
                what = f"update (step {step}, which was undone)"
                check_finite_on_ranks(name, updates[name], what)
        # What no optimizer stepped is as it was.
        others = {n: p.detach() for n, p in weights.items() if n not in before}
        return Observed(step, {**others, **before}, updates, rates, decays)


@dataclass(frozen=True)
class _Snapshot:
    """A ``_Snapshot`` keeps what one optimizer trains, its state, and its rates, before a step."""

    optimizer: Optimizer
    parameters: dict[str, nn.Parameter]
    weights: dict[str, Tensor]
    rates: dict[str, float]
    decays: dict[str, float]
    state: dict[Any, dict[str, Any]]
    settings: list[dict[str, Any]]

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer, run: Optimizers) -> "_Snapshot":
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        parameters = {
            name: p for name, p in model.named_parameters() if p.requires_grad and id(p) in groups
        }
        return cls(
            optimizer,
            parameters,
            {name: p.detach().clone() for name, p in parameters.items()},
            {name: float(groups[id(p)]["lr"]) for name, p in parameters.items()},
            {name: decay_per_step(run.rule(name), groups[id(p)]) for name, p in parameters.items()},
            {p: _cloned(values) for p, values in optimizer.state.items()},
            [
                {key: _cloned(value) for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ],
        )

    def restore(self) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.weights[name])
        self.optimizer.state.clear()
        self.optimizer.state.update(self.state)
        for group, settings in zip(self.optimizer.param_groups, self.settings, strict=True):
            group.update(settings)


def _nothing() -> None:
    """Do nothing, since there is nothing to undo, or to tell."""


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return copy.deepcopy(value)


def measured_at(steps: Sequence[int]) -> str:
    """Return the steps at which a run was measured, in words.

    >>> measured_at([]), measured_at([0]), measured_at([0, 10, 20])
    ('not measured yet', 'measured at step 0', 'measured at 3 steps from 0 to 20')
    """
    if len(steps) > 1:
        return f"measured at {len(steps)} steps from {steps[0]} to {steps[-1]}"
    return f"measured at step {steps[0]}" if steps else "not measured yet"


class Attached:
    """An ``Attached`` hangs on hooks of optimizers until its ``with`` block ends or it is closed.

    Args:
        optimizers: whose steps have hooks.
        before: called with an optimizer before each of its steps.
        after: called with it after the step.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        before: Callable[[Optimizer], None],
        after: Callable[[Optimizer], None],
    ) -> None:
        self._handles: list[RemovableHandle] = []
        for optimizer in optimizers:
            self._handles += [
                optimizer.register_step_pre_hook(lambda o, args, kwargs: before(o)),
                optimizer.register_step_post_hook(lambda o, args, kwargs: after(o)),
            ]

    def close(self) -> None:
        """Take the hooks off the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
