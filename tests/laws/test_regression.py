"""Lines through the base: their errors are those that repeated experiments have."""

import numpy as np
import pytest

from flerm_fx.laws.regression import fitted
from flerm_fx.laws.student import quantile


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
        noise = rng.normal(size=9) * np.hypot(error, scatter) + rng.normal() * common
        line = fitted(((0,),), [(each,) for each in x], -x + noise, [error] * 9, common)
        low, high = line.interval()[0]
        covered += low <= -1.0 <= high
    assert 0.85 <= covered / trials <= 0.97


def test_an_error_of_the_base_is_no_exponent() -> None:
    """A base that is off by a factor moves all points alike, and not as a power of size."""
    x = np.log([2.0, 4.0, 8.0, 16.0])
    known = fitted(((0,),), [(each,) for each in x], -x + 0.3, [0.01] * 4, common=0.3)
    unknown = fitted(((0,),), [(each,) for each in x], -x + 0.3, [0.01] * 4, common=0.0)
    assert known.exponents[0] == pytest.approx(-1.0, abs=0.01)
    assert unknown.exponents[0] > -0.9
    assert unknown.scatter > known.scatter
