"""Optimizers that train nothing, since they hold the parameters of the model that was compiled.

A model that ``compile`` has copied has parameters of its own. An optimizer that was built before
holds the original's, which get no gradients once the copy is called in the original's place: it
steps, and nothing moves.
"""

import warnings
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

_watched: "WeakKeyDictionary[nn.Module, ref[nn.Module]]" = WeakKeyDictionary()
"""Compiled models that no optimizer has stepped yet, with the models that they are copies of."""

_hooked: list[Any] = []


def warn_of_optimizers_of(original: nn.Module, compiled: nn.Module) -> None:
    """Warn once, should an optimizer of the original step while the compiled model has gradients.

    Neither model is kept alive. The watch ends when an optimizer of the compiled model steps.

    Args:
        original: the model that was compiled.
        compiled: a copy of it, with parameters of its own.
    """
    if not _hooked:  # one for all, for good: hooks cannot be removed while they are called
        _hooked.append(register_optimizer_step_pre_hook(_before_step))
    _watched[compiled] = ref(original)


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    if not _watched:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for compiled, reference in list(_watched.items()):
        original = reference()
        if original is None or _holds(held, compiled):
            _watched.pop(compiled, None)
        elif _holds(held, original) and _has_gradients(compiled) and not _has_gradients(original):
            _watched.pop(compiled, None)
            warnings.warn(
                f"{type(optimizer).__name__} holds the parameters of the model that was compiled, "
                "and the compiled model, which has gradients, has others: the step trains nothing. "
                "Build the optimizer over compiled.parameters() or compiled.base_groups(lr), or "
                "compile with emit='module' or donate=True, which keep the model's own parameters",
                stacklevel=2,
            )


def _holds(held: set[int], model: nn.Module) -> bool:
    return any(id(parameter) in held for parameter in model.parameters())


def _has_gradients(model: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in model.parameters())
