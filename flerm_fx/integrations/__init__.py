"""Trainers and loggers of others are served here; each module needs the package that it is named
after.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from flerm_fx.align.aligning import OnUnmatched
from flerm_fx.boundary.files import check, reason
from flerm_fx.boundary.options import OPTIONS, checked, choice, described
from flerm_fx.errors import InputError, ProfileError
from flerm_fx.probe.planner import METHODS
from flerm_fx.profile.file import PathLike

T = TypeVar("T")

_OF_THE_RUN = frozenset({"model", "optimizer", "inputs", "base_profile"})
_CHOICES = {"method": METHODS, "on_unmatched": get_args(OnUnmatched)}


def begun(attached: Any, kind: type[T]) -> T:
    """Return what a callback attached when training began.

    Raises:
        InputError: it has not begun.
    """
    if not isinstance(attached, kind):
        raise InputError("training has not begun, so there is nothing yet to read")
    return attached


def checked_options(call: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a callback passes on, checked when it is made and not when training
    begins.

    Args:
        call: :func:`flerm_fx.record` or :func:`flerm_fx.match`.
        options: by name.

    Raises:
        InputError: one that the call does not have, or that makes no sense.

    >>> from flerm_fx import record
    >>> checked_options(record, {"every": 10})
    {'every': 10}
    >>> checked_options(record, {"evry": 10})
    Traceback (most recent call last):
    flerm_fx.errors.InputError: flerm_fx.record has no option 'evry'; it has at, copy, every, ...
    """
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(call).parameters.items()
        if name not in _OF_THE_RUN
    }
    for name in options.keys() - known.keys():
        raise InputError(
            f"flerm_fx.{call.__name__} has no option {name!r}; it has {', '.join(sorted(known))}"
        )
    checked_options = {}
    for name, value in options.items():
        if name in _CHOICES:
            value = choice(name, value, _CHOICES[name])
        elif name in OPTIONS and value is not known[name]:
            value = checked(name, value)
        checked_options[name] = value
    return checked_options


def path_or_none(path: Any) -> PathLike | None:
    """Return where a callback is to write, if anywhere.

    Raises:
        InputError: it is no path, which would be found out after training.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise InputError(f"path must be a path or None, got {described(path)}")
    return path


def make_ready(path: PathLike | None) -> None:
    """Make the folder of a profile, and see that it can be written, before long training.

    Raises:
        ProfileError: it cannot.
    """
    if path is None:
        return
    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        check(place)
    except OSError as error:
        raise ProfileError(
            f"{place}: a profile cannot be written there ({reason(error)}); nothing was trained: "
            "pass another path"
        ) from error
