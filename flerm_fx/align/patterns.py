"""The caller decides about a matching by names, parts of models, and patterns of both."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from flerm_fx.align.formula import Formula, FormulaError
from flerm_fx.align.mass import Shares, overlaps
from flerm_fx.align.names import numbered
from flerm_fx.errors import MatchError, shown

Answer = str | Sequence[str]
Mapped = Mapping[str, Answer | None] | Callable[[str], Answer | None]
"""Base names, or patterns of them, by the target's."""

_PLACE = re.compile(r"(\{[^{}]*\}|\*)")
_DEPTHS = frozenset("nm")


def mapped_shares(
    base: Iterable[str], target: Iterable[str], mapping: Mapped, *, unused: Iterable[str] = ()
) -> Shares:
    r"""Shares of the base parameters that a mapping names, by target parameter.

    An entry is a pair of names, from target to base, of which each is a parameter's or a
    module's; a module stands for all parameters in it, under the same names on both sides. Indices
    may stand in their place:

    - ``"blocks.*.attn": "layers.*.attention"`` lays the base's copies over the target's in order,
      by the rule of :func:`flerm_fx.align.align`, whatever the depths;
    - ``"blocks.{i}.attn": "layers.{i * n // m}.attention"`` has block i answer to the one that a
      formula gives, of the indices, the number n of blocks that the base has there and the number m
      that the target has where the index stands.

    A list of base names has a parameter answer to all of them. A parameter's own full name goes
    before patterns. What is named k times gives 1/k to each, so that mass is conserved.

    Args:
        base: names of the base's parameters.
        target: names of the target's.
        mapping: base names by target names, or a function from a target's name to the base's
            or None.
        unused: target parameters that nothing reads, which only their own names can map.

    Raises:
        MatchError: names that there are not, a pattern that matches nothing, two for one parameter,
            or a formula that is none or leaves the range.

    >>> names = [f"h.{i}.fc.weight" for i in range(4)]
    >>> for name, row in mapped_shares(names[:2], names, {"h.{i}": "h.{i * n // m}"}).items():
    ...     print(name, *row, *row.values())
    h.0.fc.weight h.0.fc.weight h.1.fc.weight 1/2 1/2
    h.1.fc.weight h.2.fc.weight h.3.fc.weight 1/2 1/2
    """
    sides = _Names(base), _Names(target)
    claims = (
        _of_function(*sides, mapping)
        if callable(mapping)
        else _of_entries(*sides, mapping, set(unused))
    )
    weights: Shares = defaultdict(lambda: defaultdict(Fraction))
    for name, other, part in claims:
        weights[other][name] += part
    return {
        other: {name: part / sum(row.values()) for name, part in row.items()}
        for other, row in weights.items()
    }


Claim = tuple[str, str, Fraction]
"""A target parameter, a base parameter, and a part of the latter's mass."""


class _Names:
    """A ``_Names`` holds the names of one model's parameters."""

    def __init__(self, names: Iterable[str]) -> None:
        self.all = dict.fromkeys(names)
        self._numbers: dict[str, list[int]] = {}

    def numbers(self, before: str) -> list[int]:
        """Return the numbers that follow a text in names."""
        if before not in self._numbers:
            cut = len(before)
            following = (re.match(r"\d+", n[cut:]) for n in self.all if n.startswith(before))
            self._numbers[before] = sorted({int(hit[0]) for hit in following if hit})
        return self._numbers[before]

    def nearest(self, text: str) -> str:
        """Return the parameters and modules whose names are most like a text, numbers aside."""
        forms: dict[str, str] = {}
        for name in self.all:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                path = ".".join(parts[:end])
                forms.setdefault(re.sub(r"\d+", "#", path), path)
        like = re.sub(r"\d+", "#", _PLACE.sub("#", text))
        close = difflib.get_close_matches(like, forms, 3, 0.5)
        return ", ".join(repr(shown(forms[form])) for form in close) or "none"


