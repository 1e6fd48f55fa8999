"""Laws of recorded runs: closed forms, errors of steps, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx import BaseProfile, LawError, ScalingLaw
from flerm_fx.laws.courses import error_factor, likeness
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.trajectory import Trajectory
from tests.laws.small import Blocks

STEPS = (2, 4, 6)
X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (32,), generator=torch.Generator().manual_seed(1))


few = pytest.mark.filterwarnings("ignore:the law does not hold")
"""Eight features are few, and whether a law of them holds is chance."""


def recorded(
    model: nn.Module,
    multipliers: dict[str, float] | None = None,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    at: tuple[int, ...] = STEPS,
    x: Tensor = X,
    y: Tensor = Y,
    **options: Any,
) -> BaseProfile:
    groups = [
        {"params": [p], "lr": 1e-3 * (multipliers or {}).get(name, 1.0)}
        for name, p in model.named_parameters()
    ]
    trains = optimizer(groups, lr=1e-3, **options)  # type: ignore[call-arg]
    loss = nn.functional.cross_entropy if y.dtype == torch.long else nn.functional.mse_loss
    with flerm_fx.record(
        model, trains, x, y, at=at, settle=0, method="exact", progress=False
    ) as recorder:
        for _ in range(8):
            trains.zero_grad()
            loss(model(x), y).backward()
            trains.step()
    return recorder.profile


def seeded(seed: int, width: int = 8, depth: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return Blocks(width, depth)


@pytest.fixture(scope="module")
def base() -> BaseProfile:
    return BaseProfile.mean([recorded(seeded(seed)) for seed in range(3)])


@pytest.fixture(scope="module")
def wide() -> list[BaseProfile]:
    return [recorded(seeded(seed, width)) for width in (16, 32) for seed in (10, 11)]


@pytest.fixture(scope="module")
def law(base: BaseProfile, wide: list[BaseProfile]) -> ScalingLaw:
    return ScalingLaw.fit_trajectories(base, wide)


PATTERNS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


class Linear(nn.Module):
    """f(x) = readout · input x, with entries ±1/n in the readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(2, width, bias=False)
        self.readout = nn.Linear(width, 1, bias=False)
        with torch.no_grad():
            self.input.weight.copy_(PATTERNS.repeat(width // 4, 1))
            self.readout.weight.copy_(torch.tensor([1.0, -1.0]).repeat(width // 2) / width)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.input(x))


def test_exponents_of_a_linear_network_over_steps_of_sign_descent() -> None:
    """Errors of 1e4 stay what they are, whatever eight steps of 1e-7 do, so that each step is the
    first, whose closed form is 0 for the input and -1 for the readout (tests/laws/test_law.py).
    """
    x = torch.tensor([[1.0, 0.25], [0.5, -1.0], [-0.75, 0.5], [0.3, 0.9]])
    y = 1e4 * torch.tensor([[1.0], [0.5], [-0.25], [0.75]])

    def run(width: int, multiplier: float) -> BaseProfile:
        found = {"input.weight": 1e-4, "readout.weight": 1e-4 * multiplier}
        return recorded(Linear(width), found, x=x, y=y, eps=1e-30)

    law = ScalingLaw.fit_trajectories(run(16, 1.0), [run(32, 0.5), run(64, 0.3)])
    exponents = {name: of.line.exponents for name, of in law.roles.items()}
    assert exponents["input.weight"] == pytest.approx((0.0,), abs=1e-2)
    assert exponents["readout.weight"] == pytest.approx((-1.0,), abs=1e-2)


def test_a_multiplier_is_the_mean_over_steps_and_its_error_their_scatter(base: BaseProfile) -> None:
    """By hand, from a run with made-up FSLRs."""
    one = recorded(seeded(5, 16))
    course = {
        name: tuple(
            Estimate(base.trajectory.at(step)[name].value * factor, 0.0, "exact", 0)
            for step, factor in zip(STEPS, (1.0, 4.0, 2.0), strict=True)
        )
        for name in one.parameters
    }
    made_up = replace(one, trajectory=replace(one.trajectory, fslrs=course))
    law = ScalingLaw.fit_trajectories(base, [made_up])
    (point,) = law.points["out.weight"]
    assert point.log_multiplier == pytest.approx(-math.log(2))
    # logarithms -2, 0 and -1 times ln(2) have a standard deviation of ln(2)
    assert point.error == pytest.approx(math.log(2) / math.sqrt(3))
    (point,) = law.points["blocks.0.weight"]  # two blocks
    assert point.error == pytest.approx(math.log(2) / math.sqrt(3) / math.sqrt(2))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("steps", [6, 12])
def test_errors_of_means_over_steps_that_are_alike(correlation: float, steps: int) -> None:
    """Of 26 parameters, whose logarithms are autoregressive over the steps of a run."""
    rng = np.random.default_rng(0)
    true, stated = [], []
    for _ in range(60):
        series = rng.normal(size=(26, steps))
        for k in range(1, steps):
            series[:, k] *= np.sqrt(1 - correlation**2)
            series[:, k] += correlation * series[:, k - 1]
        factor = error_factor(likeness(series.tolist()), steps)
        true.append(np.mean(series.mean(axis=1) ** 2))
        stated.append(factor**2 * np.mean(series.var(axis=1, ddof=1)) / steps)
    assert np.median(stated) == pytest.approx(np.mean(true), rel=0.25)


def test_a_run_whose_steps_are_alike_is_one_of_few() -> None:
    """FSLRs that rise from step to step, in all parameters, are no six independent ones."""
    at = (2, 3, 4, 5, 6, 7)
    rising = (1.0, 1.1, 1.3, 2.0, 2.2, 2.4)
    mixed = (1.0, 2.2, 1.1, 2.4, 1.3, 2.0)
    one, small = recorded(seeded(5, 16), at=at), recorded(seeded(0), at=at)

    def error(factors: tuple[float, ...]) -> float:
        course = {
            name: tuple(
                Estimate(small.trajectory.at(step)[name].value * factor, 0.0, "exact", 0)
                for step, factor in zip(at, factors, strict=True)
            )
            for name in one.parameters
        }
        made_up = replace(one, trajectory=replace(one.trajectory, fslrs=course))
        return ScalingLaw.fit_trajectories(small, [made_up]).points["out.weight"][0].error

    assert error(rising) > 3 * error(mixed)


@few
def test_the_bases_course_is_what_a_target_has_to_meet(base: BaseProfile, law: ScalingLaw) -> None:
    model = flerm_fx.compile(Blocks(32), law, emit="param_groups")
    row = next(row for row in model.assignments if row.parameter == "out.weight")
    values = [base.trajectory.at(step)["out.weight"] for step in STEPS]
    wanted = math.exp(sum(math.log(each.value) for each in values) / 3)
    assert row.base_fslr == pytest.approx(wanted)
    error = law.profile.start["out.weight"].relative_error
    assert error == pytest.approx(sum(each.relative_error for each in values) / 3)


@few
def test_the_base_itself_has_multipliers_of_1(law: ScalingLaw) -> None:
    assert set(flerm_fx.compile(Blocks(), law).multipliers.values()) == {1.0}


def test_a_run_like_the_bases_has_multipliers_of_1() -> None:
    one = recorded(seeded(0))
    with pytest.raises(LawError, match="do not differ from the base in size"):
        ScalingLaw.fit_trajectories(one, [one])


def test_several_bases_are_known_to_be_several(law: ScalingLaw, wide: list[BaseProfile]) -> None:
    assert "one base" not in {finding.kind for finding in law.check()}
    single = ScalingLaw.fit_trajectories(recorded(seeded(0)), wide)
    assert "one base" in {finding.kind for finding in single.check()}


def test_a_deeper_model_has_its_shares(base: BaseProfile) -> None:
    deep = [recorded(seeded(seed, 16, depth=4)) for seed in (10, 11)]
    law = ScalingLaw.fit_trajectories(base, deep)
    assert {point.shares for point in law.points["blocks.0.weight"]} == {0.5}


@few
def test_it_is_saved_and_predicts_the_same(law: ScalingLaw, tmp_path: Path) -> None:
    law.save(tmp_path / "law.json")
    found = ScalingLaw.load(tmp_path / "law.json")
    models = [flerm_fx.compile(Blocks(64), each, emit="param_groups") for each in (law, found)]
    assert models[0].assignments == models[1].assignments


def test_steps_of_a_warm_up_are_left_out(base: BaseProfile, wide: list[BaseProfile]) -> None:
    def rising(profile: BaseProfile) -> BaseProfile:
        course = profile.trajectory
        first = {
            n: (replace(es[0], value=100 * es[0].value), *es[1:]) for n, es in course.fslrs.items()
        }
        return replace(profile, trajectory=Trajectory(STEPS, (1e-4, 1e-3, 5e-4), first))

    law = ScalingLaw.fit_trajectories(rising(base), wide)
    expected = ScalingLaw.fit_trajectories(
        replace(base, trajectory=_without_first(base.trajectory)), wide
    )
    assert law.points == expected.points


def _without_first(course: Trajectory) -> Trajectory:
    return Trajectory(
        course.steps[1:],
        course.learning_rates[1:],
        {name: estimates[1:] for name, estimates in course.fslrs.items()},
    )


def test_what_is_refused(base: BaseProfile, wide: list[BaseProfile]) -> None:
    nothing = replace(base, trajectory=Trajectory())
    with pytest.raises(LawError, match=r"no trajectory behind its warm-up; train it inside of"):
        ScalingLaw.fit_trajectories(nothing, wide)
    only_first = recorded(seeded(0), at=(0,))
    with pytest.raises(LawError, match="no trajectory behind its warm-up"):
        ScalingLaw.fit_trajectories(only_first, wide)
    other = recorded(seeded(10, 16), at=(2, 5))
    with pytest.raises(LawError, match="steps 2, 4, 6 .* and Blocks not at 4, 6; record both"):
        ScalingLaw.fit_trajectories(base, [other])
    by_sgd = recorded(seeded(10, 16), optimizer=torch.optim.SGD)
    with pytest.raises(flerm_fx.OptimizerError, match="the FSLRs of one rule say nothing"):
        ScalingLaw.fit_trajectories(base, [by_sgd])
    with pytest.raises(flerm_fx.InputError, match="a profile must be a BaseProfile, got Blocks"):
        ScalingLaw.fit_trajectories(base, [Blocks(16)])  # type: ignore[list-item]
    with pytest.raises(LawError, match="no compiled models or profiles"):
        ScalingLaw.fit_trajectories(base, [])
