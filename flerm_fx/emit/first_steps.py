"""This module looks at the first steps of a compiled model's optimizers: do they train it as the
base was?

A model that ``compile`` has copied has parameters of its own. An optimizer that was built before
holds the original's, which get no gradients once the copy is called in the original's place: it
steps, and nothing moves. And scale nodes hold multipliers alone: whatever else the base's groups
had, its rates and decays, the optimizer of the compiled model has to have.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from flerm_fx.boundary.warned import warn
from flerm_fx.errors import OptimizerError
from flerm_fx.recipe.as_base import check_as_base
from flerm_fx.recipe.optimizers import Optimizers, rate_of
from flerm_fx.recipe.update_rule import UpdateRule


@dataclass
class _Watch:
    original: ref[nn.Module] | None
    base: Optimizers
    untrained: set[str]


_watched: WeakKeyDictionary[nn.Module, _Watch] = WeakKeyDictionary()
"""Compiled models with parameters that no optimizer has stepped yet."""

_hooked: list[Any] = []


def watch(compiled: nn.Module, base: Optimizers, original: nn.Module | None = None) -> None:
    """Look at the first step of each parameter of a compiled model, without keeping a model alive.

    A step that an optimizer of the original takes while the compiled model alone has gradients is
    warned of, once. One of the compiled model's own is held against the base's before it is taken,
    by :func:`flerm_fx.recipe.as_base.check_as_base`, which raises or warns.

    Args:
        compiled: a model with scale nodes.
        base: optimizers of the base's run, which hold parameters by the compiled model's names.
        original: the model that it is a copy of, if it is one.
    """
    if not _hooked:  # one for all, for good: hooks cannot be removed while they are called
        _hooked.append(register_optimizer_step_pre_hook(_before_step))
    names = {name for name, p in compiled.named_parameters() if p.requires_grad}
    _watched[compiled] = _Watch(None if original is None else ref(original), base, names)


def is_watched(compiled: nn.Module) -> bool:
    """Tell whether a compiled model has parameters that no optimizer has stepped yet."""
    return compiled in _watched


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    if not _watched:
        return
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for compiled, watched in list(_watched.items()):
        held = {
            name: groups[id(p)]
            for name, p in compiled.named_parameters()
            if id(p) in groups and name in watched.untrained
        }
        original = None if watched.original is None else watched.original()
        if held:
            check_as_base(watched.base, _given(optimizer, held))
            watched.untrained -= held.keys()
            if not watched.untrained:
                _watched.pop(compiled, None)
        elif original is not None and any(id(p) in groups for p in original.parameters()):
            if _has_gradients(original):  # it trains, which is another run
                _watched.pop(compiled, None)
            elif _has_gradients(compiled):
                _watched.pop(compiled, None)
                warn(
                    f"{type(optimizer).__name__} holds the parameters of the model that was "
                    "compiled, and the compiled model, which has gradients, has others: the step "
                    "trains nothing. Build the optimizer over compiled.parameters() or "
                    "compiled.base_groups(lr), or compile with emit='module' or donate=True, which "
                    "keep the model's own parameters",
                    stacklevel=2,
                )


def _given(
    optimizer: Optimizer, held: dict[str, dict[str, Any]]
) -> dict[str, tuple[UpdateRule, float]]:
    """Return rule and rate of each parameter, but for optimizers whose rule cannot be told.

    A wrapper that changes the step is one; the optimizer inside of it is seen as it steps.
    """
    of_group: dict[int, tuple[UpdateRule, float]] = {}
    try:
        for group in held.values():
            if id(group) not in of_group:
                rule = UpdateRule.of_group(optimizer, group)
                of_group[id(group)] = rule, rate_of(optimizer, group)
    except OptimizerError:
        return {}
    return {name: of_group[id(group)] for name, group in held.items()}


def _has_gradients(model: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in model.parameters())
