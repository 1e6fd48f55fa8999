"""Lines through the base: their errors are those that repeated experiments have."""

from dataclasses import replace

import numpy as np
import pytest

from flerm_fx.laws.holding import DRIFT, HeldOut, drift_of
from flerm_fx.laws.points import Point, Role
from flerm_fx.laws.regression import fitted
from flerm_fx.laws.role_law import RoleLaw
from flerm_fx.laws.student import quantile

LAWS = 30
"""Drawn for each coverage, whose error is that of as many draws, as roles of a law err alike."""

MANY = 10_000
"""Recordings of a base whose stated error is all that it has."""


@pytest.mark.parametrize(
    ("level", "freedom", "t"),
    [(0.9, 1, 6.314), (0.9, 4, 2.132), (0.99, 6, 3.707), (0.95, 200, 1.972)],
)
def test_quantiles_of_student(level: float, freedom: int, t: float) -> None:
    assert quantile(level, freedom) == pytest.approx(t, abs=2e-3)


@pytest.mark.parametrize(("common", "scatter"), [(0.2, 0.0), (0.0, 0.15), (0.2, 0.15)])
def test_intervals_cover_as_stated(common: float, scatter: float) -> None:
    rng = np.random.default_rng(0)
    x = np.log(np.repeat([2.0, 4.0, 8.0], 3))
    error, trials, covered = 0.1, 200, 0
    for _ in range(trials):
        each = np.hypot(error, scatter * np.exp(-x / 2))
        noise = rng.normal(size=9) * each + rng.normal() * common
        line = fitted(((0,),), [(each,) for each in x], -x + noise, [error] * 9, common, MANY)
        low, high = line.interval()[0]
        covered += low <= -1.0 <= high
    assert 0.85 <= covered / trials <= 0.97


def test_recordings_that_agree_by_chance_make_no_exponent_certain() -> None:
    """Of four models that scatter by 0.4 the mean does so by 0.2, whatever they say themselves."""
    x, rng = np.log(np.repeat([2.0, 4.0, 8.0], 4)), np.random.default_rng(4)
    y, errors = -x + 0.4 * np.exp(-x / 2) * rng.normal(size=12), [0.01] * 12
    by_their_word, by_the_scatter = (
        fitted(((0,),), [(each,) for each in x], y, errors, 0.02, recordings)
        for recordings in (MANY, 4)
    )
    assert by_the_scatter.exponents == by_their_word.exponents
    assert by_the_scatter.scatter == by_their_word.scatter == pytest.approx(0.4, abs=0.2)
    assert by_the_scatter.stderrs[0] > 1.5 * by_their_word.stderrs[0]


def test_a_prediction_of_one_parameter_knows_how_its_role_scatters() -> None:
    x = np.log([2.0, 2.0, 4.0, 4.0, 8.0, 8.0])
    points = tuple(
        Point(i, round(np.exp(2 * a)), (a,), -a, 0.01, 0.3, 0.01, 1.0)
        for i, a in enumerate(x.tolist())
    )
    found = RoleLaw.fit(Role("w", (4,), 0.0), points).predict((np.log(4.0),), 1.0)
    assert found.error == pytest.approx(0.3, rel=0.01)


def test_the_drift_of_a_law_is_between_what_is_known_and_what_it_misses() -> None:
    exact, wrong = (HeldOut(0.0, miss, -0.1, 0.1, 0.05, 0.7) for miss in (0.0, 0.6))
    assert drift_of([]) == DRIFT
    assert drift_of([exact] * 8) == pytest.approx(DRIFT / np.sqrt(2), rel=1e-3)
    assert DRIFT < drift_of([wrong] * 8) < 0.6 / 0.7
    assert drift_of([HeldOut(0.0, 9.0, -0.1, 0.1, 0.05, 0.0)]) == DRIFT  # within the fit


def test_an_error_of_the_base_is_no_exponent() -> None:
    """A base that is off by a factor moves all points alike, and not as a power of size."""
    x = np.log([2.0, 4.0, 8.0, 16.0])
    known = fitted(((0,),), [(each,) for each in x], -x + 0.3, [0.01] * 4, 0.3, MANY)
    unknown = fitted(((0,),), [(each,) for each in x], -x + 0.3, [0.01] * 4, 0.0, MANY)
    assert known.exponents[0] == pytest.approx(-1.0, abs=0.01)
    assert unknown.exponents[0] > -0.9
    assert unknown.scatter > known.scatter


