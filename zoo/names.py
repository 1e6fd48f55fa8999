"""What names tell of a matching of an architecture's sizes, which the matching does not know."""

import re
from collections.abc import Collection, Mapping
from fractions import Fraction

from flerm_fx.align.aligning import Match
from zoo.architecture import Architecture, Size

Matches = Mapping[str, Match]


def against(architecture: Architecture, size: Size, matches: Matches, used: Collection[str]) -> str:
    """Return what names say against a matching of the base's parameters; empty if nothing.

    Args:
        architecture: that is matched.
        size: the target's.
        matches: by the target's parameters.
        used: the target's parameters that its output depends on.
    """
    if size == "deep":
        return others(matches) or (
            out_of_step(matches, architecture.period) if architecture.in_step else ""
        )
    return not_itself(matches, used) if architecture.one_to_one or size == "base" else ""


def not_itself(matches: Matches, used: Collection[str]) -> str:
    """Return which parameters answer to others than those of their own names."""
    wrong = {
        name: match.base
        for name, match in matches.items()
        if match.base != ((name, 1.0),) and (name in used or match.base)
    }
    return _told(wrong, "are matched with others")


def others(matches: Matches) -> str:
    """Return which answer to ones whose names differ from theirs in more than numbers."""
    wrong = {
        name: [base for base, _ in match.base]
        for name, match in matches.items()
        if any(re.sub(r"\d+", "#", base) != re.sub(r"\d+", "#", name) for base, _ in match.base)
    }
    return _told(wrong, "are matched with others than names tell")


def out_of_step(matches: Matches, period: int) -> str:
    """Return which do not answer to the one whose number is half as large.

    One number in the names differs at most. Where kinds of layers alternate, so it is with the
    number of the layer among its kind.
    """
    wrong = {}
    for name, match in matches.items():
        place = list(map(int, re.findall(r"\d+", name)))
        for base, share in match.base:
            other = list(map(int, re.findall(r"\d+", base)))
            apart = [(i, j) for i, j in zip(other, place, strict=True) if i != j]
            if len(apart) > 1 or any(
                i != j // (2 * period) * period + j % period for i, j in apart
            ):
                wrong[name] = (base, float(Fraction(share).limit_denominator(1000)))
    return _told(wrong, "are matched out of step")


def _told(wrong: Mapping[str, object], how: str) -> str:
    return f"{len(wrong)} {how}: {wrong}"[:600] if wrong else ""
