"""This module leaves a model as it was: what running it changes is put back."""

import functools
import random
import types
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flerm_fx.boundary.compat import (
    BACKWARD_HOOKS,
    FORWARD_HOOKS,
    gradient_hooks,
    own_buffers,
    uncompiled,
)
from flerm_fx.boundary.interrupts import deferred_interrupt
from flerm_fx.model.hooks import global_hooks
from flerm_fx.model.randomness import preserved_rng, rng_state, set_rng_state

MANY = 1000
"""A container of more than these is data, not something that a forward pass keeps count in: it is
put back itself, but not what its elements hold."""

LARGE = 2**16
"""Numbers in a tensor that is not the model's own, beyond which it is data."""


@contextmanager
def untouched(model: nn.Module, *, runs: bool = True) -> Iterator[Callable[[], None]]:
    """Leave autocast and ``torch.compile``, and put back all that a run of the model may change.

    What is compiled runs as it was written: nothing is compiled anew, and such a model has a graph.
    Put back is random state, each module's mode, every buffer, and plain attributes of modules:
    what they are, and what lists, dicts, sets, deques, arrays, generators, tensors and objects of
    the same package hold that are reached from them. So is what the model's hooks reach, through
    closures, defaults, bound objects and the global names in their code.

    Yields what puts it back in between, so that several runs begin alike.

    Args:
        model: any module.
        runs: whether code of the model runs. Where a graph of torch's own operations does, nothing
            reaches the attributes of modules, which are not looked at then; hooks on all modules
            and on gradients run still.

    >>> class Counts(nn.Linear):
    ...     calls, seen = 0, []
    ...     def forward(self, x):
    ...         self.calls += 1
    ...         return super().forward(x)
    >>> model = Counts(2, 1)
    >>> with untouched(model):
    ...     _ = model(torch.zeros(3, 2))
    >>> model.calls
    0
    """
    held = {id(t) for t in (*model.parameters(), *model.buffers())}
    state = _State(held)
    if runs:
        for module in model.modules():
            state.keep_module(module)
    for hooks in (*global_hooks(), *(gradient_hooks(p) for p in model.parameters())):
        state.keep(hooks, None)
    for module in model.modules():
        for buffer in own_buffers(module).values():
            if buffer is not None and not buffer.is_meta:  # which has no value to put back
                state.keep_value(buffer)
    device = next((p.device.type for p in model.parameters() if not p.is_meta), "cpu")
    with (
        preserved_rng(),
        torch.autocast(device, enabled=False),
        uncompiled(),
    ):
        before = rng_state()

        def again() -> None:
            state.put_back_and_keep()
            set_rng_state(before)

        try:
            try:
                yield again
            finally:
                with deferred_interrupt():
                    state.put_back()
        finally:
            state.put_back()  # what an interrupt on the way there has left


