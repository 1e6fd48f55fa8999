"""Compiled models give a law its points: the multipliers of each role at each size."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import Any, Protocol

from flerm_fx.align.roles import roles
from flerm_fx.assign.assignment import Assignment
from flerm_fx.assign.matches import Shares, leader, wanted_estimate
from flerm_fx.boundary.options import described
from flerm_fx.errors import LawError, shown
from flerm_fx.profile.moment import recordings
from flerm_fx.profile.profile import BaseProfile


class Compiled(Protocol):
    """A ``Compiled`` is what a law reads of a compiled model."""

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """The assignment of each parameter."""

    @property
    def base_profile(self) -> BaseProfile | None:
        """The profile that it was compiled against."""


@dataclass(frozen=True)
class Point:
    r"""A ``Point`` is the multiplier that the parameters of one role have in one model.

    Attributes:
        model: which one, counted from 0.
        parameters: trainable numbers in the whole model.
        log_sizes: logarithm of the ratio of each of the role's dimensions to the base's, and last
            of the depth (:func:`depths`).
        log_multiplier: mean of :math:`\log (m_l / \mathrm{share}_l)` over the parameters.
        error: its standard error, without that of the base, which all points of a role share.
        spread: standard deviation of single parameters about the mean.
        noise: root mean square of the errors that they were measured with.
        shares: mean of the shares of the base's mass that they answer to.
    """

    model: int
    parameters: int
    log_sizes: tuple[float, ...]
    log_multiplier: float
    error: float
    spread: float
    noise: float
    shares: float


@dataclass(frozen=True)
class Role:
    """A ``Role`` holds the parameters that do the same in the base's repeated blocks.

    Attributes:
        name: of the first of them.
        shape: theirs.
        base_error: relative standard error of their mean FSLR, of which initial weights make
            most: they move all blocks of a model alike, so that errors of blocks add up.
        recordings: how many initial weights that is a mean over.
    """

    name: str
    shape: tuple[int, ...]
    base_error: float
    recordings: int = 1

    def error_of_base(self, scatter: float) -> float:
        """Return the base's standard error, at least that of as many models that scatter so."""
        return max(self.base_error, scatter / math.sqrt(self.recordings))


def base_roles(profile: BaseProfile) -> dict[str, Role]:
    """Return the role of each parameter of a base."""
    run = profile.optimizers
    by_role: dict[Any, list[str]] = defaultdict(list)
    for name, first in roles(profile.graph, profile.shapes).items():
        by_role[first, run.index(name)].append(name)
    role_of = {}
    for names in by_role.values():
        error = fmean(_relative_error(profile, name) for name in names)
        several = recordings(profile.start[names[0]])
        role = Role(names[0], tuple(profile.shapes[names[0]]), error, several)
        role_of.update(dict.fromkeys(names, role))
    return role_of


def log_sizes(shape: Iterable[int], base: Iterable[int]) -> tuple[float, ...]:
    """Logarithms of the ratios of dimensions.

    >>> [round(x, 3) for x in log_sizes((8, 3), (4, 3))]
    [0.693, 0.0]
    """
    return tuple(math.log(n / b) for n, b in zip(shape, base, strict=True))


def named(axis: Iterable[int], rank: int) -> str:
    """Return the name of what grows as one: dimensions, or the depth, which is behind them.

    >>> named((0, 1), 2), named((1, 2), 2), named((1,), 1)
    ('dimensions 0 and 1', 'dimension 1 and depth', 'depth')
    """
    dimensions = [str(k) for k in axis if k < rank]
    several = "s" if len(dimensions) > 1 else ""
    parts = [f"dimension{several} {' and '.join(dimensions)}"] if dimensions else []
    return " and ".join(parts + ["depth"] * (rank in axis))


def depths(answers: Mapping[str, Shares], of_base: Mapping[str, Role]) -> dict[str, float]:
    """Return how many times as deep as the base's the blocks are that each parameter is in.

    It is what divides the mass of its counterparts. What is in no blocks that repeat has all mass
    of its own, and the depth of the model: that of the blocks which have moved most. Blocks that
    repeat in the base, and no more often here, have a depth of 1, whatever others have.

    Args:
        answers: the base parameters that each parameter answers to, with the shares of their mass.
        of_base: the role of each parameter of the base, which several have where blocks repeat.

    >>> base = {name: Role(name[0], (4,), 0.0) for name in ("embed", "b.0", "c.0", "c.1")}
    >>> kept = {name: ((name, 1.0),) for name in ("embed", "c.0", "c.1")}
    >>> depths({"b.0": (("b.0", 0.5),), "b.1": (("b.0", 0.5),), **kept}, base)
    {'b.0': 2.0, 'b.1': 2.0, 'embed': 2.0, 'c.0': 1.0, 'c.1': 1.0}
    """
    shares = {name: sum(share for _, share in base) for name, base in answers.items()}
    of_model = max(shares.values(), key=lambda share: abs(math.log(share)), default=1.0)
    members = Counter(role.name for role in of_base.values())

    def moves_as_the_model(name: str) -> bool:
        first, _ = answers[name][0]
        is_whole = math.isclose(shares[name], 1.0, rel_tol=1e-6)
        return is_whole and members[of_base[first].name] == 1

    return {
        name: 1 / (of_model if moves_as_the_model(name) else share)
        for name, share in shares.items()
    }


