"""All architectures by name."""

import importlib
from collections.abc import Iterable

from zoo.architecture import Architecture

FAMILIES = (
    "causal",
    "mixtures",
    "recurrent",
    "encoders",
    "sequences",
    "vision",
    "audio",
    "pairs",
    "adapters",
    "torch_nn",
    "oddities",
)


def architectures() -> dict[str, Architecture]:
    """Every architecture, family by family."""
    found: dict[str, Architecture] = {}
    for family in FAMILIES:
        for architecture in importlib.import_module(f"zoo.{family}").ARCHITECTURES:
            assert architecture.name not in found, architecture.name
            found[architecture.name] = architecture
    return found


def chosen(names: Iterable[str]) -> list[Architecture]:
    """The architectures of some names or families; all if there are none.

    Raises:
        KeyError: a name that is neither.
    """
    known = architectures()
    picked: dict[str, Architecture] = {}
    for name in names:
        matching = {n: a for n, a in known.items() if name in (n, a.family)}
        if not matching:
            raise KeyError(name)
        picked.update(matching)
    return list((picked or known).values())
