"""Weights in half precision are measured in float32, and stay what they are."""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flerm_fx
from flerm_fx.start.precision import is_coarse, measurable
from models.transformer import Transformer
from tests.cases import features, tokens

LR = 1e-3
EPSILON = torch.finfo(torch.float32).eps

XS = [(features(8, 6) + 0.25 * i).bfloat16().float() for i in range(4)]  # exact in both types
YS = [torch.arange(8) % 3] * 4


def mlp(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


class Small(nn.Module):
    """With a parameter whose FSLR is some 0.1 % of the largest: less than bfloat16 resolves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, width), nn.Linear(width, 3)
        self.shift = nn.Parameter(torch.full((3,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()) + 0.01 * self.shift  # type: ignore[no-any-return]


def transformer(width: int) -> nn.Module:
    torch.manual_seed(0)
    return Transformer(vocab=17, width=width, depth=1, heads=2, context=8, norm="pre")


CASES: dict[str, tuple[Callable[[int], nn.Module], list[Tensor], list[Tensor]]] = {
    "mlp": (mlp, XS, YS),
    "transformer": (transformer, [tokens(4), tokens(4) + 0], [tokens(4)] * 2),
}


def to(dtype: torch.dtype, batches: list[Tensor]) -> list[Tensor]:
    return [x.to(dtype) if x.is_floating_point() else x for x in batches]


def adam(parameters: Any) -> torch.optim.Optimizer:
    # Beside an eps of 1e-8, float16 divides 0 by 0.
    return torch.optim.Adam(parameters, lr=LR, eps=1e-4)


def recorded(
    model: nn.Module, xs: list[Tensor], ys: list[Tensor], **options: Any
) -> flerm_fx.BaseProfile:
    options = {"settle": 6, "method": "exact", **options}
    return flerm_fx.record(model, adam(model.parameters()), xs, ys, **options).profile


@pytest.mark.parametrize("settle", [0, 6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_multipliers_are_those_of_the_same_weights_in_float32(
    name: str, dtype: torch.dtype, settle: int
) -> None:
    make, xs, ys = CASES[name]
    small, large = make(8).to(dtype), make(16).to(dtype)
    same = recorded(copy.deepcopy(small).float(), xs, ys, settle=settle)
    profile = recorded(small, to(dtype, xs), ys, settle=settle)
    wanted = flerm_fx.compile(copy.deepcopy(large).float(), same, method="exact")
    found = flerm_fx.compile(large, profile, method="exact")
    for one, other in zip(wanted.assignments, found.assignments, strict=True):
        assert one.multiplier == pytest.approx(other.multiplier, rel=256 * EPSILON)
        assert (one.parameter, one.status) == (other.parameter, other.status)
    if settle:
        assert {row.multiplier for row in found.assignments} != {1.0}
    # What was given keeps its type and weights, and the pool of the profile is the user's.
    for model in (small, large):
        assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(next(small.parameters()), next(make(8).to(dtype).parameters()))
    assert profile.pool[0][0].dtype == to(dtype, xs)[0].dtype


@pytest.mark.parametrize("emit", ["graph", "module", "param_groups"])
def test_what_is_emitted_has_the_models_own_type(emit: Any) -> None:
    xs = to(torch.bfloat16, XS)
    large = mlp(16).bfloat16()
    expected = large(xs[0]).detach()
    profile = recorded(mlp(8).bfloat16(), xs, YS)
    compiled = flerm_fx.compile(large, profile, emit=emit, method="exact")
    assert compiled.graph_module is not None
    assert {p.dtype for p in compiled.parameters()} == {torch.bfloat16}
    found = compiled(xs[0])
    assert found.dtype == torch.bfloat16
    # Weights are rounded once more, by half of the last bit, and values on their way.
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert all(check.passed for check in compiled.check())
    trained = large if emit == "param_groups" else compiled
    before = [p.detach().clone() for p in trained.parameters()]
    groups = compiled.param_groups(0.1) if emit == "param_groups" else compiled.parameters()
    optimizer = torch.optim.Adam(groups, lr=0.1, eps=1e-4)
    F.cross_entropy(trained(xs[0]), YS[0]).backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True))


def test_a_live_step_is_measured_as_it_was_rounded() -> None:
    xs = to(torch.bfloat16, XS)
    model = Small(8).bfloat16()
    before = {n: p.detach().double() for n, p in model.named_parameters()}
    optimizer = adam(model.parameters())
    with flerm_fx.record(model, optimizer, xs, YS, settle=0, method="exact") as recorder:
        F.cross_entropy(model(xs[1]), YS[1]).backward()
        optimizer.step()
    precise = copy.deepcopy(model).double()
    inputs = xs[0].double()
    for name, parameter in model.named_parameters():
        update = (parameter.detach().double() - before[name]) / LR

        def moved(value: Tensor, name: str = name) -> Tensor:
            state = {**before, name: value}
            return torch.func.functional_call(precise, state, (inputs,))  # type: ignore[no-any-return]

        tangent = torch.func.jvp(moved, (before[name],), (update,))[1]
        expected = tangent.square().mean().sqrt().item()
        (found,) = recorder.profile.trajectory.fslrs[name]
        assert found.value == pytest.approx(expected, rel=256 * EPSILON)


@pytest.mark.parametrize("scaled", [False, True])
def test_matching_in_half_precision_resolves_what_float32_does(scaled: bool) -> None:
    xs = to(torch.bfloat16, XS)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for x, y in zip(xs, YS, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    small = Small(8).bfloat16()
    optimizer = adam(small.parameters())
    with flerm_fx.record(small, optimizer, xs, YS, settle=2, every=1, method="exact") as recorder:
        train(small, optimizer)
    profile = recorder.profile
    target: nn.Module = Small(16).bfloat16()
    if scaled:
        target = flerm_fx.compile(target, profile, method="exact")
    optimizer = adam(target.parameters())
    with flerm_fx.match(target, optimizer, profile, every=1, ema=0, method="exact") as matcher:
        train(target, optimizer)
    fslrs, bases = matcher.trajectory.at(3), profile.trajectory.at(3)
    assert fslrs["shift"].value < 0.02 * max(e.value for e in fslrs.values())
    for name, multiplier in matcher.multipliers.items():
        assert multiplier == pytest.approx(bases[name].value / fslrs[name].value, rel=1e-6)


class Casts(nn.Module):
    """Casts to a type of its own choice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.bfloat16()).tanh())  # type: ignore[no-any-return]