def points(models: Iterable[Compiled], profile: BaseProfile) -> dict[str, list[Point]]:
    """Return the points of each role that was matched in some model, by the role's name."""
    of_base = base_roles(profile)
    run = profile.optimizers
    by_role: dict[str, list[Point]] = defaultdict(list)
    for model, compiled in enumerate(models):
        size = sum(math.prod(row.shape) for row in compiled.assignments)
        answers = {row.parameter: row.base for row in compiled.assignments if row.base}
        deep = depths(answers, of_base)
        alike: dict[tuple[str, tuple[int, ...], float], list[Assignment]] = defaultdict(list)
        for row in compiled.assignments:
            if row.status == "matched" and row.base:
                depth = round(math.log(deep[row.parameter]), 9)
                alike[of_base[leader(run, row.base)].name, row.shape, depth].append(row)
        for (role, shape, depth), rows in alike.items():
            ratios = (*log_sizes(shape, of_base[role].shape), depth)
            by_role[role].append(_point(model, size, ratios, rows, profile))
    return dict(by_role)


def _point(
    model: int,
    size: int,
    ratios: tuple[float, ...],
    rows: list[Assignment],
    profile: BaseProfile,
) -> Point:
    shares = [share_of(row) for row in rows]
    logs = [_log(row.multiplier / share) for row, share in zip(rows, shares, strict=True)]
    noise = fmean(_own_error(row, profile) ** 2 for row in rows)
    n = len(rows)
    spread = pvariance(logs) * n / (n - 1) if n > 1 else 0.0
    return Point(
        model=model,
        parameters=size,
        log_sizes=ratios,
        log_multiplier=fmean(logs),
        error=math.sqrt(max(noise, spread) / n),
        spread=math.sqrt(spread),
        noise=math.sqrt(noise),
        shares=fmean(shares),
    )


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0 else math.nan


def spread_of(points: Sequence[Point]) -> float:
    """Return the standard deviation of single parameters about their role's mean in one model."""
    return math.sqrt(fmean(point.spread**2 for point in points))


def share_of(row: Assignment) -> float:
    """Return the share of a base parameter's mass that a parameter answers to; of several, their
    sum.
    """
    return sum(share for _, share in row.base)


def _own_error(row: Assignment, profile: BaseProfile) -> float:
    """Return the relative error of a multiplier without the base's part of it."""
    start = profile.late if row.after else profile.start
    run = profile.optimizers
    error = wanted_estimate(run, row.base, start).relative_error
    return math.sqrt(max(0.0, row.error**2 - error**2))


def _relative_error(profile: BaseProfile, name: str) -> float:
    """Return the relative error of a base's FSLR, at the late start where it has none at the
    start.
    """
    if profile.late and not profile.start[name].value:
        return profile.late[name].relative_error
    return profile.start[name].relative_error


def listed(what: str, given: Any) -> list[Any]:
    """Return what a law is to be fitted to, as a list.

    Raises:
        LawError: it is no collection, such as one model.
    """
    if not isinstance(given, Iterable):
        raise LawError(f"{what} must be a list, one for each model, got {described(given)}")
    return list(given)


def one_profile(models: Sequence[Compiled]) -> BaseProfile:
    """Return the profile that all models were measured against.

    Raises:
        LawError: there are no models, or several profiles, or some were predicted.
    """
    if not models:
        raise LawError(
            "there are no compiled models or profiles to fit; pass those of several sizes"
        )
    for compiled in models:
        if getattr(compiled, "base_profile", None) is None:
            raise LawError(
                f"a law is fitted to what flerm_fx.compile returned, got {described(compiled)}"
            )
        if any(row.status == "predicted" for row in compiled.assignments):
            raise LawError(
                "one of the models has multipliers that a law predicted; fit to models that were "
                "measured (flerm_fx.compile(model, base_profile))"
            )
    first = models[0].base_profile
    assert first is not None
    for compiled in models[1:]:
        other = compiled.base_profile
        assert other is not None
        if other.shapes != first.shapes or other.start != first.start:
            raise LawError(
                "the models were compiled against several profiles; a law goes through one base"
            )
    return first


def check_points(by_role: Mapping[str, Sequence[Point]]) -> None:
    """Check that there are points, of finite numbers.

    Raises:
        LawError: there are none, or one is not finite.
    """
    if not by_role:
        raise LawError("no parameter of the models was matched, so there is nothing to fit")
    for role, of in by_role.items():
        for point in of:
            numbers = (*point.log_sizes, point.log_multiplier, point.error, point.noise)
            if not all(map(math.isfinite, numbers)):
                raise LawError(
                    f"the multiplier of {shown(role)} in model {point.model} is not a finite "
                    "number above 0; measure that model again, or leave it out"
                )