def _of_function(
    base: _Names, target: _Names, mapping: Callable[[str], Answer | None]
) -> list[Claim]:
    named = [(name, answer) for name in target.all for answer in _listed(mapping(name))]
    wrong = [_unknown_base(base, a, n) for n, a in named if a not in base.all]
    if wrong:
        raise _unknown(wrong)
    return [(name, answer, Fraction(1)) for name, answer in named]


def _of_entries(
    base: _Names, target: _Names, mapping: Mapping[str, Answer | None], unused: set[str]
) -> list[Claim]:
    entries = {key: _listed(answers) for key, answers in mapping.items() if answers is not None}
    by_name: dict[str, str] = {}
    claims, wrong = [], []
    for key, answers in entries.items():
        exact = key in target.all
        places = _KeyPattern(key).places(target, () if exact else unused | entries.keys())
        if not places and not any(name in entries for name in _KeyPattern(key).names(target)):
            wrong.append(f"target parameter {shown(key)!r}; nearest: {target.nearest(key)}")
        for place in places:
            if by_name.setdefault(place.name, key) != key:
                raise MatchError(
                    f"mapping has two patterns for {shown(place.name)!r}: "
                    f"{shown(by_name[place.name])!r} and {shown(key)!r}; make one of them "
                    "narrower, or give the parameter an entry under its full name, which goes first"
                )
        for answer in answers:
            if exact and answer in base.all:
                claims.append((key, answer, Fraction(1)))
            elif not isinstance(answer, str):
                wrong.append(_unknown_base(base, answer, key))
            else:
                for pattern, at in _AnswerPattern(key, answer).resolved(base, target, places):
                    laid = _laid(base, pattern, at)
                    wrong += [] if laid else [_unknown_base(base, pattern, at[0].name)]
                    claims += laid
    if wrong:
        raise _unknown(wrong)
    return claims


@dataclass(frozen=True)
class _Place:
    """A ``_Place`` is a target parameter that a key matches.

    Attributes:
        name: of the parameter.
        indices: the number at each index, and where in the name it begins.
        stars: the numbers at its stars.
        rest: what of the name lies behind the key.
    """

    name: str
    indices: Mapping[str, tuple[int, int]]
    stars: tuple[int, ...]
    rest: str


class _KeyPattern:
    """A ``_KeyPattern`` is the target's side of an entry."""

    def __init__(self, text: str) -> None:
        self.text = text

    def names(self, target: _Names) -> list[str]:
        return [place.name for place in self.places(target, ())]

    def places(self, target: _Names, without: Iterable[str]) -> list[_Place]:
        """Return the parameters that it matches; those left out have entries of their own."""
        if self.text in target.all:
            return [] if self.text in without else [_Place(self.text, {}, (), "")]
        pattern = re.compile(self._regex() + r"(\..+)?", re.DOTALL)
        matching = []
        for name in target.all:
            hit = None if name in without else pattern.fullmatch(name)
            if hit:
                named = {i: (int(text), hit.start(i)) for i, text in hit.groupdict().items()}
                places = {hit.start(i) for i in named}
                *numbers, rest = ((hit[g], hit.start(g)) for g in range(1, pattern.groups + 1))
                stars = tuple(int(text) for text, start in numbers if start not in places)
                matching.append(_Place(name, named, stars, rest[0] or ""))
        return matching

    def _regex(self) -> str:
        parts, known = [], set[str]()
        for piece in _PLACE.split(self.text):
            if piece == "*":
                parts.append(r"(\d+)")
            elif not _PLACE.fullmatch(piece):
                parts.append(re.escape(piece))
            elif not (index := piece[1:-1].strip()).isidentifier() or index in _DEPTHS | known:
                raise MatchError(
                    f"mapping has the target pattern {shown(self.text)!r}; in braces it takes one "
                    "name for each index, as in 'blocks.{i}.attn', other than n and m, which are "
                    "the depths of the base and the target"
                )
            else:
                known.add(index)
                parts.append(rf"(?P<{index}>\d+)")
        return "".join(parts)


