"""The first guess of a target's multipliers, and how far it gets."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.align.aligning import Match
from flerm_fx.assign.way import Way
from flerm_fx.recipe.schedule import start_steps
from flerm_fx.start.procedure import StartProcedure
from models.resmlp import ResMLP


def test_the_guess_goes_by_the_rates_of_the_base_whatever_names_the_target_has() -> None:
    """One block answers to two, which the base trains at different rates."""

    def net(depth: int) -> nn.Module:
        torch.manual_seed(0)
        return ResMLP(in_features=4, width=8, depth=depth, out_features=3)

    torch.manual_seed(1)
    inputs, targets = [torch.randn(16, 4) for _ in range(3)], [torch.arange(16) % 3] * 3
    small = net(2)
    groups = [
        {"params": [p], "lr": 1e-2 if name.startswith("blocks.1.") else 1e-3}
        for name, p in small.named_parameters()
    ]
    profile = flerm_fx.record(small, torch.optim.Adam(groups), inputs, targets, settle=2).profile
    same, renamed = (
        flerm_fx.compile(model, profile, emit="param_groups").settling[0]
        for model in (net(1), nn.Sequential(net(1)))
    )
    assert renamed == pytest.approx({f"0.{name}": m for name, m in same.items()}, rel=1e-5)


SETTLE, WARMUP = 10, 4
STEPS = start_steps(SETTLE, WARMUP)
NAMES = ("weight", "bias")


def with_losses(at: Callable[[int], float]) -> flerm_fx.BaseProfile:
    """A profile whose settling steps have these losses."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 4), torch.randn(8, 3), torch.arange(8) % 4
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    recorded = flerm_fx.record(model, adam, [x, x], [y, y], settle=SETTLE, warmup=WARMUP).profile
    moments = {step: replace(m, loss=at(step)) for step, m in recorded.moments.items()}
    return replace(recorded, moments=moments)


def way_of(base: flerm_fx.BaseProfile, at: Callable[[int], float], size: int = 16) -> Way:
    """The way of a target with these losses, all of it gone."""
    rule = base.optimizers
    procedure = StartProcedure(rule, SETTLE, WARMUP, None, base.pool, None, "auto", 0.1, 0)
    way = Way(base, {name: Match(name, ((name, 1.0),)) for name in NAMES}, procedure, size)
    for step, moment in base.moments.items():
        way.follow(step, replace(moment, loss=at(step)))
    return way


def warnings_of(way: Way) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        way.warn(stacklevel=1)
    return [str(w.message) for w in caught]


def falling(by: float) -> Callable[[int], float]:
    """Losses that have fallen by so much when the start is measured."""
    return lambda step: 5.0 - by * (step in STEPS)


@pytest.mark.parametrize(("by", "behind"), [(2.0, 0.0), (1.9, 0.05), (1.8, 0.1), (3.0, -0.5)])
def test_a_target_is_behind_by_what_its_loss_has_fallen_less(by: float, behind: float) -> None:
    way = way_of(with_losses(falling(2.0)), falling(by))
    assert way.behind == pytest.approx(behind)
    found = warnings_of(way)
    assert len(found) == (behind > 0.07)
    if found:
        assert "has fallen by 10% less than the base's in as many steps" in found[0]
        assert "initial weights as large as the base's" in found[0]


def test_a_smaller_target_may_be_behind() -> None:
    """The base has 16 weights."""
    base = with_losses(falling(2.0))
    assert not warnings_of(way_of(base, falling(1.0), size=15))
    assert warnings_of(way_of(base, falling(1.0), size=16))


@pytest.mark.parametrize(
    "base",
    [
        lambda step: math.nan,  # a file from before losses were kept
        lambda step: 5.0 + step,
        lambda step: 5.0 - (step in STEPS) * (step % 2 - 0.4),  # no more than it varies
    ],
)
def test_a_base_that_has_not_learned_tells_nothing(base: Callable[[int], float]) -> None:
    way = way_of(with_losses(base), falling(0.0))
    assert math.isnan(way.behind)
    assert not warnings_of(way)
