"""Matching that begins with what a law predicts, or with what was compiled."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import flerm_fx
from flerm_fx import BaseProfile, LawError, ScalingLaw
from flerm_fx.laws.points import Point
from models.resmlp import ResMLP
from tests.cases import features

X = features(12, 6)
Y = torch.randint(4, (12,), generator=torch.Generator().manual_seed(2))
ROLES = {"input": -0.5, "blocks.0": -1.0, "output.weight": -1.5}


def net(width: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ResMLP(6, 4, width=width, depth=2)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, scheduler: Any = None
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.fixture(scope="module")
def profile() -> BaseProfile:
    model = net(8)
    optimizer = adam(model)
    with flerm_fx.record(
        model, optimizer, X, Y, settle=2, warmup=0, every=2, method="exact"
    ) as recorder:
        train(model, optimizer, 8)
    return recorder.profile


def made_up(profile: BaseProfile, error: float) -> ScalingLaw:
    """A law whose exponents differ by role, from points that scatter by ``error``."""
    exponents = {
        name: next((e for start, e in ROLES.items() if name.startswith(start)), 0.0)
        for name in profile.parameters
    }

    def moved(name: str, octave: int) -> tuple[float, ...]:
        base, wide = (dict(net(width).named_parameters())[name].shape for width in (8, 16))
        return tuple(octave * math.log(w / b) for w, b in zip(wide, base, strict=True))

    first = flerm_fx.scaling_law(
        lambda width: net(width), {"width": [16]}, profile, seeds=1, method="exact"
    )
    points = {
        name: tuple(
            Point(
                model=2 * octave + sign,
                parameters=4**octave,
                log_sizes=(*moved(name, octave), 0.0),
                log_multiplier=exponents[name] * octave * math.log(2) + (2 * sign - 1) * error,
                error=error,
                spread=0.0,
                noise=error,
                shares=1.0,
            )
            for octave in (1, 2, 3)
            for sign in (0, 1)
        )
        for name in first.roles
    }
    return ScalingLaw(profile, points)


@pytest.fixture(scope="module")
def law(profile: BaseProfile) -> ScalingLaw:
    return made_up(profile, 0.3)


def predicted(law: ScalingLaw, width: int = 32) -> dict[str, float]:
    return flerm_fx.compile(net(width), law, emit="param_groups").multipliers


def test_a_run_begins_with_what_the_law_predicts(law: ScalingLaw) -> None:
    model = net(32)
    optimizer = adam(model)
    rising = lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 8, 1.0))
    matcher = flerm_fx.match(model, optimizer, law, every=1, method="exact")
    assert matcher.multipliers == predicted(law)
    with matcher:
        train(model, optimizer, 6, rising)
    warming = [row for row in matcher.history if row.step < 3]  # up to half of the rate
    assert [row.multipliers for row in warming] == [predicted(law)] * 3
    assert matcher.multipliers != predicted(law)


def test_the_first_step_is_taken_at_the_predicted_rates(law: ScalingLaw) -> None:
    """By hand: groups at the rate times the multiplier, with Adam's eps over it."""
    model, by_hand = net(32), net(32)
    optimizer = adam(model)
    with flerm_fx.match(model, optimizer, law, every=100):
        train(model, optimizer, 1)
    groups = [
        {"params": [p], "lr": 1e-2 * m, "eps": 1e-8 / m}
        for p, m in zip(by_hand.parameters(), predicted(law).values(), strict=True)
    ]
    train(by_hand, torch.optim.Adam(groups), 1)
    for a, b in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:the law does not hold")