@pytest.mark.parametrize("factor", [8.0, 64.0])
def test_predictions_cover_as_stated_within_a_fit_and_beyond(factor: float) -> None:
    """What is drawn has an error of the base, scatter that shrinks, and exponents that drift."""
    rng = np.random.default_rng(1)
    x = np.log(np.repeat([2.0, 4.0, 8.0], 3))
    trials, covered, base, scatter = 150, 0, 0.1, 0.2
    for _ in range(trials):
        # Exponents drift beyond the largest size; what the fit sees of a bend is in its scatter.
        drift, far = rng.normal() * DRIFT, np.log(factor)
        true = -far + drift / 2 * far * max(0.0, far - np.log(8.0))
        y = -x + rng.normal(size=9) * scatter * np.exp(-x / 2) + rng.normal() * base
        points = tuple(
            Point(i, i, (a,), b, 0.01, 0.0, 0.01, 1.0)
            for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True))
        )
        found = RoleLaw.fit(Role("w", (4,), base, MANY), points).predict((far,), 1.0)
        covered += found.low <= np.exp(true) <= found.high
    assert 0.84 <= covered / trials <= 0.97


def bent_laws(
    rng: np.random.Generator, far: float, drift: float, base: float, roles: int = 3
) -> list[tuple[RoleLaw, float]]:
    """Laws of roles that bend together and were recorded on the same four bases; and what is true.

    Each has half of its bend and of its base's errors in common with the others.
    """
    x = np.log(np.repeat([2.0, 4.0, 8.0], 4))
    half = np.sqrt(0.5)
    bend, seeds = rng.normal(), rng.normal(size=4)
    laws = []
    for _ in range(roles):
        own = drift * half * (bend + rng.normal())
        recorded = base * half * (seeds + rng.normal(size=4))
        scatter = base * np.exp(-x / 2) * rng.normal(size=12)
        y = -x + own / 2 * x**2 + recorded.mean() + scatter
        points = tuple(
            Point(i, round(np.exp(2 * a)), (a,), b, 0.01, 0.0, 0.01, 1.0)
            for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True))
        )
        role = Role("w", (4,), float(recorded.std(ddof=1)) / 2, recordings=4)
        laws.append((RoleLaw.fit(role, points), -far + own / 2 * far**2))
    drift = drift_of(law.held_out for law, _ in laws if law.held_out)
    return [(replace(law, drift=drift), true) for law, true in laws]


@pytest.mark.parametrize(("drift", "far"), [(0.0, 16.0), (0.2, 64.0), (0.4, 16.0)])
@pytest.mark.parametrize("base", [0.05, 0.3])
def test_predictions_cover_whatever_drifts_and_however_few_bases_agree(
    drift: float, base: float, far: float
) -> None:
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(LAWS):
        for law, true in bent_laws(rng, np.log(far), drift, base):
            found = law.predict((np.log(far),), 1.0)
            covered.append(found.low <= np.exp(true) <= found.high)
    assert np.mean(covered) >= 0.9 - 2 * np.sqrt(0.9 * 0.1 / LAWS)  # roles of a law err alike


def test_scatter_that_shrinks_leaves_the_exponent_to_the_largest() -> None:
    x = np.log([2.0, 2.0, 64.0, 64.0])
    y = -x + np.array([0.3, 0.3, 0.0, 0.0])
    line = fitted(((0,),), [(each,) for each in x], y, [1e-3] * 4, 0.0, MANY)
    assert line.exponents[0] == pytest.approx(-1.0, abs=1e-3)


def test_what_no_size_moves_is_predicted_as_1_with_the_error_that_its_points_had() -> None:
    points = tuple(Point(i, 1, (0.0,), 0.2, 0.01, 0.0, 0.01, 1.0) for i in range(3))
    found = RoleLaw.fit(Role("b", (4,), 0.0), points).predict((0.0,), 1.0)
    assert (found.multiplier, found.error) == (1.0, pytest.approx(0.2))
    assert found.low < np.exp(-0.2) < np.exp(0.2) < found.high


def test_a_prediction_is_the_less_certain_the_further_it_is_beyond_the_fit() -> None:
    x = np.log([2.0, 4.0, 8.0])
    points = tuple(
        Point(i, i, (each,), -each, 0.01, 0.0, 0.01, 1.0) for i, each in enumerate(x.tolist())
    )
    law = RoleLaw.fit(Role("w", (4,), 0.0), points)
    within, near, far = (law.predict((np.log(n),), 1.0).error for n in (8.0, 16.0, 64.0))
    assert within < 0.02
    assert near == pytest.approx(DRIFT / 2 * np.log(16) * np.log(2), rel=0.05)
    assert far == pytest.approx(DRIFT / 2 * np.log(64) * np.log(8), rel=0.05)
