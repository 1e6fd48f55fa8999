"""A run with other weights in their place shows whether a model answers to its own weights."""

import copy
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flerm_fx.boundary.compat import TorchFunctionMode, memory_of, pytree
from flerm_fx.errors import InputError


def stand_ins(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a copy of each parameter, by its first name, to run the model with in its place."""
    return {name: copy.deepcopy(p) for name, p in model.named_parameters()}


class Reads(TorchFunctionMode):
    """A ``Reads`` notes what a run with stand-ins reads of the weights that they stand in for.

    A function that keeps a reference to a model, to a parameter or to a view of one goes on
    computing with that, whatever a caller puts in its place; in a copy of the model, with the
    weights of the original.

    Args:
        model: that runs.
        given: the stand-ins that it runs with.
        original: what it is a copy of, whose buffers it must not read either.

    >>> model = nn.Linear(2, 2)
    >>> weight = model.weight
    >>> model.forward = lambda x: x @ weight
    >>> given = stand_ins(model)
    >>> with Reads(model, given) as reads:
    ...     _ = torch.func.functional_call(model, given, torch.zeros(3, 2))
    >>> list(reads.own)
    ['weight']
    """

    def __init__(
        self, model: nn.Module, given: Mapping[str, Tensor], original: nn.Module | None = None
    ) -> None:
        super().__init__()
        self._given = {id(tensor) for tensor in given.values()}
        self.own: dict[str, str] = {}
        self.originals: dict[str, str] = {}
        self.unregistered: dict[int, str] = {}
        self._own = _by_memory_of(model.named_parameters())
        mine = {memory_of(t) for t in (*model.parameters(), *model.buffers())}
        theirs = () if original is None else (*_tensors(original),)
        self._originals = {k: n for k, n in _by_memory_of(theirs).items() if k not in mine}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if _reads_values(func, result):
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self._note(leaf, _where)
        return result

    def _note(self, tensor: Tensor, where: Callable[[], str]) -> None:
        memory = memory_of(tensor)
        if memory in self._own:
            self.own.setdefault(self._own[memory], where())
        elif memory in self._originals:
            self.originals.setdefault(self._originals[memory], where())
        elif isinstance(tensor, nn.Parameter) and id(tensor) not in self._given:
            self.unregistered.setdefault(id(tensor), where())

    def check(self, leaves: Iterable[Tensor]) -> None:
        """Refuse a model that computes with other weights than those that it is given.

        Args:
            leaves: what the output's gradient would go to: all that is known of what runs out of
                sight, as in ``torch.cond``.

        Raises:
            InputError: the model reads a parameter other than as an attribute of its module, reads
                the original's, or one that is not registered.
        """
        leaves = [leaf for leaf in leaves if id(leaf) not in self._given]
        for leaf in leaves:
            self._note(leaf, lambda: "what its gradient comes from")
        if self.originals:
            raise InputError(
                f"a copy of the model computes with the original's {_list(self.originals)}: a "
                "closure, partial or global variable that holds the model goes on holding the "
                "original in a copy, on which measuring trains and compiles. Reach the module "
                "through what the function is given (module, self), or register a bound method, "
                "as in register_forward_hook(self.adapt), which a copy binds anew"
            )
        if self.own:
            raise InputError(
                f"the model reads parameter {_list(self.own)} from a closure, plain attribute or "
                "global variable, where other weights cannot be put in its place; read it as an "
                "attribute of its module when the model runs"
            )
        for leaf in leaves:
            if id(leaf) in self.unregistered:
                raise InputError(
                    f"the model computes with a Parameter of shape {tuple(leaf.shape)} that is not "
                    f"registered in it (in {self.unregistered[id(leaf)]}), so that neither a copy "
                    "nor a graph trains it; assign its module as an attribute, keep it in an "
                    "nn.ModuleList, or set requires_grad=False"
                )


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _by_memory_of(named: Iterable[tuple[str, Tensor]]) -> dict[Any, str]:
    return {memory_of(tensor): name for name, tensor in reversed(list(named))}


_NUMBERS = ("item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "equal")
_SHAPES = ("type_as", "__get__")


def _reads_values(func: Any, result: Any) -> bool:
    """Tell whether an operation reads more of its tensors than shape, type and device."""
    name = getattr(func, "__name__", "")
    if name in _SHAPES or name.startswith("new_") or name.endswith("_like"):
        return False
    return name in _NUMBERS or any(isinstance(t, Tensor) for t in pytree.tree_leaves(result))


_LIBRARIES = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)


def _where() -> str:
    """Return the user's innermost function that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"


def _list(readers: Mapping[str, str]) -> str:
    names = ", ".join(map(repr, list(readers)[:8])) + (", …" if len(readers) > 8 else "")
    where = next(iter(readers.values()))
    return f"{names} (in {where})"
