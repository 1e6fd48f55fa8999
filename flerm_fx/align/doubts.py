"""A doubt says what speaks against a match that structure found, and what else was possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from flerm_fx.errors import shown


@dataclass(frozen=True)
class Doubt:
    """A ``Doubt`` says why a person should look at the match of one target parameter.

    Attributes:
        target: the target parameter.
        base: the base parameters that it answers to.
        reason: what speaks against that, as the end of a sentence about the match.
        alternatives: base parameters that it may answer to instead; empty if none is known.
    """

    target: str
    base: tuple[str, ...]
    reason: str
    alternatives: tuple[str, ...] = ()

    def __str__(self) -> str:
        answer = _listed(self.base)
        instead = f"; possible instead: {_listed(self.alternatives)}" if self.alternatives else ""
        return f"{shown(self.target)!r} answers to {answer}: {self.reason}{instead}"


class Doubtful(Protocol):
    """A ``Doubtful`` may be in doubt, as a :class:`flerm_fx.align.aligning.Match` may."""

    @property
    def doubt(self) -> Doubt | None:
        """What speaks against it."""


def doubts_of(matches: Mapping[str, Doubtful]) -> tuple[Doubt, ...]:
    """Return the doubts about an alignment, in the target's execution order.

    >>> from flerm_fx.align.aligning import Match
    >>> doubt = Doubt("a.weight", ("b.weight",), "their names differ", ("a.weight",))
    >>> match = Match("a.weight", (("b.weight", 1.0),), doubt)
    >>> print(*doubts_of({"a.weight": match}))
    'a.weight' answers to 'b.weight': their names differ; possible instead: 'a.weight'
    """
    return tuple(match.doubt for match in matches.values() if match.doubt is not None)


def paragraph(doubts: Iterable[Doubt], limit: int = 10) -> str:
    """Return a paragraph about doubtful matches that says what to do."""
    every = list(doubts)
    lines = [f"  {doubt}" for doubt in every[:limit]]
    if len(every) > limit:
        lines.append(f"  … and {len(every) - limit} more")
    number = "1 match is" if len(every) == 1 else f"{len(every)} matches are"
    return "\n".join(
        [
            f"{number} in doubt:",
            *lines,
            f"Settle it with mapping={{{every[0].target!r}: 'base name', ...}}, from target to "
            "base names; `flerm-fx match` shows the whole matching",
        ]
    )


def _listed(names: tuple[str, ...]) -> str:
    some = ", ".join(repr(shown(name)) for name in names[:3])
    return (some or "nothing") + ", …" * (len(names) > 3)