class _AnswerPattern:
    """An ``_AnswerPattern`` is the base's side of an entry."""

    def __init__(self, key: str, text: str) -> None:
        self.key, self.text = key, text
        self.pieces = _PLACE.split(text)
        if self.pieces.count("*") != _PLACE.split(key).count("*"):
            raise self._error("has stars on one side that the other lacks")

    def resolved(
        self, base: _Names, target: _Names, places: Iterable[_Place]
    ) -> list[tuple[str, list[_Place]]]:
        """Base names, with stars that are left, and the places that answer to each."""
        answering: dict[str, list[_Place]] = defaultdict(list)
        for place in places:
            text = ""
            for piece in self.pieces:
                if piece.startswith("{") and piece.endswith("}"):
                    text += str(self._number(piece[1:-1], text, base, target, place))
                else:
                    text += piece
            answering[text + place.rest].append(place)
        return list(answering.items())

    def _number(
        self, formula: str, before: str, base: _Names, target: _Names, place: _Place
    ) -> int:
        """Return the value of a formula, which has to be an index that the base has there."""
        there = base.numbers(before)
        try:
            parsed = Formula(formula)
            values = {index: number for index, (number, _) in place.indices.items()}
            unknown = sorted(parsed.names - values.keys() - _DEPTHS)
            if unknown:
                raise self._error(f"has {', '.join(unknown)} in a formula, which is no index of it")
            own = [place.indices[index][1] for index in parsed.names & values.keys()]
            if parsed.names & {"m"}:
                if len(own) != 1:
                    raise self._error(
                        "has m in a formula, the target's depth, beside "
                        f"{len(own)} indices; it takes one"
                    )
                values["m"] = len(target.numbers(place.name[: own[0]]))
            number = parsed(values | {"n": len(there)})
        except FormulaError as error:
            raise self._error(f"has a formula that has no value: {error}") from None
        if there and number not in there:
            several = f"indices {there[0]} to {there[-1]}"
            has = several if len(there) > 1 else f"index {there[0]} alone"
            raise self._error(
                f"leaves the range: {{{formula}}} is {number} for {shown(place.name)!r}, and the "
                f"base has {has} behind {shown(before)!r}"
            )
        return number

    def _error(self, problem: str) -> MatchError:
        return MatchError(f"mapping entry {shown(self.key)!r}: {shown(self.text)!r} {problem}")


def _laid(base: _Names, pattern: str, places: Sequence[_Place]) -> list[Claim]:
    """Return what a base name gives to places, or the copies behind its stars to theirs in
    order.
    """
    if "*" not in pattern:
        return [(p.name, pattern, Fraction(1)) for p in places if pattern in base.all]
    regex = re.compile(r"(\d+)".join(map(re.escape, pattern.split("*"))))
    hits = [hit for hit in map(regex.fullmatch, base.all) if hit]
    givers = {tuple(map(int, hit.groups())): hit[0] for hit in hits}
    takers = {place.stars: place.name for place in places}
    levels = range(regex.groups)
    laid = overlaps(numbered(givers, len(levels)), numbered(takers, len(levels)), levels)
    return [(taker, giver, share) for giver, taker, share in laid]


def _listed(answers: Answer | None) -> list[Any]:
    if answers is None:
        return []
    return list(answers) if isinstance(answers, list | tuple) else [answers]


def _unknown_base(base: _Names, answer: object, name: str) -> str:
    near = f"; nearest: {base.nearest(answer)}" if isinstance(answer, str) else ""
    written = repr(shown(answer)) if isinstance(answer, str) else repr(answer)
    return f"base parameter {written} (for {shown(name)!r}){near}"


def _unknown(wrong: Sequence[str], most: int = 10) -> MatchError:
    more = f" and {len(wrong) - most} more" if len(wrong) > most else ""
    return MatchError(
        f"mapping names {', '.join(wrong[:most])}{more}, which the parameter graph does not have; "
        "expected {target name: base name}, with names or the modules before them as in "
        "model.named_parameters(), and indices as in {'blocks.*.attn': 'layers.*.attention'} or "
        "{'blocks.{i}.attn': 'layers.{i * n // m}.attention'}"
    )
