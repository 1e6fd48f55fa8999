"""Options of public calls are checked here. One that makes no sense is refused by its name."""

import functools
import itertools
import math
import numbers
import operator
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flerm_fx.errors import InputError

T = TypeVar("T")

MOST_STEPS = 1_000_000
"""Steps that ``at`` may name; an iterator without an end would be read forever."""


def checked(name: str, value: Any) -> Any:
    """Return the value of an option that means the same in every call, as a plain Python value.

    Whole numbers may be of any type that Python takes as an index, and others of any real type, so
    that numpy's numbers and tensors without dimensions do; a bool is neither.

    Args:
        name: one of ``OPTIONS``.
        value: what came.

    Raises:
        InputError: the value makes no sense. The message has the option's name, what was expected
            and what came.

    >>> checked("every", torch.tensor(10)), checked("rtol", 0.1), checked("log", None)
    (10, 0.1, None)
    """
    return OPTIONS[name](name, value)


def integer(name: str, value: Any, least: int) -> int:
    """Return the value as a whole number of at least ``least``."""
    plain = _plain(value)
    try:
        whole = None if isinstance(plain, bool) else operator.index(plain)
    except TypeError:
        whole = None
    if whole is None or whole < least:
        raise InputError(
            f"{name} must be a whole number of at least {least}, got {described(value)}"
        )
    return whole


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    finite: bool = True,
) -> float:
    """Return the value as a real number in a range, never NaN.

    >>> number("ema", 0.9, least=0, below=1)
    0.9
    """
    plain = _plain(value)
    real = math.nan
    if not isinstance(plain, bool) and isinstance(plain, numbers.Real):
        try:
            real = float(plain)
        except OverflowError:  # an integer beyond the floating numbers
            real = math.inf
    if (
        math.isnan(real)
        or (finite and math.isinf(real))
        or (above is not None and not real > above)
        or (least is not None and not real >= least)
        or (below is not None and not real < below)
    ):
        bounds = (("above", above), ("of at least", least), ("below", below))
        allowed = " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
        kind = "a finite number" if finite else "a number"
        raise InputError(f"{name} must be {kind} {allowed}, got {described(value)}")
    return real


def choice(name: str, value: Any, choices: Collection[str]) -> Any:
    """Return the value if it is one of several words."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"unknown {name} {described(value)}; expected one of {', '.join(choices)}")
    return value


def flag(name: str, value: Any) -> bool:
    """Return the value if it is True or False, and nothing that merely counts as one of them."""
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise InputError(f"{name} must be True or False, got {described(value)}")
    return plain


def instance(name: str, value: Any, kind: type[T], called: str, hint: str = "") -> T:
    """Return the value if it is of a class; ``called`` is its name with an article, ``hint`` how to
    come by one.
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} must be {called}, got {type(value).__name__}{hint}")
    return value


def module(name: str, value: Any) -> nn.Module:
    """Return a model that computes its output, with derivatives, in one process.

    No stage of ``torch.distributed.pipelining`` does, and its ``Pipe``, which does, detaches what
    it hands from stage to stage: all but the last would have FSLRs of 0.
    """
    held = value.modules() if isinstance(value, nn.Module) else [value]
    for part in held:
        if type(part).__module__.startswith("torch.distributed.pipelining"):
            raise InputError(
                f"{name} must be one nn.Module with derivatives of its output by all parameters, "
                f"got a {type(part).__name__} of torch.distributed.pipelining; measure or compile "
                "the model before it is split, and train its stages with the multipliers by name "
                "(flerm_fx.CompiledModel.overrides)"
            )
    return instance(name, value, nn.Module, "an nn.Module")


def function(name: str, value: Any, form: str) -> Any:
    """Return the value if it can be called; ``form`` says with what."""
    if not callable(value):
        raise InputError(f"{name} must be a function {form}, got {described(value)}")
    return value


def steps(name: str, value: Any) -> frozenset[int]:
    """Return the value as steps of a run, of which there may be none, to measure at no step."""
    expected = f"{name} must hold whole numbers of steps from 0 on"
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(f"{expected}, as in {name}=[0, 1, 2, 4], got {described(value)}")
    given = list(itertools.islice(value, MOST_STEPS + 1))
    if len(given) > MOST_STEPS:
        raise InputError(f"{expected}, got more than {MOST_STEPS:,}")
    try:
        return frozenset(integer(name, step, 0) for step in given)
    except InputError:
        raise InputError(f"{expected}, got {described(given)}") from None


def mapping(name: str, value: Any) -> Any:
    """Return the value as names by names, which is a dict or a function."""
    if not isinstance(value, Mapping) and not callable(value):
        raise InputError(
            f"{name} must be a dict {{target name: base name}} or a function from the one to the "
            f"other, got {described(value)}"
        )
    return value


def device(name: str, value: Any) -> torch.device:
    """Return a device that can hold a tensor, with its index: ``cuda`` is the present one."""
    try:
        return torch.empty(0, device=value).device
    except (RuntimeError, TypeError, AssertionError) as error:  # torch without CUDA asserts
        summary = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name} must be a device that torch can use, such as 'cpu' or 'cuda:0', got "
            f"{described(value)}: {summary}"
        ) from error


def described(value: Any) -> str:
    """Say in a few words what came: numbers and texts as they are written, other things by type.

    >>> described(0.5), described({}), described(dict), described(OSError())
    ('0.5', 'a dict', 'the class dict', 'an OSError')
    """
    if value is None or isinstance(value, bool | numbers.Number | str | list | tuple | set):
        return reprlib.repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _plain(value: Any) -> Any:
    """Return the Python number in a tensor or array without dimensions, or in a scalar of numpy."""
    is_scalar = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    if is_scalar and not (isinstance(value, Tensor) and value.is_meta):
        return value.item()
    return value


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "model": module,
    "every": functools.partial(integer, least=1),
    "at": _optional(steps),
    "settle": _optional(functools.partial(integer, least=0)),
    "warmup": _optional(functools.partial(integer, least=0)),
    "resolve_after": functools.partial(integer, least=0),
    "samples": _optional(functools.partial(integer, least=1)),
    "rtol": functools.partial(number, above=0, below=1),
    "stretch": functools.partial(number, above=0),
    "ema": functools.partial(number, least=0, below=1),
    "lr": functools.partial(number, above=0),
    "weight_decay": _optional(functools.partial(number, least=0)),
    "mapping": _optional(mapping),
    "output_fn": _optional(
        functools.partial(function, form="from what the model returns to a tensor of it")
    ),
    "log": _optional(functools.partial(function, form="of numbers by name and the step")),
    "device": _optional(device),
    "generator": _optional(
        functools.partial(instance, kind=torch.Generator, called="a torch.Generator")
    ),
}
"""The options that mean the same in every call that has them."""
