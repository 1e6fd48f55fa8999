"""This module tells which hooks of a user change what a model computes; the others only look."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flerm_fx.boundary.compat import gradient_hooks, own_buffers, own_parameters, pytree, version_of
from flerm_fx.model.hooks import Hook, hooks_of, only, replaced
from flerm_fx.model.untouched import untouched


def that_change(model: nn.Module, run: Callable[[], Sequence[Tensor]]) -> frozenset[Hook]:
    """Return the hooks without which a model computes something else; the others only look.

    A hook changes something if it returns another object than it was given. The rest are left out,
    and if outputs or gradients are not the same then, those among them stay that have written to a
    tensor or to a module (as the hooks of weight and spectral norm do), or else all.

    Args:
        model: with hooks.
        run: outputs and gradients, the same from the same state and draws. Hooks that only look
            are called in the first of these runs alone, and what they wrote is put back.
    """
    every = hooks_of(model)
    returned: set[Hook] = set()
    wrote: set[Hook] = set()
    with untouched(model), replaced(model, lambda at, hook: _Observed(at, hook, returned, wrote)):
        reference = run()
    for kept in (returned, returned | wrote):
        if kept == every:
            break
        with untouched(model), only(model, kept):
            try:
                values = run()
            except Exception:  # without a hook that it needs, a model may fail in any way
                continue
        if _same(values, reference):
            return frozenset(kept)
    return every


class _Observed:
    """An ``_Observed`` runs a hook, and notes whether it returned something else or wrote to
    something.
    """

    def __init__(self, at: Hook, hook: Any, returned: set[Hook], wrote: set[Hook]) -> None:
        self._at = at
        self._hook = hook
        self._returned = returned
        self._wrote = wrote

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        before = _marks(module, given)
        result = self._hook(module, *given)
        if result is not None and not any(result is value for value in given):
            self._returned.add(self._at)
        if before != _marks(module, given):
            self._wrote.add(self._at)
        return result


def _marks(module: nn.Module, given: Any) -> list[tuple[Any, ...]]:
    """Return what changes with a tensor that a hook can reach by its arguments."""
    held = [*vars(module).values(), *own_parameters(module).values(), *own_buffers(module).values()]
    tensors = [t for t in (*held, *pytree.tree_leaves(given)) if isinstance(t, Tensor)]
    return [(id(t), version_of(t), t.grad_fn is None, len(gradient_hooks(t))) for t in tensors]


def _same(values: Sequence[Tensor], reference: Sequence[Tensor]) -> bool:
    """Tell whether results differ by no more than the order of sums, which accelerators may
    change.
    """
    if len(values) != len(reference):
        return False
    for value, expected in zip(values, reference, strict=True):
        if value.shape != expected.shape:
            return False
        if value.is_floating_point() or value.is_complex():
            largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
            bound = 16 * torch.finfo(expected.dtype).eps * largest
            if not torch.allclose(value, expected, rtol=0.0, atol=bound, equal_nan=True):
                return False
    return True
