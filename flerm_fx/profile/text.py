"""The header of a profile is strict JSON, with numbers that JSON has no name for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from flerm_fx.boundary.text import unprintable
from flerm_fx.errors import ProfileError


def check_printable(texts: Any) -> None:
    """Check that a profile with these strings, in lists and dicts, can be read by anyone.

    Raises:
        ProfileError: a string has characters that are not printable; commands and dumps would
            write them into terminals and code.
    """
    for text in unprintable(texts):
        raise ProfileError(
            f"{text!r} has characters that are not printable, and names in a profile have none; "
            "rename what is called so, and record again"
        )


_NUMBER = "$number"  # the key of a number that JSON has no name for


def to_text(header: Any) -> str:
    """Return a header as strict JSON."""

    def packed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: packed(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [packed(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return {_NUMBER: repr(value)}
        return value

    return json.dumps(packed(header), allow_nan=False)


def from_text(text: str) -> tuple[Any, list[str]]:
    """Return what :func:`to_text` was given, and what else stands for a number without being
    JSON.
    """
    constants: list[str] = []

    def unpacked(mapping: dict[str, Any]) -> Any:
        number = mapping.get(_NUMBER)
        return float(number) if len(mapping) == 1 and isinstance(number, str) else mapping

    def noted(constant: str) -> float:
        constants.append(constant)
        return float(constant)

    return json.loads(text, object_hook=unpacked, parse_constant=noted), constants
