"""Optima, octaves and costs on curves whose answers are known."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flerm_fx.commands.demo.optimum import Curve, Optimum, find_optimum, measure_transfer, verdict

OCTAVES = tuple(float(x) for x in range(-10, -1))


def curve(loss: Callable[[float], float], octaves: tuple[float, ...] = OCTAVES) -> Curve:
    """A curve from the loss as a function of log2 of the rate."""
    return Curve("", tuple(2.0**x for x in octaves), tuple(loss(x) for x in octaves))


def parabola(vertex: float, height: float = 2.0, curvature: float = 0.3) -> Curve:
    return curve(lambda x: height + curvature * (x - vertex) ** 2)


@given(
    vertex=st.floats(-8.9, -3.1),
    height=st.floats(0.1, 5.0),
    curvature=st.floats(0.01, 3.0),
    octaves=st.sampled_from(
        [OCTAVES, tuple(-10 + 0.5 * i for i in range(17)), (-10, -7, -5, -3, -1)]
    ),
)
def test_optimum_of_a_parabola_is_its_vertex(
    vertex: float, height: float, curvature: float, octaves: tuple[float, ...]
) -> None:
    optimum = find_optimum(curve(lambda x: height + curvature * (x - vertex) ** 2, octaves))
    if optimum.bracketed:  # unevenly spaced rates can have their lowest point at an edge
        assert optimum.log2_rate == pytest.approx(vertex, abs=1e-6)
        assert optimum.loss == pytest.approx(height, abs=1e-6)
    else:
        assert octaves[0] == -10
        assert len(octaves) == 5


def test_optimum_at_an_edge_is_the_edge_and_says_so() -> None:
    assert find_optimum(parabola(-11.0, 0.0, 1.0)) == Optimum(-10.0, 1.0, False)
    assert find_optimum(parabola(0.0, 0.0, 1.0)) == Optimum(-2.0, 4.0, False)


def test_optimum_beside_a_diverged_run_is_the_lowest_point_and_says_so() -> None:
    diverging = curve(lambda x: -x if x < -4.5 else math.nan)
    assert find_optimum(diverging) == Optimum(-5.0, 5.0, False)


def test_optimum_of_equal_losses_is_in_the_middle_of_them() -> None:
    flat = curve(lambda x: 1.0 if abs(x + 6) <= 1 else 2.0)
    # Ties go to the lowest rate, whose neighbour below is higher: the vertex lies half way up.
    assert find_optimum(flat).log2_rate == pytest.approx(-6.5)
    assert find_optimum(curve(lambda x: 1.0)) == Optimum(-10.0, 1.0, False)


def test_optimum_where_everything_diverged_is_nowhere() -> None:
    optimum = find_optimum(curve(lambda x: math.nan))
    assert math.isnan(optimum.log2_rate)
    assert math.isnan(optimum.loss)
    assert not optimum.bracketed


@pytest.mark.parametrize("shift", [-2.5, -0.25, 0.0, 1.75])
def test_transfer_measures_the_shift_of_the_vertex(shift: float) -> None:
    transfer = measure_transfer(parabola(-6.1), parabola(-6.1 + shift))
    assert transfer.octaves == pytest.approx(shift)
    assert transfer.bracketed


def test_transfer_costs_the_loss_at_the_small_best_rate_over_the_large_best() -> None:
    transfer = measure_transfer(parabola(-5.0), parabola(-7.0, height=1.5, curvature=0.2))
    assert transfer.octaves == pytest.approx(-2.0)
    assert transfer.cost == pytest.approx(0.2 * 2**2)


def test_transfer_to_a_rate_at_which_the_large_model_diverges_costs_everything() -> None:
    large = curve(lambda x: 2 + (x + 8) ** 2 if x < -6.5 else math.nan)
    assert measure_transfer(parabola(-5.0), large).cost == math.inf


def test_transfer_to_a_model_that_always_diverges() -> None:
    transfer = measure_transfer(parabola(-5.0), curve(lambda x: math.nan))
    assert math.isnan(transfer.octaves)
    assert transfer.cost == math.inf
    assert not transfer.bracketed


def test_verdict_is_one_sentence_with_both_octaves_and_both_costs() -> None:
    sentence = verdict(parabola(-5), parabola(-7, curvature=0.2), parabola(-5.1, curvature=0.2), 4)
    assert sentence == (
        "Making the model 4 times wider moved the best learning rate by -2.0 octaves in standard "
        "training and by -0.1 octaves after flerm_fx.compile; the small model's best rate, 0.0312, "
        "costs the large one 0.800 nats per byte over its own best in standard training and 0.000 "
        "after flerm_fx.compile."
    )


def test_verdict_never_says_minus_zero() -> None:
    assert "-0.0" not in verdict(parabola(-5), parabola(-7), parabola(-5.01), 4)


def test_verdict_says_when_an_optimum_is_at_the_edge() -> None:
    sentence = verdict(parabola(-5), parabola(-12), parabola(-5), 4)
    assert "-5.0 octaves" in sentence
    assert "edge of the rates tried" in sentence


def test_verdict_with_divergence() -> None:
    nowhere = curve(lambda x: math.nan)
    assert "every run diverged" in verdict(parabola(-5), nowhere, parabola(-5), 4)
    assert "infinitely many (it diverges)" in verdict(parabola(-5), nowhere, parabola(-5), 4)
    assert "no best one to carry over" in verdict(nowhere, nowhere, nowhere, 4)
