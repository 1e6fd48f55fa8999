"""Multipliers pooled over roles, against closed forms."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from flerm_fx.assign.assignment import Assignment
from flerm_fx.assign.pooling import TRUST, pooled, trusted, warn_of_implausible
from flerm_fx.probe.estimate import Estimate


def row(name: str, base: float, target: float, share: float = 1.0, **changes: Any) -> Assignment:
    """A parameter that has to meet ``share * base`` and has ``target``."""
    values: dict[str, Any] = {
        "parameter": name,
        "node": name,
        "op": "aten.linear",
        "shape": (2, 2),
        "base": ((f"base.{name}", share),),
        "base_fslr": share * base,
        "target": Estimate(target, 0.0, "exact", 0),
        "multiplier": share * base / target,
        "status": "matched",
    }
    return Assignment(**(values | changes))


def of_role(rows: Sequence[Assignment], **guess: float) -> dict[str, float]:
    names = [each.parameter for each in rows]
    found = pooled(rows, dict.fromkeys(names, "role"), {**dict.fromkeys(names, 1.0), **guess})
    return {each.parameter: each.multiplier for each in found}


def test_a_role_meets_the_mass_of_the_base() -> None:
    assert of_role([row("a", 1.0, 2.0), row("b", 3.0, 6.0), row("c", 2.0, 8.0)]) == pytest.approx(
        dict.fromkeys("abc", 6 / 16)
    )


def test_shares_are_kept() -> None:
    rows = [row("a", 3.0, 2.0, 2 / 3), row("b", 3.0, 4.0, 1 / 3)]
    found = of_role(rows)
    assert found["a"] == pytest.approx(2 * found["b"])
    assert 2.0 * found["a"] + 4.0 * found["b"] == pytest.approx(3.0)  # mass is conserved


def test_a_model_against_itself_has_multipliers_of_exactly_1() -> None:
    rows = [row(name, value, value) for name, value in (("a", 0.1), ("b", 0.7), ("c", 1 / 3))]
    assert of_role(rows) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_other_roles_keep_to_themselves() -> None:
    rows = [row("a", 1.0, 2.0), row("b", 3.0, 1.0)]
    found = pooled(rows, {"a": 0, "b": 1}, {"a": 1.0, "b": 1.0})
    assert [each.multiplier for each in found] == [0.5, 3.0]


def test_a_role_has_one_multiplier_however_its_blocks_differ() -> None:
    logs = [float(i) for i in range(8)]
    found = of_role([row(f"{i}", 1.0, math.exp(-x)) for i, x in enumerate(logs)])
    whole = 8 / sum(math.exp(-x) for x in logs)
    assert list(found.values()) == pytest.approx([whole] * 8)


@pytest.mark.parametrize("error", [0.0, 0.2, 2.0])
def test_what_is_uncertain_is_drawn_to_the_guess(error: float) -> None:
    rows = [row(name, 1.0, 4.0, error=error) for name in "ab"]
    weight = error**2 / (error**2 + TRUST**2)
    expected = math.exp((1 - weight) * math.log(0.25) + weight * math.log(0.5))
    assert of_role(rows, a=0.5, b=0.5) == pytest.approx({"a": expected, "b": expected})


@pytest.mark.parametrize("trust", [0.0, 0.2, 2.0])
def test_a_guess_that_is_known_better_draws_more(trust: float) -> None:
    rows = [row(name, 1.0, 4.0, error=0.5) for name in "ab"]
    found = pooled(rows, {"a": 0, "b": 0}, {"a": 0.5, "b": 0.5}, {"a": trust, "b": trust})
    weight = 0.5**2 / (0.5**2 + trust**2)
    expected = math.exp((1 - weight) * math.log(0.25) + weight * math.log(0.5))
    assert [each.multiplier for each in found] == pytest.approx([expected, expected])


def row_with(interval: tuple[float, float] | None) -> Assignment:
    return replace(row("a", 1.0, 2.0), status="predicted", interval=interval)


def test_a_prediction_is_trusted_by_its_interval_and_no_less_than_a_guess() -> None:
    assert trusted([row_with((0.5 / 2, 0.5 * 2))])["a"] == pytest.approx(math.log(2) / 1.645)
    assert trusted([row_with((1e-9, 1e9))]) == {"a": TRUST}
    assert trusted([row_with((0.0, math.inf)), row_with(None)]) == {}


def test_a_parameter_within_its_noise_takes_part_where_its_role_is_above_it() -> None:
    lost = row("b", 1.0, 1e-9, status="unresolved", multiplier=1.0)
    found = pooled([row("a", 1.0, 4.0), lost], {"a": 0, "b": 0}, {"a": 1.0, "b": 1.0})
    assert [each.multiplier for each in found] == pytest.approx([0.5, 0.5])
    assert [each.status for each in found] == ["matched", "matched"]


def test_a_role_within_its_noise_has_the_guess() -> None:
    lost = [row(name, 0.0, 1e-9, status="unresolved", multiplier=1.0) for name in "ab"]
    found = pooled(lost, {"a": 0, "b": 0}, {"a": 0.25, "b": 0.5})
    assert [each.multiplier for each in found] == [0.25, 0.5]
    assert [each.status for each in found] == ["unresolved", "unresolved"]


@pytest.mark.parametrize("changes", [{"status": "unmatched", "base": ()}, {"after": 4}])
def test_what_has_no_start_is_left_as_it_is(changes: dict[str, Any]) -> None:
    rows = [row("a", 1.0, 4.0), replace(row("b", 1.0, 2.0), multiplier=7.0, **changes)]
    assert of_role(rows) == {"a": 0.25, "b": 7.0}


ALONE = {name: name for name in "abc"}


def test_implausible_multipliers_are_warned_of() -> None:
    rows = [row("a", 100.0, 1.0), row("b", 1.0, 1.0), row("c", 1.0, 30.0)]
    ones = dict.fromkeys("abc", 1.0)
    with pytest.warns(UserWarning, match="of 2 parameters are more than 16 .* 'a' is 1e.02 times"):
        warn_of_implausible(rows, ones, ALONE, sized=False, stacklevel=1)


@pytest.mark.parametrize("factor", [1 / 3, 1 / 2, 2.0, 3.0])
@pytest.mark.parametrize("sized", [True, False])
def test_roles_that_are_off_on_average_are_warned_of(factor: float, sized: bool) -> None:
    rows = [row("a", 2 * factor, 1.0), row("b", factor / 2, 1.0), row("c", factor, 1.0)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_implausible(rows, dict.fromkeys("abc", 1.0), ALONE, sized=sized, stacklevel=1)
    assert bool(caught) == (sized and not 0.4 < factor < 2.5)
    if caught:
        assert f"multipliers are {factor:.2g} times what the sizes" in str(caught[0].message)


def test_a_role_counts_once() -> None:
    rows = [row("a", 1.0, 1.0), row("b", 4.0, 1.0), row("c", 4.0, 1.0)]
    ones = dict.fromkeys("abc", 1.0)
    with pytest.warns(UserWarning, match="multipliers are 2.5 times"):
        warn_of_implausible(rows, ones, ALONE, sized=True, stacklevel=1)
    warn_of_implausible(rows, ones, {"a": 0, "b": 1, "c": 1}, sized=True, stacklevel=1)
