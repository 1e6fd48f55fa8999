"""Comparisons between methods that were measured."""

import math
import statistics
from collections.abc import Sequence

from benchmarks.results import EqualAccuracy, Hindsight, MethodResult


def sampled(methods: Sequence[MethodResult]) -> list[tuple[int, MethodResult]]:
    """The sampled ones with their draws, in order of those."""
    found = [(m.samples, m) for m in methods if m.method == "sampled" and m.samples is not None]
    return sorted(found, key=lambda pair: pair[0])


def equal_accuracy(methods: Sequence[MethodResult], passes: int) -> EqualAccuracy | None:
    """The fewest draws that are as accurate as so many passes of ``kronecker``, if those were run.

    If none are, the most draws there are; the errors tell.
    """
    paper = next((m for m in methods if (m.method, m.samples) == ("kronecker", passes)), None)
    if paper is None:
        return None
    by_draws = sampled(methods)
    draws, enough = next((p for p in by_draws if p[1].error <= paper.error), by_draws[-1])
    cost = enough.steps.median / paper.steps.median
    return EqualAccuracy(draws, enough.error, paper.error, cost)


def hindsight(methods: Sequence[MethodResult], rtol: float, coordinates: int) -> Hindsight:
    """The planner's choice against exact, and sampled with just as many draws as it takes.

    Standard errors fall with the square root of the draws, and costs lie on a straight line. With
    as many draws as coordinates nothing is left to sample.
    """
    by_name = {method.name: method for method in methods}
    auto, exact = by_name["auto"], by_name["exact"]
    draws = min(draws_needed(methods, rtol), coordinates)
    candidates = {"exact": exact.steps.median, f"sampled, m = {draws}": cost_of(draws, methods)}
    best = min(candidates, key=lambda name: candidates[name])
    return Hindsight(auto.chosen, auto.steps.median, best, candidates[best])


def draws_needed(methods: Sequence[MethodResult], rtol: float) -> int:
    """Draws at which the largest standard error is ``rtol``, from the nearest that was measured."""
    errors = [(draws, method.worst_stderr) for draws, method in sampled(methods)]
    draws, error = min(errors, key=lambda pair: abs(math.log(max(pair[1], 1e-9) / rtol)))
    return max(1, math.ceil(draws * (error / rtol) ** 2))


def cost_of(draws: int, methods: Sequence[MethodResult]) -> float:
    """Training steps that so many draws take, by the straight line through those measured.

    The line, since two neighbours may differ by noise alone; it does not fall.
    """
    points = [(count, method.steps.median) for count, method in sampled(methods)]
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    if slope <= 0:
        return statistics.mean(steps for _, steps in points)
    return intercept + slope * draws