def test_a_model_that_does_not_run_in_float32_is_measured_as_it_is_with_a_warning() -> None:
    model = Casts(8).bfloat16()
    F.cross_entropy(model(XS[1]), YS[1]).backward()
    lost = {}
    for name, p in model.named_parameters():
        assert p.grad is not None
        step = -LR * p.grad.float() / (p.grad.float().abs() + 1e-4)
        moved = (p.detach().float() + step).bfloat16().float() - p.detach().float()
        lost[name] = float((moved - step).norm() / step.norm())
    model.zero_grad()
    message = r"does not run in float32 \(RuntimeError: .*dtype.*\).* step of '(.*)' by (\d+)% of"
    with pytest.warns(UserWarning, match=message) as caught:
        profile = recorded(model, XS, YS)
    found = re.search(message, str(caught[0].message))
    assert found is not None
    # bfloat16 keeps 8 bits of the steps that these are compared with
    assert int(found[2]) / 100 == pytest.approx(max(lost.values()), abs=0.02)
    assert lost[found[1]] == pytest.approx(max(lost.values()), abs=0.02)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=message) as caught:
        flerm_fx.compile(Casts(16).bfloat16(), profile)
    assert caught[0].filename == __file__
    target = Casts(16).bfloat16()
    optimizer = adam(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with flerm_fx.record(model, optimizer, XS, YS, settle=0) as recorder:
            F.cross_entropy(model(XS[0]), YS[0]).backward()
            optimizer.step()
    optimizer = adam(target.parameters())
    with pytest.warns(UserWarning, match=r"measured as it is: .* below 6.2% of the largest"):
        flerm_fx.match(target, optimizer, recorder.profile).close()


def test_models_in_float32_are_copied_once_and_pay_nothing() -> None:
    for model in (mlp(4), mlp(4).double()):
        made = []

        def duplicate(model: nn.Module = model, made: list[nn.Module] = made) -> nn.Module:
            made.append(copy.deepcopy(model))
            return made[-1]

        def run(*_: Any) -> None:
            raise AssertionError

        pool = ((XS[0].bfloat16(), YS[0]),)
        twin, same, obstacle = measurable(duplicate, pool, run)
        assert made == [twin] and same is pool and not obstacle


def test_frozen_weights_in_half_precision_are_left() -> None:
    model = mlp(4)
    model.get_submodule("0").bfloat16().requires_grad_(False)
    assert not is_coarse(model)
    assert is_coarse(model.requires_grad_(True))


class _ReturnsFloat(nn.Module):
    """In its weights' type, and then in float32, as language models return their logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.norm = nn.Linear(8, width), nn.LayerNorm(width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.into(x.to(self.into.weight.dtype)).tanh())
        output: Tensor = self.out(hidden)
        return output.float()


def test_scale_nodes_on_a_model_in_bfloat16_that_returns_float32_are_within_its_rounding() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(16, 8), torch.randint(3, (16,))
    small = _ReturnsFloat(8).bfloat16()
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
    profile = flerm_fx.record(small, optimizer, x, y, method="exact").profile
    model = _ReturnsFloat(64).bfloat16()
    before = model(x)
    compiled = flerm_fx.compile(model, profile, emit="module", method="exact")
    assert min(compiled.scales.values()) < 0.9
    # Three layers, of each of which weights and outputs are rounded to a bit of 2^-7 of themselves.
    assert (model(x) - before).abs().max() <= 3 * 2 * 2**-7 * before.abs().max()
