"""Multipliers that agree within their errors are merged, and none goes further than its own."""

import math
import random

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.assign.assignment import Assignment, Status
from flerm_fx.emit.merging import merged
from flerm_fx.probe.estimate import NOT_MEASURED


def row(
    name: str,
    multiplier: float,
    error: float = 0.0,
    status: Status = "matched",
    interval: tuple[float, float] | None = None,
) -> Assignment:
    return Assignment(
        name,
        "",
        "",
        (),
        (),
        1.0,
        NOT_MEASURED,
        multiplier,
        status,
        error=error,
        interval=interval,
    )


def test_the_mean_is_weighted_by_errors() -> None:
    """By 1 / 0.1² and 1 / 0.2², as 4 to 1."""
    found = merged([row("a", 1.0, 0.1), row("b", 1.1, 0.2)])
    assert found["a"] == found["b"] == pytest.approx(1.1 ** (1 / 5), rel=1e-12)


def test_equal_ones_count_as_often_as_they_are_there() -> None:
    rows = [row("a", 1.0, 0.1), row("b", 1.1, 0.1), row("c", 1.1, 0.1), row("d", 1.1, 0.1)]
    (m,) = set(merged(rows).values())
    assert m == pytest.approx(1.1 ** (3 / 4), rel=1e-12)


def test_two_apart_merge_up_to_two_errors_from_their_mean() -> None:
    """Their mean is half their distance away from each."""
    for distance, groups in ((0.399, 1), (0.401, 2)):
        rows = [row("a", 1.0, 0.1), row("b", math.exp(distance), 0.1)]
        assert len(set(merged(rows).values())) == groups


def test_the_smaller_error_bounds_a_group() -> None:
    """The mean of 1 and 1.1 is 1 / 2501 of the way from the precise one: 0.4 of its errors."""
    for error, apart in ((0.0001, 1.1), (0.1, 1.1)):
        found = merged([row("precise", 1.0, error), row("rough", apart, 0.5)])
        assert len(set(found.values())) == 1
        assert abs(math.log(found["precise"])) <= 2 * error
    assert merged([row("a", 1.0, 0.01), row("b", 1.1, 0.01)]) == {"a": 1.0, "b": 1.1}


def test_a_chain_of_near_ones_joins_no_far_pair() -> None:
    rows = [row(str(i), 1.05**i, 0.05) for i in range(100)]
    found = merged(rows)
    assert 10 < len(set(found.values())) < 50
    for each in rows:
        assert abs(math.log(found[each.parameter] / each.multiplier)) <= 2 * each.error + 1e-12


def test_the_order_of_parameters_does_not_matter() -> None:
    source = random.Random(0)
    rows = [row(str(i), source.lognormvariate(0, 1), source.uniform(0, 0.3)) for i in range(200)]
    rows += [row(f"again {i}", rows[i].multiplier, 0.2) for i in range(20)]
    found = merged(rows)
    assert list(found) == [each.parameter for each in rows]
    shuffled = rows[:]
    source.shuffle(shuffled)
    assert merged(shuffled) == found
    for each in rows:
        off = abs(math.log(found[each.parameter] / each.multiplier))
        assert off <= 2 * each.error + 1e-12
    for i in range(20):
        assert found[str(i)] == found[f"again {i}"]


def test_without_errors_nothing_moves() -> None:
    rows = [row("a", 1.0), row("b", 1.0 + 1e-12), row("c", 0.7, 0.3, status="unmatched")]
    assert merged(rows) == {each.parameter: each.multiplier for each in rows}


def test_one_that_was_not_measured_stays_and_others_join_it() -> None:
    found = merged([row("unused", 1.0, status="unused"), row("a", 1.15, 0.1), row("b", 1.3, 0.1)])
    assert found == {"unused": 1.0, "a": 1.0, "b": 1.3}


def test_predicted_ones_stay_in_their_intervals() -> None:
    """Of equal width, the mean of 1 and 1.21 is 1.1."""
    for width, values in ((1.11, [1.1]), (1.09, [1.0, 1.21])):
        rows = [
            row(name, m, 9.0, "predicted", (m / width, m * width))
            for name, m in (("a", 1.0), ("b", 1.21))
        ]
        assert sorted(set(merged(rows).values())) == pytest.approx(values, rel=1e-12)
    open_ended = [row("a", 1.0, 0.0, "predicted", (0.0, math.inf)), row("b", 1.01, 1e-4)]
    assert merged(open_ended) == {"a": 1.0, "b": 1.01}


def test_other_kinds_are_kept_apart() -> None:
    rows = [row("w1", 1.0, 0.2), row("b1", 1.1, 0.2), row("w2", 1.1, 0.2)]
    found = merged(rows, kind=lambda name: name[0])
    assert found["w1"] == found["w2"] == pytest.approx(1.1**0.5)
    assert found["b1"] == 1.1


def test_groups_of_a_compiled_model() -> None:
    def net(width: int) -> nn.Module:
        torch.manual_seed(width)
        hidden = [layer for _ in range(6) for layer in (nn.Linear(width, width), nn.Tanh())]
        return nn.Sequential(nn.Linear(4, width), *hidden, nn.Linear(width, 3))

    base, large = net(8), net(16)
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    weights = [p for p in base.parameters() if p.ndim > 1]
    biases = [p for p in base.parameters() if p.ndim == 1]
    kinds = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(kinds, lr=1e-2)
    profile = flerm_fx.record(base, adam, x, y, settle=0).profile
    compiled = flerm_fx.compile(large, profile, emit="param_groups", method="sampled", rtol=0.2)
    exact, few = compiled.param_groups(1e-2), compiled.param_groups(1e-2, merge=True)
    assert len(few) < len(exact)
    names = {id(p): name for name, p in large.named_parameters()}
    held = {names[id(p)]: group for group in few for p in group["params"]}
    assert held.keys() == compiled.multipliers.keys()
    for each in compiled.assignments:
        group, m = held[each.parameter], compiled.merged_multipliers[each.parameter]
        assert group["lr"] == pytest.approx(1e-2 * m, rel=1e-12)
        decay = 0.1 if "weight" in each.parameter else 0.0
        assert group["lr"] * group["weight_decay"] == pytest.approx(1e-2 * decay, rel=1e-12)
        error = each.error if each.status == "matched" else 0.0
        assert abs(math.log(m / each.multiplier)) <= 2 * error + 1e-12
    torch.optim.AdamW(few, lr=1e-2)
