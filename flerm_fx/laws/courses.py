"""Recorded runs give a law its points: FSLRs of real updates, over the course of each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
import torch

from flerm_fx.align.aligning import Match, OnUnmatched, align
from flerm_fx.align.patterns import Mapped
from flerm_fx.assign.assignment import Assignment, Status
from flerm_fx.assign.matches import leader, wanted, wanted_estimate
from flerm_fx.assign.multipliers import ROUNDING, resolved
from flerm_fx.boundary.options import instance
from flerm_fx.errors import LawError
from flerm_fx.laws.regression import Values
from flerm_fx.probe.estimate import NOT_MEASURED, Estimate
from flerm_fx.profile.profile import LOAD, BaseProfile
from flerm_fx.recipe.as_base import check_as_base

NOISE = 1.0
"""Standard errors below which an FSLR of one step is left out; means over steps and runs make up
for what is left in."""

MOST_ALIKE = 0.95
"""Correlation of steps of a run beyond which nothing tells them from one step."""


@dataclass(frozen=True)
class Followed:
    """A ``Followed`` is a model whose run was recorded, as a law reads it.

    Attributes:
        assignments: of its parameters.
        base_profile: of :func:`course_of`.
    """

    assignments: tuple[Assignment, ...]
    base_profile: BaseProfile


def course_of(profile: BaseProfile) -> BaseProfile:
    r"""Return a profile whose start is the mean over the steps of its trajectory.

    .. math:: \mathrm{FSLR}_l = \exp \frac1T \sum_t \log \mathrm{FSLR}_l(t)

    over the T steps behind the warm-up (:attr:`Trajectory.risen`). Its relative error is the mean
    of those of single steps, since other initial weights move all steps of a run together.

    Raises:
        LawError: there is no such step.
    """
    instance("base_profile", profile, BaseProfile, "a BaseProfile", LOAD)
    steps = profile.trajectory.risen
    if not steps:
        raise LawError(
            "the base has no trajectory behind its warm-up; train it inside of "
            "flerm_fx.record(..., at=[...]), with steps at the full rate"
        )
    courses = {
        name: [profile.trajectory.at(step)[name] for step in steps] for name in profile.parameters
    }
    start = {name: _over_steps(course) for name, course in courses.items()}
    return replace(profile, start=start, late={})


def _over_steps(course: Sequence[Estimate]) -> Estimate:
    """Return the mean over the steps at which a parameter trains."""
    trained = [estimate for estimate in course if estimate.value]
    if not trained:
        return course[-1]
    value = math.exp(fmean(math.log(estimate.value) for estimate in trained))
    error = fmean(estimate.relative_error for estimate in trained)
    return replace(trained[0], value=value, stderr=value * error).noted(
        f"mean over {len(trained)} steps of its course"
    )


def followed(
    base: BaseProfile, profile: BaseProfile, mapping: Mapped | None, on_unmatched: OnUnmatched
) -> Followed:
    r"""Return what the run of a larger model says of its multipliers.

    .. math:: \log m_l = \frac1T \sum_t
              \log \frac{\sum_b \mathrm{share}_{b \to l}\, \mathrm{FSLR}_b(t)}
                        {\mathrm{FSLR}_l(t)}

    FSLRs are those of unit updates, so that the rates at which the model trained do not matter but
    for where they led it. Single steps scatter about their mean by a factor of 2, which is the
    error; steps that follow each other are alike (:func:`likeness`), and tell less than as many
    that are not.

    Args:
        base: of :func:`course_of`.
        profile: of the larger model.
        mapping: as for :func:`flerm_fx.compile`.
        on_unmatched: as for :func:`flerm_fx.compile`.

    Raises:
        LawError: it was not measured at the base's steps.
        MatchError: parameters that structure cannot match.
        OptimizerError: another rule than the base's trained a parameter.
    """
    instance("a profile", profile, BaseProfile, "a BaseProfile", LOAD)
    steps = base.trajectory.risen
    lacking = [step for step in steps if step not in profile.trajectory.steps]
    if lacking:
        raise LawError(
            f"the base was measured at steps {', '.join(map(str, steps))} behind its warm-up, and "
            f"{profile.model or 'a larger model'} not at {', '.join(map(str, lacking))}; record "
            "both with the same at=[...]"
        )
    matches = align(base.graph, profile.graph, mapping, on_unmatched)
    run = base.optimizers
    held = {name: run.index(leader(run, m.base)) for name, m in matches.items() if m.base}
    given = {n: (profile.optimizers.rule(n), profile.optimizers.rate(n)) for n in held}
    check_as_base(replace(run, held=held), given)
    logs: dict[str, list[float]] = {name: [] for name in profile.parameters}
    for step in steps:
        for name, log in _logs(base, profile, matches, step).items():
            logs[name].append(log)
    factor = error_factor(
        likeness([of for of in logs.values() if len(of) == len(steps)]), len(steps)
    )
    rows = (_row(base, profile, name, matches[name], found, factor) for name, found in logs.items())
    return Followed(tuple(rows), base)


def likeness(courses: Sequence[Sequence[float]]) -> float:
    r"""Return the correlation :math:`\rho` of what follows each other in series of equal length.

    Those are taken for autoregressive, with correlations :math:`\rho^{|i - j|}`. What is seen of
    it, the products of neighbours' deviations from the mean of a series over the squares of all, is
    pooled over the series, and is lower, as few have a mean near to their own: :math:`\rho` is what
    makes it as large in expectation, at least 0 and at most :data:`MOST_ALIKE`.

    >>> likeness([[0.0, 1.0, 0.0, 1.0]]), likeness([])
    (0.0, 0.0)
    >>> round(likeness([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]), 2)
    0.95
    """
    if not courses:
        return 0.0
    off = np.asarray(courses) - np.mean(courses, axis=1, keepdims=True)
    products, squares = float((off[:, 1:] * off[:, :-1]).sum()), float((off**2).sum())
    low, high = 0.0, MOST_ALIKE
    for _ in range(30):
        middle = (low + high) / 2
        left = _about_mean(middle, off.shape[1])
        more = products * np.trace(left) > squares * np.diag(left, 1).sum()
        low, high = (middle, high) if more else (low, middle)
    return low


def error_factor(correlation: float, number: int) -> float:
    r"""Return by what the standard error of a mean is larger than :math:`s / \sqrt T`.

    Args:
        correlation: of what follows each other (:func:`likeness`).
        number: T, of the terms.

    >>> error_factor(0.0, 6), round(error_factor(0.6, 6), 2)
    (1.0, 2.1)
    """
    if number < 2:
        return 1.0
    variance = float(np.mean(_correlations(correlation, number)))
    seen = float(np.trace(_about_mean(correlation, number))) / (number - 1)
    return math.sqrt(number * variance / seen)


def _correlations(correlation: float, number: int) -> Values:
    return correlation ** np.abs(np.subtract.outer(np.arange(number), np.arange(number)))


def _about_mean(correlation: float, number: int) -> Values:
    """Return the covariance of deviations from the series' own mean."""
    centred = np.eye(number) - 1 / number
    return centred @ _correlations(correlation, number) @ centred