def test_measurements_are_drawn_to_predictions_as_far_as_those_are_trusted(
    profile: BaseProfile,
) -> None:
    """Two measurements have a variance of ln(2)² / 2, a prediction its interval's."""
    sure, unsure = made_up(profile, 0.02), made_up(profile, 0.5)
    drawn = {}
    for law in (sure, unsure):
        model = net(32)
        optimizer = adam(model)
        with flerm_fx.match(model, optimizer, law, at="start", method="exact") as matcher:
            train(model, optimizer, 4)
        assert matcher.trajectory.steps == (0, *profile.settling.steps)
        for name in ("input.weight", "output.weight"):  # all others have a role in common
            (row,) = (
                row
                for row in flerm_fx.compile(net(32), law, emit="param_groups").assignments
                if row.parameter == name
            )
            assert row.interval is not None
            trust = min(math.log(4), math.log(row.interval[1] / row.interval[0]) / 2 / 1.645) ** 2
            noise = math.log(2) ** 2 / 2
            ratios = [
                profile.settling.at(each.step)[name].value / each.fslrs[name].value
                for each in matcher.history[1:]
            ]
            own = sum(map(math.log, ratios)) / 2
            weight = trust / (trust + noise)
            expected = weight * own + (1 - weight) * math.log(row.multiplier)
            assert math.log(matcher.multipliers[name]) == pytest.approx(expected, abs=1e-4)
            drawn[law, name] = weight
    assert all(5 * drawn[sure, name] < drawn[unsure, name] for _, name in drawn)


@pytest.mark.parametrize("emit", ["graph", "module", "param_groups"])
def test_what_is_compiled_begins_with_its_own_multipliers(profile: BaseProfile, emit: Any) -> None:
    compiled = flerm_fx.compile(net(32), profile, emit=emit, method="exact")
    found = compiled.multipliers
    optimizer = adam(compiled)
    with flerm_fx.match(compiled, optimizer, profile, at="start", method="exact") as matcher:
        assert matcher.multipliers == pytest.approx(found, rel=1e-6)
        train(compiled, optimizer, 4)
    assert matcher.history[0].multipliers == pytest.approx(found, rel=1e-6)
    assert matcher.multipliers != pytest.approx(found, rel=1e-2)


@pytest.mark.parametrize("emit", ["graph", "module"])
def test_scale_nodes_keep_what_they_stand_for_at_first(law: ScalingLaw, emit: Any) -> None:
    plain, model = net(32), net(32)
    compiled = flerm_fx.compile(model, law, emit=emit)
    trained = model if emit == "module" else compiled
    found = []
    for each in (plain, trained):
        optimizer = adam(each)
        with flerm_fx.match(each, optimizer, law, at="start", method="exact") as matcher:
            train(each, optimizer, 4)
        found.append([row.multipliers for row in matcher.history])
    assert found[1][0] == pytest.approx(predicted(law), rel=1e-6)
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_a_law_from_a_file_has_the_course_that_is_followed(law: ScalingLaw, tmp_path: Path) -> None:
    law.save(tmp_path / "law.json")
    found = []
    for each in (law, ScalingLaw.load(tmp_path / "law.json")):
        model = net(32)
        optimizer = adam(model)
        with flerm_fx.match(model, optimizer, each, every=2, method="exact") as matcher:
            train(model, optimizer, 5)
        found.append(matcher.history)
    assert found[0] == found[1]
    assert len(found[0]) == 4  # steps 0, 2 and 4, and 1 and 2 of the start


def test_a_resumed_run_is_bitwise_the_run(law: ScalingLaw) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, flerm_fx.Matcher]:
        model = net(24)
        optimizer = adam(model)
        return model, optimizer, flerm_fx.match(model, optimizer, law, every=2)

    whole, optimizer, matcher = build()
    train(whole, optimizer, 8)
    first, optimizer, early = build()
    train(first, optimizer, 3)
    states = copy.deepcopy((first.state_dict(), optimizer.state_dict(), early.state_dict()))
    second, optimizer, late = build()
    for each, state in zip((second, optimizer, late), states, strict=True):
        each.load_state_dict(state)
    train(second, optimizer, 5)
    assert late.history == matcher.history
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_refused(law: ScalingLaw) -> None:
    model = net(32)
    points = {name: of for name, of in law.points.items() if name != "output.weight"}
    with pytest.raises(LawError, match=r"has no role output\.weight"):
        flerm_fx.match(model, adam(model), ScalingLaw(law.profile, points))
    with pytest.raises(flerm_fx.InputError, match="a BaseProfile or a law"):
        flerm_fx.match(model, adam(model), "law.json")  # type: ignore[arg-type]