class _State:
    """A ``_State`` notes what is reached from a model, and how to put each part of it back.

    Args:
        held: identities of the tensors that are registered, and others' affair.
    """

    def __init__(self, held: set[int]) -> None:
        self._held = held
        self._seen: dict[int, Any] = {}
        self._restores: deque[Callable[[], None]] = deque()

    def keep_module(self, module: nn.Module) -> None:
        """Keep a module's attributes, and what they hold."""
        self._seen[id(module)] = module
        self._mapping(vars(module))
        for name, value in list(vars(module).items()):
            # Hooks are of any package, and on modules of any other.
            package = None if name in (*FORWARD_HOOKS, *BACKWARD_HOOKS) else _package(type(module))
            self.keep(value, package, own=True)

    def keep(self, value: Any, package: str | None, *, own: bool = False) -> None:
        """Keep a value, and what it holds.

        Args:
            value: anything.
            package: of the code that holds it: its objects are walked through.
            own: whether the model itself holds it, other than by way of functions and objects.
        """
        pending = [(value, package, own)]
        while pending:
            value, package, own = pending.pop()
            if isinstance(value, _ATOMS) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            pending += self._kept(value, package, own)

    def keep_value(self, tensor: Tensor) -> None:
        """Keep what a tensor holds."""
        before = tensor.detach().clone()

        def restore() -> None:
            if not torch.equal(tensor, before):
                with torch.no_grad():
                    tensor.copy_(before)

        self._restores.append(restore)

    def put_back_and_keep(self) -> None:
        """Put back all, and keep how."""
        for restore in self._restores:
            restore()

    def put_back(self) -> None:
        """Put back all that has not been put back yet."""
        while self._restores:
            self._restores[0]()
            self._restores.popleft()

    def _kept(self, value: Any, package: str | None, own: bool) -> list[Any]:
        """Keep a value itself, and return what it holds, to be kept in turn."""
        if isinstance(value, Tensor):
            self._tensor(value, own)
        elif _keeps_itself(value):
            return []
        elif isinstance(value, np.ndarray):
            if own or value.size <= LARGE:
                self._restores.append(_array(value, value.copy()))
        elif isinstance(value, dict):
            self._mapping(value)
            return [(v, package, own) for v in value.values()] if len(value) <= MANY else []
        elif isinstance(value, _CONTAINERS):
            held = _members(value)
            if isinstance(value, list | deque | set):
                self._restores.append(_elements(value, held))
            return [(v, package, own) for v in held] if len(held) <= MANY else []
        elif isinstance(value, _generators()):
            self._generator(value)
        elif isinstance(value, types.FunctionType):
            return self._function(value)
        elif isinstance(value, types.MethodType):
            return [(value.__func__, package, False), (value.__self__, _package(value), False)]
        elif hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
            parts = (value.func, value.args, value.keywords)
            return [(part, package, False) for part in parts]
        elif isinstance(value, nn.Module) or (callable(value) and package is None):
            return self._object(value, _package(type(value)))
        elif package is not None and _package(type(value)) == package:
            return self._object(value, package)
        return []

    def _mapping(self, mapping: MutableMapping[Any, Any]) -> None:
        before = dict(mapping)

        def restore() -> None:
            if not _identical(mapping, before):
                mapping.clear()
                for key, value in before.items():
                    mapping[key] = value

        self._restores.append(restore)

    def _object(self, value: Any, package: str) -> list[Any]:
        members = []
        if hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
            self._mapping(vars(value))
            members = list(vars(value).values())
        slots = [s for kind in type(value).__mro__ for s in _slots(kind) if hasattr(value, s)]
        before = {slot: getattr(value, slot) for slot in slots}

        def restore() -> None:
            for slot, held in before.items():
                object.__setattr__(value, slot, held)

        if before:
            self._restores.append(restore)
        return [(v, package, False) for v in (*members, *before.values())]

    def _function(self, function: types.FunctionType) -> list[Any]:
        package = _package(function)
        values: list[Any] = [*(function.__defaults__ or ()), function.__kwdefaults__]
        for cell in function.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            self._restores.append(_cell(cell, held))
            values.append(held)
        everywhere = function.__globals__
        for name in _global_names(function.__code__):
            held = everywhere.get(name)
            if isinstance(held, types.FunctionType) and held.__globals__ is not everywhere:
                continue  # another module's, with all that it does
            if name in everywhere and not isinstance(held, type | types.ModuleType):
                self._restores.append(_global(everywhere, name, held))
                values.append(held)
        self._mapping(vars(function))
        return [(v, package, False) for v in (*values, *vars(function).values())]

    def _tensor(self, tensor: Tensor, own: bool) -> None:
        plain = tensor.layout is torch.strided and not tensor.is_meta
        # What FSDP2 gathered and freed again has no memory to read.
        plain = plain and tensor.untyped_storage().nbytes() > 0
        if id(tensor) in self._held or isinstance(tensor, nn.Parameter) or not plain:
            return
        if own or tensor.numel() <= LARGE:
            self.keep_value(tensor)

    def _generator(self, generator: Any) -> None:
        if isinstance(generator, torch.Generator):
            self._restores.append(_setting(generator.set_state, generator.get_state()))
        elif isinstance(generator, random.Random):
            self._restores.append(_setting(generator.setstate, generator.getstate()))
        elif isinstance(generator, np.random.RandomState):
            self._restores.append(_setting(generator.set_state, generator.get_state(legacy=False)))
        else:
            bits, state = generator.bit_generator, generator.bit_generator.state
            self._restores.append(lambda: setattr(bits, "state", state))


_ATOMS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    torch.device,
    torch.dtype,
    torch.Size,
)


@functools.cache
def _generators() -> tuple[type, ...]:
    """Return types of random number generators, where numpy loads its own at their first use."""
    return torch.Generator, random.Random, np.random.RandomState, np.random.Generator


def _keeps_itself(value: Any) -> bool:
    """Tell whether something is of what shards a model, which frees memory as it goes, and ends
    each run as it began.
    """
    owner = getattr(value, "__self__", value)
    kind = owner if isinstance(owner, types.FunctionType) else type(owner)
    return str(kind.__module__).startswith("torch.distributed.")


def _package(thing: Any) -> str:
    """Return the outermost package of a class or function."""
    return str(getattr(thing, "__module__", None)).partition(".")[0]


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    slots = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(s for s in slots if s not in ("__dict__", "__weakref__"))


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _identical(mapping: MutableMapping[Any, Any], before: dict[Any, Any]) -> bool:
    return list(mapping) == list(before) and all(mapping[k] is v for k, v in before.items())


_CONTAINERS = (list, deque, set, tuple, frozenset)


def _members(container: Any) -> list[Any]:
    """Return what a container of Python's holds, whatever its class makes of a loop or a length.

    >>> class Irreps(tuple):
    ...     def __len__(self):
    ...         raise NotImplementedError
    >>> _members(Irreps("ab"))
    ['a', 'b']
    """
    kind: Any = next(kind for kind in _CONTAINERS if isinstance(container, kind))
    return [*kind.__iter__(container)]


def _elements(
    container: list[Any] | deque[Any] | set[Any], before: list[Any]
) -> Callable[[], None]:
    def restore() -> None:
        now = _members(container)
        if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
            container.clear()
            if isinstance(container, set):
                container.update(before)
            else:
                container.extend(before)

    return restore


def _array(array: Any, before: Any) -> Callable[[], None]:
    def restore() -> None:
        array[...] = before

    return restore if array.flags.writeable else lambda: None


def _setting(put: Callable[[Any], Any], state: Any) -> Callable[[], None]:
    return lambda: put(state)


def _cell(cell: types.CellType, held: Any) -> Callable[[], None]:
    def restore() -> None:
        cell.cell_contents = held

    return restore


def _global(names: dict[str, Any], name: str, held: Any) -> Callable[[], None]:
    def restore() -> None:
        if names.get(name) is not held:
            names[name] = held

    return restore
