"""Arithmetic of estimates."""

import math

import pytest

from flerm_fx import Estimate
from flerm_fx.probe.estimate import NOT_MEASURED


def sampled(value: float, stderr: float, note: str = "") -> Estimate:
    return Estimate(value, stderr, "sampled", 4, note)


@pytest.mark.parametrize("factor", [3.0, -3.0])
def test_an_estimate_scales_with_its_update(factor: float) -> None:
    one = Estimate(2.0, 0.5, "sampled", 4, "a note")
    assert one * factor == Estimate(6.0, 1.5, "sampled", 4, "a note")
    assert (one * factor).relative_error == one.relative_error


def test_an_estimate_is_a_number() -> None:
    assert float(sampled(2.0, 0.5)) == 2.0


def test_errors_of_independent_factors_add_in_quadrature() -> None:
    """The numbers are Pythagorean, so that every root is exact."""
    assert sampled(2.0, 0.75).scaled(4.0, 0.5) == sampled(8.0, 5.0)
    assert sampled(8.0, 3.0).over(sampled(2.0, 1.0)) == (4.0, 0.625)
    assert sampled(8.0, 3.0).joint_error(sampled(2.0, 4.0)) == 5.0


def test_a_ratio_to_0_is_none() -> None:
    for ratio in (sampled(1.0, 0.5).over, sampled(1.0, 0.5).over_same_draws):
        with pytest.raises(ZeroDivisionError):
            ratio(NOT_MEASURED)
    assert NOT_MEASURED.over(sampled(2.0, 1.0)) == (0.0, 0.5)


def test_a_ratio_from_the_same_draws_has_an_error_as_far_as_it_is_not_1() -> None:
    one = sampled(2.0, 0.5)
    assert one.over_same_draws(one) == (1.0, 0.0)
    assert (one * math.e).over_same_draws(one) == pytest.approx((math.e, 0.25))
    assert (one * 0.0).over_same_draws(one) == (0.0, math.inf)


def test_a_total_adds_its_errors_and_a_mean_has_less() -> None:
    pair = [sampled(3.0, 0.375, "first"), sampled(5.0, 0.5, "second")]
    assert Estimate.total(pair) == Estimate(8.0, 0.875, "sampled", 8, "first")
    assert Estimate.mean(pair) == Estimate(4.0, 0.3125, "sampled", 8, "second")
    assert Estimate.mean(pair[:1]) == pair[0]
    assert Estimate.total([]) == NOT_MEASURED


def test_a_geometric_mean_has_the_error_of_the_spread_or_its_own_if_that_is_more() -> None:
    apart = [Estimate(1.0, 0.0, "exact", 0), Estimate(math.e**2, 0.0, "exact", 0)]
    mean = Estimate.geometric_mean(apart)
    assert (mean.value, mean.relative_error) == pytest.approx((math.e, 1.0))
    alike = [sampled(2.0, 0.6), sampled(2.0, 0.8, "noted")]
    mean = Estimate.geometric_mean(alike)
    assert (mean.value, mean.relative_error) == pytest.approx((2.0, 0.25))
    assert (mean.method, mean.samples, mean.note) == ("sampled", 8, "noted")


def test_a_geometric_mean_with_a_0_is_arithmetic() -> None:
    mean = Estimate.geometric_mean([Estimate(0.0, 0.0, "exact", 0), sampled(2.0, 0.1)])
    assert mean == Estimate(1.0, 1.0, "exact+sampled", 4)


def test_what_lies_between_two_estimates() -> None:
    one, other = sampled(1.0, 0.25), sampled(16.0, 0.5)
    assert one.towards(other, 0.25).value == pytest.approx(2.0)
    assert one.towards(other, 0.25).stderr == 0.3125
    assert one.towards(NOT_MEASURED, 0.5) == sampled(0.5, 0.125)


def test_estimates_agree_within_their_errors() -> None:
    one, other = sampled(4.0, 0.375), sampled(5.0, 0.5)
    assert one.agrees_with(other, errors=1.6, rtol=0.0)
    assert not one.agrees_with(other, errors=1.5, rtol=0.0)
    assert one.agrees_with(other, errors=0.0, rtol=0.2)
    assert one.is_above(errors=10, least=3.9) and not one.is_above(errors=11, least=3.9)
    assert not one.is_above(errors=10, least=4.0)


def test_an_unresolved_estimate_has_an_error_of_its_own_size() -> None:
    assert sampled(2.0, 0.5).unresolved() == sampled(2.0, 2.0)
    assert sampled(2.0, 3.0).unresolved() == sampled(2.0, 3.0)
    assert sampled(2.0, 0.5, "one").noted("other") == sampled(2.0, 0.5, "one; other")
