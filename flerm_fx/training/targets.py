"""A target has multipliers act on a model in training, and changes them between two steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.errors import InputError
from flerm_fx.recipe.groups import GroupMultipliers
from flerm_fx.recipe.likeness import state_powers
from flerm_fx.recipe.multiplier import node_multiplier, node_scale
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.training.observer import Observed

Multipliers = Mapping[str, float]


class PlainTarget:
    """A ``PlainTarget`` is a model whose optimizer steps at the multiplied rates.

    Args:
        model: in training, without wrappers around it.
        optimizers: of its parameters.
        run: their rules.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], run: Optimizers) -> None:
        self._model = model
        self._linear = run.linear(2.0)
        self._run = run
        self._groups = {
            id(optimizer): GroupMultipliers(model, optimizer, run) for optimizer in optimizers
        }

    def multipliers(self) -> dict[str, float]:
        """Return the multipliers that hold at first."""
        return {}

    def check(self, multipliers: Multipliers) -> None:
        """Any will do: they are no part of the model."""

    def stepping(self, optimizer: Optimizer, multipliers: Multipliers) -> None:
        """Before each step."""
        self._groups[id(optimizer)].apply(multipliers)

    def stepped(self) -> None:
        """After each step."""
        for groups in self._groups.values():
            groups.restore()

    def saved(self) -> Callable[[], None]:
        """Return what goes back to the present, where the observer does not do that."""
        return _nothing

    def forget(self) -> None:
        """Forget what was saved, which is not needed any more."""

    def unit(self, observed: Observed, multipliers: Multipliers) -> Observed:
        """Make of the step that for multipliers of 1; its updates are changed in place."""
        for name, update in observed.updates.items():
            update.div_(multipliers.get(name, 1.0))
        return observed

    def rematch(self, observed: Observed, old: Multipliers, new: Multipliers) -> None:
        """Make of the step just taken, under the old multipliers, one under the new ones."""
        parameters = dict(self._model.named_parameters())
        for name in observed.updates.keys() & new.keys():
            ratio = new[name] / old[name]
            if ratio != 1.0 and self._linear[self._run.index(name)]:
                with torch.no_grad():
                    parameters[name].copy_(_stretched(parameters[name], observed, name, ratio))


class ScaledTarget:
    """A ``ScaledTarget`` is a model with scale nodes, whose optimizer trains stored weights at one
    rate.

    Args:
        model: with scale nodes.
        optimizers: of its stored weights.
        run: their rules.

    Raises:
        OptimizerError: a rule whose state does not follow a change of scale.
    """

    def __init__(
        self, model: ScaledModel, optimizers: Sequence[Optimizer], run: Optimizers
    ) -> None:
        self._model = model
        self._optimizers = tuple(optimizers)
        self._linear = run.linear(2.0)
        self._run = run
        self._powers = [state_powers(rule) for rule in run.rules]
        self._gradients: dict[nn.Parameter, Tensor] = {}  # before the last change of scales

    def multipliers(self) -> dict[str, float]:
        """Return the multipliers that hold at first."""
        return {n: node_multiplier(self._run.rule(n), s) for n, s in self._model.scales.items()}

    def check(self, multipliers: Multipliers) -> None:
        """Tell whether the scales are these.

        Raises:
            InputError: they are not.
        """
        for name, present in self.multipliers().items():
            if abs(present - multipliers[name]) > 1e-6 * present:
                raise InputError(
                    f"the scale node of {name!r} stands for a multiplier of {present:g}, and the "
                    f"matcher's state has {multipliers[name]:g}: load the model's state first, of "
                    "the same checkpoint"
                )

    def stepping(self, optimizer: Optimizer, multipliers: Multipliers) -> None:
        """Before each step."""

    def stepped(self) -> None:
        """After each step."""

    def saved(self) -> Callable[[], None]:
        """Return what goes back to the present scales and gradients; weights are the observer's
        affair.
        """
        held = self._model.held()
        gradients = self._gradients = {}

        def restore() -> None:
            self._model.hold(held)
            with torch.no_grad():
                for parameter, gradient in gradients.items():
                    assert parameter.grad is not None
                    parameter.grad.copy_(gradient)

        return restore

    def forget(self) -> None:
        """Forget what was saved, which is not needed any more."""
        self._gradients = {}

    def unit(self, observed: Observed, multipliers: Multipliers) -> Observed:
        r"""Make of the step that of θ = s·w for multipliers of 1; updates are changed in place."""
        scales = self._model.scales
        for name, update in observed.updates.items():
            update.mul_(scales.get(name, 1.0) / multipliers.get(name, 1.0))
        return replace(
            observed, before={n: w * scales.get(n, 1.0) for n, w in observed.before.items()}
        )

    def rematch(self, observed: Observed, old: Multipliers, new: Multipliers) -> None:
        """Give each node the scale of its new multiplier, and what is stored behind it.

        All graphs are lowered before weights, gradients and optimizer states follow. Should
        anything fail, what :meth:`saved` returned undoes it.
        """
        parameters = dict(self._model.named_parameters())
        present = self._model.scales
        changed = {
            name: node_scale(self._run.rule(name), new[name])
            for name in observed.updates.keys() & new.keys()
            if new[name] != old[name]
        }
        if changed:
            self._model.rescale({**present, **changed})
        for name, scale in changed.items():
            index, parameter = self._run.index(name), parameters[name]
            factor = scale / present[name]
            with torch.no_grad():
                moved = parameter.detach()
                if self._linear[index]:
                    moved = _stretched(parameter, observed, name, new[name] / old[name])
                parameter.copy_(moved / factor)
                if parameter.grad is not None:
                    self._gradients[parameter] = parameter.grad.clone()
                    parameter.grad.mul_(factor)
                state = self._optimizers[self._run.belongs[index]].state.get(parameter, {})
                for key, power in self._powers[index].items():
                    if power and key in state:
                        state[key] = state[key] * factor**power


def _nothing() -> None:
    """Do nothing, since all is as it was."""


def _stretched(parameter: Tensor, observed: Observed, name: str, ratio: float) -> Tensor:
    """Return where a step would have led whose rate, but not whose decay, is ``ratio`` times as
    large.
    """
    before, decay = observed.before[name], observed.decays[name]
    kept = before - decay * before
    return kept + ratio * (parameter.detach() - kept)
