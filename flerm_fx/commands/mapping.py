"""Options of the command line say what the caller decides about a matching."""

from typing import Annotated

import typer

from flerm_fx.errors import InputError

Mapping = Annotated[
    list[str] | None,
    typer.Option(
        "--mapping",
        help="What answers to what where structure cannot decide, as target=base, such as "
        "'blocks.*.attn=layers.*.attention'; may be given again.",
    ),
]


def parsed(entries: list[str] | None) -> dict[str, list[str]] | None:
    """Return the mapping that options stand for; one target given again has several base names.

    Raises:
        InputError: an option is no ``target=base``.

    >>> parsed(["head=classifier", "h.{i}=h.{2*i}", "h.{i}=h.{2*i+1}"])
    {'head': ['classifier'], 'h.{i}': ['h.{2*i}', 'h.{2*i+1}']}
    """
    if not entries:
        return None
    mapping: dict[str, list[str]] = {}
    for entry in entries:
        target, sign, base = (part.strip() for part in entry.partition("="))
        if not (target and sign and base):
            raise InputError(
                f"--mapping is {entry!r}; expected target=base, such as "
                "'blocks.*.attn=layers.*.attention'"
            )
        mapping.setdefault(target, []).append(base)
    return mapping
