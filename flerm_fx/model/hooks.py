"""This module finds hooks on modules, and runs a model with some of them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from flerm_fx.boundary.compat import BACKWARD_HOOKS, FORWARD_HOOKS, GLOBAL_HOOKS, global_name


class Hook(NamedTuple):
    """A ``Hook`` says where a hook is, in a model and in each copy of it.

    Attributes:
        path: of its module; None for one on all modules.
        kind: the dict that it is in, such as ``"_forward_hooks"``.
        key: in there.
    """

    path: str | None
    kind: str
    key: int


def hooks_of(
    model: nn.Module, kinds: Collection[str] = (*FORWARD_HOOKS, *BACKWARD_HOOKS)
) -> frozenset[Hook]:
    """Return the hooks that run with a model.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> _ = model[0].register_forward_hook(lambda module, args, output: None)
    >>> [(hook.path, hook.kind) for hook in hooks_of(model)]
    [('0', '_forward_hooks')]
    """
    return frozenset(
        Hook(path, kind, key)
        for path, kind, names, attribute in _places(model, kinds)
        for key in names[attribute]
    )


def global_hooks() -> list[dict[int, Any]]:
    """Return the hooks on all modules."""
    return [GLOBAL_HOOKS[global_name(kind)] for kind in (*FORWARD_HOOKS, *BACKWARD_HOOKS)]


@contextmanager
def only(model: nn.Module, kept: Collection[Hook]) -> Iterator[None]:
    """Run a model with these of its hooks alone, and leave those of other models.

    >>> model = nn.Identity()
    >>> _ = model.register_forward_hook(lambda module, args, output: output + 1)
    >>> with only(model, ()):
    ...     print(model(1))
    1
    >>> model(1)
    2
    """
    me = threading.get_ident()

    def elsewhere(hook: Any) -> Any:
        return lambda *args: None if threading.get_ident() == me else hook(*args)

    def chosen(at: Hook, hook: Any) -> Any:
        if at in kept:
            return hook
        return elsewhere(hook) if at.path is None else None

    with replaced(model, chosen):
        yield


def keep_only(model: nn.Module, kept: Collection[Hook]) -> None:
    """Take all but these hooks off a copy of a model."""
    for path, kind, names, attribute in _places(model, (*FORWARD_HOOKS, *BACKWARD_HOOKS)):
        if path is not None:
            for key in list(names[attribute]):
                if Hook(path, kind, key) not in kept:
                    del names[attribute][key]


@contextmanager
def replaced(model: nn.Module, choose: Callable[[Hook, Any], Any]) -> Iterator[None]:
    """Run with another callable in the place of each hook, or none."""
    held = []
    try:
        for path, kind, names, attribute in list(_places(model, (*FORWARD_HOOKS, *BACKWARD_HOOKS))):
            hooks = names[attribute]
            if hooks:
                held.append((names, attribute, hooks))
                chosen = [(key, choose(Hook(path, kind, key), h)) for key, h in hooks.items()]
                names[attribute] = OrderedDict((key, h) for key, h in chosen if h is not None)
        yield
    finally:
        for names, attribute, hooks in held:
            names[attribute] = hooks


def _places(
    model: nn.Module, kinds: Collection[str]
) -> Iterator[tuple[str | None, str, dict[str, Any], str]]:
    """Return each dict of hooks: the path of its module, its kind, and whose attribute of which
    name.
    """
    for kind in kinds:
        yield None, kind, GLOBAL_HOOKS, global_name(kind)
    for path, module in model.named_modules():
        for kind in kinds:
            if kind in vars(module):
                yield path, kind, vars(module), kind


def function_of(model: nn.Module, hook: Hook) -> Any:
    """Return what is called where a hook is.

    >>> model = nn.Identity()
    >>> handle = model.register_forward_hook(print)
    >>> function_of(model, *hooks_of(model))
    <built-in function print>
    """
    path, kind, key = hook
    if path is None:
        return GLOBAL_HOOKS[global_name(kind)][key]
    return vars(model.get_submodule(path))[kind][key]