def _logs(
    base: BaseProfile, profile: BaseProfile, matches: Mapping[str, Match], step: int
) -> dict[str, float]:
    """Return the logarithms of multipliers that one step says, where it does."""
    rounding = ROUNDING * torch.finfo(torch.float32).eps
    theirs, own = base.trajectory.at(step), profile.trajectory.at(step)
    known_base, known = resolved(theirs, rounding, NOISE), resolved(own, rounding, NOISE)
    values = {name: estimate.value for name, estimate in theirs.items()}
    return {
        name: math.log(wanted(base.optimizers, match.base, values) / own[name].value)
        for name, match in matches.items()
        if name in known and any(b in known_base for b, _ in match.base)
    }


def _row(
    base: BaseProfile,
    profile: BaseProfile,
    name: str,
    match: Match,
    logs: Sequence[float],
    factor: float,
) -> Assignment:
    op, shape = profile.graph.nodes[name]["op"], tuple(profile.shapes[name])
    if not (op and match.base):
        status: Status = "unmatched" if op else "unused"
        return Assignment(name, "", op, shape, match.base, 0.0, NOT_MEASURED, 1.0, status)
    to_meet = wanted_estimate(base.optimizers, match.base, base.start)
    if 2 * len(logs) < len(base.trajectory.risen) or not to_meet.value:
        return Assignment(
            name, "", op, shape, match.base, to_meet.value, NOT_MEASURED, 1.0, "unresolved"
        )
    multiplier = math.exp(fmean(logs))
    own = factor * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    value = to_meet.value / multiplier
    return Assignment(
        name,
        "",
        op,
        shape,
        match.base,
        to_meet.value,
        Estimate(value, own * value, "mean", 0),
        multiplier,
        "matched",
        error=math.hypot(own, to_meet.relative_error),
    )
