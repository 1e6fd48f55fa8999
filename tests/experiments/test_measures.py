"""Optima, shifts and regrets, on curves whose own are known."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from experiments.axes import Grid
from experiments.measures import complete, half_width, optimum, seed_mean, transfer
from experiments.store import Result, Run

RATES = Grid(1e-4, 12).rates


def parabola(at: float, lowest: float = 1.0) -> list[float]:
    return [lowest + 0.1 * (math.log2(rate) - at) ** 2 for rate in RATES]


def results(losses: Sequence[float], scale: float = 1.0, seed: int = 0) -> list[Result]:
    return [
        Result(Run("axis", "method", scale, seed, rate), loss, loss, 1.0)
        for rate, loss in zip(RATES, losses, strict=True)
    ]


@pytest.mark.parametrize("at", [-9.0, -8.3, -6.55])
def test_the_optimum_of_a_parabola_is_its_vertex(at: float) -> None:
    found = optimum(RATES, np.array(parabola(at)))
    assert found.inside
    assert math.isclose(found.log2_rate, at, abs_tol=1e-9)
    assert math.isclose(found.loss, 1.0, abs_tol=1e-9)


@pytest.mark.parametrize("at", [-20.0, 3.0])
def test_at_the_edge_of_the_grid_the_optimum_may_lie_beyond(at: float) -> None:
    found = optimum(RATES, np.array(parabola(at)))
    assert not found.inside
    assert found.log2_rate in (math.log2(RATES[0]), math.log2(RATES[-1]))


def test_beside_a_run_that_diverged_the_lowest_point_stands_for_itself() -> None:
    losses = np.array(parabola(-7.0))
    best = int(np.argmin(losses))
    losses[best + 1 :] = np.inf
    found = optimum(RATES, losses)
    assert (found.log2_rate, found.loss) == (math.log2(RATES[best]), losses[best])
    assert not found.inside


def test_where_every_run_diverged_there_is_no_optimum() -> None:
    found = optimum(RATES, np.full(len(RATES), np.inf))
    assert math.isnan(found.log2_rate)
    assert found.loss == math.inf


def test_transfer_is_the_shift_and_the_regret_of_two_parabolas() -> None:
    base = results(parabola(-8.0), seed=0) + results(parabola(-8.2), seed=1)
    large = results(parabola(-9.5, 0.5), 4, 0) + results(parabola(-9.9, 0.5), 4, 1)
    found = transfer(base, large, 4, RATES, [0, 1])
    assert math.isclose(found.shift, -1.6, abs_tol=1e-9)
    assert math.isclose(found.interval, half_width(np.array([-1.5, -1.7])), abs_tol=1e-9)
    assert found.inside
    assert found.seeds == 2
    mean = seed_mean(large, 4, RATES, [0, 1])
    best = int(np.argmin(seed_mean(base, 1, RATES, [0, 1])))
    assert math.isclose(found.regret, mean[best] - mean.min())
    assert found.regret > 0


def test_a_seed_counts_where_it_has_results_at_every_rate() -> None:
    whole = results(parabola(-8.0), 4, 0) + results(parabola(-8.0), 4, 2)
    part = results(parabola(-8.0), 4, 1)[1:]
    other = results(parabola(-8.0), 2, 3)
    assert complete(whole + part + other, 4, RATES) == [0, 2]
    assert complete(whole + part + other, 4, RATES[1:]) == [0, 1, 2]
    assert complete(part, 8, RATES) == []


def test_the_points_that_a_parabola_is_fitted_through_are_within_three_steps() -> None:
    losses = np.array(parabola(-7.0))
    best = int(np.argmin(losses))
    found = optimum(RATES, losses)
    losses[: best - 3], losses[best + 4 :] = 9.0, 9.0
    assert optimum(RATES, losses) == found
    losses[best + 3] += 1.0
    assert optimum(RATES, losses) != found


def test_equal_curves_transfer_without_regret() -> None:
    base = results(parabola(-8.0))
    found = transfer(base, results(parabola(-8.0), 2), 2, RATES, [0])
    assert (found.shift, found.regret, found.collapse) == (0, 0, 0)
    assert math.isnan(found.interval)


def test_a_run_that_diverges_at_the_base_rate_costs_everything() -> None:
    base, losses = parabola(-8.0), parabola(-9.0)
    losses[int(np.argmin(base))] = math.inf
    found = transfer(results(base), results(losses, 2), 2, RATES, [0])
    assert found.regret == math.inf
    assert found.collapse == math.inf


def test_runs_that_diverge_on_both_sides_do_not_count_against_the_collapse() -> None:
    losses = parabola(-8.0)
    losses[int(np.argmin(losses)) + 2] = math.inf
    found = transfer(results(losses), results(losses, 2), 2, RATES, [0])
    assert found.collapse == 0
