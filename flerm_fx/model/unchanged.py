"""This module tells whether a model is still the one that a graph was made of."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from flerm_fx.boundary.compat import REGISTRIES, pytree, times_written
from flerm_fx.model.hooks import hooks_of


class Structure:
    """A ``Structure`` holds the modules, parameters and buffers of a model at present.

    Args:
        model: any module.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> structure = Structure(model)
    >>> structure.change(model)
    ''
    >>> model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    >>> structure.change(model)
    "parameter '0.weight' is another object"
    >>> structure.change(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    "module '' is another object"
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts = dict(_parts(model))

    def change(self, model: nn.Module) -> str:
        """Return what has changed since in another, or the same, model; empty if nothing has."""
        now = dict(_parts(model))
        for name, (part, kind) in self._parts.items():
            if name not in now:
                return f"{name} is gone"
            if now[name][0] is not part:
                return f"{name} is another object"
            if now[name][1] != kind:
                return f"{name} was {_described(kind)} and is {_described(now[name][1])}"
        return "".join(f"{name} is new" for name in list(now.keys() - self._parts.keys())[:1])


def _parts(model: nn.Module) -> Iterator[tuple[str, tuple[Any, tuple[Any, ...]]]]:
    for path, module in model.named_modules(remove_duplicate=False):
        yield f"module {path!r}", (module, ())
    named = (
        ("parameter", model.named_parameters(remove_duplicate=False)),
        ("buffer", model.named_buffers(remove_duplicate=False)),
    )
    for what, tensors in named:
        for name, tensor in tensors:
            yield f"{what} {name!r}", (tensor, (tensor.dtype, tuple(tensor.shape), tensor.device))


def _described(kind: tuple[Any, ...]) -> str:
    dtype, shape, device = kind
    return f"{dtype} of shape {shape} on {device}"


def settings(model: nn.Module) -> Hashable:
    """Return what else a graph holds as it was: modes, plain attributes, hooks, and what is
    trained.

    >>> model = nn.Dropout(0.5)
    >>> before = settings(model)
    >>> model.p = 0.1
    >>> settings(model) == before, settings(model.eval()) == settings(model)
    (False, True)
    """
    registered = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    values = tuple(
        (name, _value(leaf))
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in REGISTRIES
        for leaf in _leaves(value)
        if id(leaf) not in registered  # which are read anew
    )
    return values, hooks_of(model), tuple(p.requires_grad for p in model.parameters())


_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_NESTED = (dict, OrderedDict, list, tuple)


def _leaves(value: Any) -> Iterable[Any]:
    """Return the leaves of a value; most attributes are a leaf themselves, or hold nothing."""
    if type(value) in _PLAIN:
        return (value,)
    return () if type(value) in _NESTED and not value else pytree.tree_leaves(value)


def _value(leaf: Any) -> Hashable:
    """Return a plain value itself; of tensors and objects, which one it is, and whether it was
    written.
    """
    if isinstance(leaf, _PLAIN):
        return leaf
    return id(leaf), times_written(leaf) if isinstance(leaf, Tensor) else 0
