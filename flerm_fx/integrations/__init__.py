"""Trainers and loggers of others; each module needs the package that it is named after."""

from typing import Any, TypeVar

from flerm_fx.errors import InputError

T = TypeVar("T")


def begun(found: Any, kind: type[T]) -> T:
    """What a callback attached when training began.

    Raises:
        InputError: it has not begun.
    """
    if not isinstance(found, kind):
        raise InputError("training has not begun, so there is nothing yet to read")
    return found
