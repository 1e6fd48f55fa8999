"""Scaling laws: closed forms, what they refuse, and what they say of themselves."""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx import BaseProfile, CompiledModel, LawError, ScalingLaw
from flerm_fx.laws.points import Point
from flerm_fx.laws.table import to_table
from tests.laws.small import Blocks

PATTERNS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
X = torch.tensor([[1.0, 0.25], [0.5, -1.0], [-0.75, 0.5], [0.3, 0.9]])
Y = 1e4 * torch.tensor([[1.0], [0.5], [-0.25], [0.75]])  # errors are -Y, whatever the outputs


class Linear(nn.Module):
    """f(x) = readout · hidden · input x, with alternating signs in the readout."""

    def __init__(self, width: int, readout: float, *, hidden: bool) -> None:
        super().__init__()
        self.input = nn.Linear(2, width, bias=False)
        self.hidden = nn.Linear(width, width, bias=False) if hidden else nn.Identity()
        self.readout = nn.Linear(width, 1, bias=False)
        with torch.no_grad():
            self.input.weight.copy_(PATTERNS.repeat(width // 4, 1))
            signs = torch.tensor([1.0, -1.0]).repeat(width // 2)
            self.readout.weight.copy_(width**readout * signs)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.hidden(self.input(x)))


def sign_descent(model: nn.Module) -> torch.optim.Optimizer:
    """Adam's first step is the gradient's sign, where eps is nothing beside it."""
    return torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-30)


def recorded(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> BaseProfile:
    return flerm_fx.record(model, sign_descent(model), x, y, settle=0, method="exact").profile


def compiled(model: nn.Module, profile: BaseProfile) -> CompiledModel:
    return flerm_fx.compile(model, profile, emit="param_groups", method="exact")


def exponents(law: ScalingLaw) -> dict[str, float]:
    return {name: of.line.exponents[0] for name, of in law.roles.items()}


@pytest.mark.parametrize(("readout", "of_input"), [(-1.0, 0.0), (-0.5, -0.5)])
def test_exponents_of_a_linear_network_under_sign_descent(readout: float, of_input: float) -> None:
    r"""The closed form of f = w₂ᵀ W₁ x with entries ±n^r of w₂.

    The gradient of W₁ is w₂ vᵀ with v the mean of errors times inputs, its sign changes f by
    Σ|w₂ᵢ| sign(v)·x = n^(1+r) sign(v)·x. That of w₂ is W₁ v, and its sign changes f by
    Σᵢ sign(w₁ᵢ·v) w₁ᵢ·x, which is n times a mean over the rows of W₁. Those repeat four patterns,
    so that the mean is that of the wide limit at any width.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profile = recorded(Linear(16, readout, hidden=False))
        law = ScalingLaw.fit(
            compiled(Linear(width, readout, hidden=False), profile) for width in (32, 64, 128)
        )
    found = exponents(law)
    assert found["input.weight"] == pytest.approx(of_input, abs=1e-2)
    assert found["readout.weight"] == pytest.approx(-1.0, abs=1e-2)
    assert law.roles["input.weight"].line.axes == ((0,),)
    assert law.roles["readout.weight"].line.axes == ((1,),)


@pytest.mark.parametrize("readout", [-1.0, -0.5])
def test_the_exponent_of_a_hidden_matrix_under_sign_descent(readout: float) -> None:
    r"""The gradient of W₂ in f = w₃ᵀ W₂ W₁ x is w₃ (W₁ v)ᵀ.

    Its sign changes f by Σ|w₃ᵢ| Σⱼ sign(w₁ⱼ·v) w₁ⱼ·x, which is n^(1+r) times n times a mean over
    rows: an exponent of -(2 + r), muP's -1 for a readout of 1/n.
    """
    torch.manual_seed(0)
    profile = recorded(Linear(16, readout, hidden=True))
    law = ScalingLaw.fit(
        compiled(Linear(width, readout, hidden=True), profile) for width in (32, 64, 128)
    )
    assert exponents(law)["hidden.weight"] == pytest.approx(-(2 + readout), abs=1e-2)
    assert law.roles["hidden.weight"].line.axes == ((0, 1),)


INPUTS = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(3, (32,), generator=torch.Generator().manual_seed(1))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


@pytest.fixture(scope="module")
def profile() -> BaseProfile:
    return flerm_fx.record_seeds(Blocks, adam, INPUTS, TARGETS, seeds=4, settle=0, method="exact")


@pytest.fixture(scope="module")
def law(profile: BaseProfile) -> ScalingLaw:
    return flerm_fx.scaling_law(Blocks, {"width": [16, 32, 64]}, profile, seeds=4, method="exact")


def test_the_base_itself_has_multipliers_of_1(law: ScalingLaw) -> None:
    assert set(flerm_fx.compile(Blocks(), law).multipliers.values()) == {1.0}


def test_names_wrapping_and_order_change_nothing(law: ScalingLaw) -> None:
    plain = flerm_fx.compile(Blocks(width=128), law).multipliers

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            source = Blocks(width=128)
            self.last, self.stack, self.first = source.out, source.blocks, source.inner

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.stack:
                x = x + torch.relu(block(x))
            return self.last(x)

    named = {"first": "inner", "stack": "blocks", "last": "out"}
    other = flerm_fx.compile(nn.Sequential(Other()), law).multipliers
    parts = {name: name.split(".")[1:] for name in other}
    assert {".".join([named[p[0]], *p[1:]]): other[n] for n, p in parts.items()} == plain


def test_blocks_are_one_role(law: ScalingLaw) -> None:
    assert set(law.roles) == {
        f"{name}.{kind}" for name in ("inner", "blocks.0", "out") for kind in ("weight", "bias")
    }


def test_another_depth_conserves_mass_and_says_so(law: ScalingLaw) -> None:
    wide = flerm_fx.compile(Blocks(width=128), law).multipliers
    with pytest.warns(UserWarning, match=r"another depth .* mass is\s+conserved"):
        deep = flerm_fx.compile(Blocks(width=128, depth=6), law).multipliers
    assert deep["blocks.5.weight"] == pytest.approx(wide["blocks.0.weight"] / 3)
    assert deep["out.weight"] == wide["out.weight"]
    with pytest.warns(UserWarning, match=r"which blocks.0.weight has 2 of it"):
        shallow = flerm_fx.compile(Blocks(width=128, depth=1), law).multipliers
    assert shallow["blocks.0.weight"] == pytest.approx(2 * wide["blocks.0.weight"])


@pytest.fixture(scope="module")
def deep_law(profile: BaseProfile) -> ScalingLaw:
    return flerm_fx.scaling_law(Blocks, {"depth": [4, 8]}, profile, seeds=3, method="exact")


@pytest.mark.filterwarnings("ignore:the law does not hold")  # two sizes of eight features are few
def test_depth_is_fitted_where_models_are_deeper(deep_law: ScalingLaw) -> None:
    assert {of.line.axes for of in deep_law.roles.values()} == {((2,),), ((1,),)}  # behind the rank
    exponent = deep_law.roles["blocks.0.weight"].line.exponents[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*another depth")
        deep = flerm_fx.compile(Blocks(depth=32), deep_law)
    assert deep.multipliers["blocks.9.weight"] == pytest.approx(16**exponent / 16)
    last = deep_law.roles["out.weight"].line.exponents[0]
    assert deep.multipliers["out.weight"] == pytest.approx(16**last)  # all of the mass is its own


@pytest.mark.filterwarnings("ignore:the law does not hold")
def test_a_law_of_depth_knows_what_conserved_mass_does_not(
    profile: BaseProfile, deep_law: ScalingLaw
) -> None:
    """Against models that are twice as deep as the largest of the fit."""
    measured = []
    for seed in range(3):
        torch.manual_seed(100 + seed)
        measured.append(compiled(Blocks(depth=16), profile).multipliers)
    predicted = flerm_fx.compile(Blocks(depth=16), deep_law).multipliers

    def missed(found: Callable[[str], float]) -> float:
        logs = [math.log(found(name) / one[name]) for one in measured for name in predicted]
        return math.sqrt(sum(log**2 for log in logs) / len(logs))

    conserved = missed(lambda name: 1 / 8 if name.startswith("blocks") else 1.0)
    assert missed(predicted.__getitem__) < 0.6 * conserved


def test_width_and_depth_have_exponents_of_their_own(profile: BaseProfile) -> None:
    sizes = [{"width": 16}, {"width": 32}, {"depth": 4}, {"depth": 8}, {"width": 16, "depth": 4}]
    law = flerm_fx.scaling_law(Blocks, sizes, profile, seeds=1, method="exact")
    line = law.roles["blocks.0.weight"].line
    assert line.axes == ((0, 1), (2,))
    wide, deep, both = (
        law.predict("blocks.0.weight", (w, w), share=1 / d).multiplier
        for w, d in ((4, 1), (1, 4), (4, 4))
    )
    assert both == pytest.approx(wide * deep)
    assert "blocks.0.weight" in (text := to_table(law))
    assert "depth" in text


def test_width_and_depth_that_grew_as_one_are_one_axis(profile: BaseProfile) -> None:
    sizes = [{"width": 16, "depth": 4}, {"width": 32, "depth": 8}]
    law = flerm_fx.scaling_law(Blocks, sizes, profile, seeds=1, method="exact")
    assert law.roles["blocks.0.weight"].line.axes == ((0, 1, 2),)
    with pytest.raises(LawError, match="dimensions 0 and 1 and depth are 4 and 4 and 1 times"):
        law.predict("blocks.0.weight", (4.0, 4.0))


def test_a_target_below_the_base_is_marked(law: ScalingLaw) -> None:
    with pytest.warns(UserWarning, match="smaller than the base's"):
        small = flerm_fx.compile(Blocks(width=4), law)
    assert {row.status for row in small.assignments} == {"predicted"}


def test_an_axis_that_was_not_moved_is_refused_by_name(law: ScalingLaw) -> None:
    with pytest.raises(LawError, match=r"'inner.weight': its dimension 1 is 2 times") as refused:
        flerm_fx.compile(Blocks(16, features=8), law, inputs=torch.randn(32, 8))
    assert "fit one more in which it differs" in str(refused.value)


def test_dimensions_that_grew_as_one_are_refused_apart(law: ScalingLaw) -> None:
    with pytest.raises(
        LawError, match="dimensions 0 and 1 are 2 and 4 times the base's, .* grow as one"
    ):
        law.predict("blocks.0.weight", (2.0, 4.0))


def test_both_axes_where_both_were_moved(profile: BaseProfile) -> None:
    models = [
        *(compiled(Blocks(width), profile) for width in (16, 32)),
        flerm_fx.compile(
            Blocks(features=8),
            profile,
            inputs=torch.cat([INPUTS, INPUTS], dim=1),
            targets=TARGETS,
            emit="param_groups",
        ),
    ]
    law = ScalingLaw.fit(models)
    line = law.roles["inner.weight"].line
    assert line.axes == ((0,), (1,))
    both = law.predict("inner.weight", (2.0, 2.0)).multiplier
    apart = [law.predict("inner.weight", sizes).multiplier for sizes in ((2.0, 1.0), (1.0, 2.0))]
    assert both == pytest.approx(apart[0] * apart[1])


def test_a_model_on_meta_in_every_form(law: ScalingLaw) -> None:
    expected = flerm_fx.compile(Blocks(128), law).multipliers
    for emit in ("graph", "module", "param_groups"):
        with torch.device("meta"):
            model = Blocks(128)
        found = flerm_fx.compile(model, law, emit=emit)  # type: ignore[arg-type]
        assert found.multipliers == expected
        assert "8 parameters: 8 predicted" in found.dump()
        groups = found.base_groups(1e-3) if found.scales else found.param_groups(1e-3)
        assert sum(len(group["params"]) for group in groups) == 8


def test_a_model_on_meta_that_does_not_export_is_refused(law: ScalingLaw) -> None:
    class Branching(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum().item() > 0 else -x)

    with torch.device("meta"):
        model = Branching(16)
    with pytest.raises(flerm_fx.CaptureError, match="on the device 'meta' and does not export"):
        flerm_fx.compile(model, law)


def test_a_model_on_meta_is_still_refused_where_it_has_to_run(profile: BaseProfile) -> None:
    with torch.device("meta"):
        model = Blocks(16)
    with pytest.raises(flerm_fx.InputError, match="device 'meta'"):
        flerm_fx.compile(model, profile)


def test_a_prediction_trains_as_a_measurement_would(law: ScalingLaw) -> None:
    torch.manual_seed(0)
    model = Blocks(32)
    graph = flerm_fx.compile(model, law)
    assert torch.allclose(graph(INPUTS), model(INPUTS), atol=1e-5)
    rates = {
        name: group["lr"]
        for group in graph.param_groups(1e-3)
        for name, parameter in model.named_parameters()
        if any(parameter is held for held in group["params"])
    }
    assert rates == pytest.approx({n: 1e-3 * m for n, m in graph.multipliers.items()})


def test_a_predicted_model_has_intervals(law: ScalingLaw) -> None:
    model = flerm_fx.compile(Blocks(width=128), law)
    rows = json.loads(model.dump("json"))["parameters"]
    for row, shown in zip(model.assignments, rows, strict=True):
        assert row.interval is not None
        low, high = row.interval
        assert low <= row.multiplier <= high
        assert shown["interval"] == [low, high]
        assert row.base_fslr / row.target.value == pytest.approx(row.multiplier)
    assert model.assignments[0].interval != model.assignments[2].interval


def test_an_unresolved_role_keeps_a_multiplier_of_1(law: ScalingLaw) -> None:
    points = {name: of for name, of in law.points.items() if name != "inner.bias"}
    half = ScalingLaw(law.profile, points, frozenset({"inner.bias"}))
    rows = {row.parameter: row for row in flerm_fx.compile(Blocks(32), half).assignments}
    assert (rows["inner.bias"].status, rows["inner.bias"].multiplier) == ("unresolved", 1.0)
    assert half.predict("inner.bias", (4.0,)).high == math.inf


def test_check_of_a_predicted_model_is_refused(law: ScalingLaw) -> None:
    with pytest.raises(flerm_fx.InputError, match="predicted by a law"):
        flerm_fx.compile(Blocks(16), law).check()


def test_the_largest_size_is_held_out(law: ScalingLaw) -> None:
    assert law.held_out_error is not None
    assert 0 < law.held_out_error < 0.3
    held = law.roles["blocks.0.weight"].held_out
    assert held is not None
    assert held.low < held.measured < held.high


def test_sizes_that_do_not_differ(profile: BaseProfile) -> None:
    with pytest.raises(LawError, match="do not differ from the base in size"):
        flerm_fx.scaling_law(Blocks, {"width": [8]}, profile, seeds=2, method="exact")


def test_a_factory_that_does_not_take_the_sizes_or_makes_one_model(profile: BaseProfile) -> None:
    message = r"unexpected keyword argument 'size'; it is called as factory\(size=…\)"
    with pytest.raises(flerm_fx.InputError, match=message):
        flerm_fx.scaling_law(Blocks, {"size": [16, 32]}, profile)

    def seeded(width: int) -> nn.Module:
        torch.manual_seed(0)
        return Blocks(width)

    with pytest.raises(flerm_fx.InputError, match="sizes have {'width': 16} twice"):
        flerm_fx.scaling_law(Blocks, {"width": [16, 16]}, profile)
    with pytest.raises(flerm_fx.InputError, match="seeds have 3 twice"):
        flerm_fx.scaling_law(Blocks, {"width": [16]}, profile, seeds=[3, 3])
    with pytest.raises(flerm_fx.InputError, match="same trainable weights under seeds 0 and 1"):
        flerm_fx.scaling_law(seeded, {"width": [16]}, profile, seeds=2, method="exact")


def test_one_size_is_said_to_be_too_few(profile: BaseProfile) -> None:
    law = ScalingLaw.fit([compiled(Blocks(32), profile)])
    assert {finding.kind for finding in law.check()} >= {"too few sizes", "exponent"}
    assert law.held_out_error is None
    low_high = law.predict("blocks.0.weight", (8.0, 8.0))
    assert (low_high.low, low_high.high) == (0.0, math.inf)
    with pytest.warns(UserWarning, match="does not hold, or is not known to, for 5 of 6 roles"):
        flerm_fx.compile(Blocks(64), law)


def test_no_models_other_things_and_several_bases(profile: BaseProfile, law: ScalingLaw) -> None:
    with pytest.raises(LawError, match="no compiled models"):
        ScalingLaw.fit([])
    with pytest.raises(LawError, match="got a Blocks"):
        ScalingLaw.fit([Blocks()])  # type: ignore[list-item]
    for fit in (ScalingLaw.fit, lambda one: ScalingLaw.fit_trajectories(law.profile, one)):
        with pytest.raises(LawError, match="must be a list, one for each model, got a"):
            fit(compiled(Blocks(16), profile))
    with pytest.raises(LawError, match="a law predicted"):
        ScalingLaw.fit([flerm_fx.compile(Blocks(16), law)])
    torch.manual_seed(1)
    other = recorded(Blocks(), INPUTS, TARGETS)
    with pytest.raises(LawError, match="several profiles"):
        ScalingLaw.fit([compiled(Blocks(16), profile), compiled(Blocks(16), other)])


def test_a_role_that_the_law_has_not(law: ScalingLaw) -> None:
    points = {name: of for name, of in law.points.items() if name != "blocks.0.bias"}
    without = ScalingLaw(law.profile, points)
    with pytest.raises(
        LawError, match=r"no role blocks.0.bias, to which blocks.0.bias belongs"
    ) as e:
        flerm_fx.compile(Blocks(16), without)
    assert "compile models that have such a parameter" in str(e.value)


@pytest.mark.parametrize("wrong", [math.inf, math.nan, 0.0, -1.0])
def test_points_that_are_not_finite(profile: BaseProfile, wrong: float) -> None:
    good = compiled(Blocks(16), profile)
    rows = tuple(replace(row, multiplier=wrong) for row in good.assignments)
    good.__dict__["assignments"] = rows
    message = "multiplier of inner.weight in model 0 is not a finite number above 0"
    with pytest.raises(LawError, match=message):
        ScalingLaw.fit([good])


def test_a_multiplier_that_is_no_number_is_not_predicted(law: ScalingLaw) -> None:
    steep = synthetic(law, lambda x: -30 * x)
    with pytest.raises(LawError, match="its multiplier there is 0.0; the law does not reach so"):
        steep.predict("blocks.0.weight", (1e12, 1e12))


def synthetic(law: ScalingLaw, curve: Callable[[float], float], spread: float = 0.0) -> ScalingLaw:
    """A law of made-up points of one role, at sizes 2, 4, 8 and 16 under two seeds."""
    points = tuple(
        Point(
            model=2 * octave + seed,
            parameters=4**octave,
            log_sizes=(octave * math.log(2), octave * math.log(2), 0.0),
            log_multiplier=curve(octave * math.log(2)) + (seed - 0.5) * 0.02,
            error=0.02,
            spread=spread,
            noise=0.02,
            shares=1.0,
        )
        for octave in (1, 2, 3, 4)
        for seed in (0, 1)
    )
    return ScalingLaw(law.profile, {"blocks.0.weight": points})


def kinds(law: ScalingLaw) -> set[str]:
    return {finding.kind for finding in law.check()}


def test_a_law_that_holds_has_no_findings(law: ScalingLaw) -> None:
    assert kinds(synthetic(law, lambda x: -x)) == set()


def test_curvature_is_found(law: ScalingLaw) -> None:
    assert "curvature" in kinds(synthetic(law, lambda x: -x + 0.3 * x**2))


def test_a_base_that_the_larger_models_do_not_point_to_is_found(law: ScalingLaw) -> None:
    """As one that has not learned to use its blocks, which is taken for its error."""
    profile = replace(
        law.profile,
        start={
            name: replace(estimate, stderr=estimate.value)
            for name, estimate in law.profile.start.items()
        },
    )
    known = ScalingLaw(profile, synthetic(law, lambda x: -x - 2.0).points)
    found = {finding.kind: finding.text for finding in known.check()}
    assert set(found) == {"base"}
    assert "a line that is 0.14 at the base's size" in found["base"]
    assert kinds(ScalingLaw(profile, synthetic(law, lambda x: -x - 0.3).points)) == set()
    assert "base" in kinds(synthetic(law, lambda x: -x - 2.0))


def test_a_largest_size_that_breaks_the_law_is_found(law: ScalingLaw) -> None:
    assert "largest size" in kinds(synthetic(law, lambda x: -x + (1.5 if x > 2.5 else 0.0)))


def test_disagreeing_blocks_are_found(law: ScalingLaw) -> None:
    assert kinds(synthetic(law, lambda x: -x, spread=1.2)) == {"disagreeing blocks"}


def test_one_recording_of_the_base_is_said_to_be_one() -> None:
    torch.manual_seed(0)
    single = recorded(Blocks(), INPUTS, TARGETS)
    law = ScalingLaw.fit([compiled(Blocks(width), single) for width in (16, 32, 64)])
    assert "one base" in kinds(law)


class Stacks(nn.Module):
    """Two stacks of residual blocks, of which one may be deeper."""

    def __init__(self, first: int = 2, second: int = 2) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.first = nn.ModuleList(nn.Linear(8, 8) for _ in range(first))
        self.second = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(second))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for block in self.first:
            x = x + torch.relu(block(x))
        for block in self.second:
            x = x + torch.tanh(block(x))
        return self.out(x)


def test_blocks_that_are_no_deeper_have_no_depth_of_others() -> None:
    profile = flerm_fx.record_seeds(Stacks, adam, INPUTS, TARGETS, seeds=2, settle=0)
    law = ScalingLaw.fit([compiled(Stacks(first), profile) for first in (4, 8)])
    depths = {role: [point.log_sizes[-1] for point in of] for role, of in law.points.items()}
    assert depths["first.0.weight"] == pytest.approx([math.log(2), math.log(4)])
    assert depths["out.weight"] == pytest.approx([math.log(2), math.log(4)])
    assert depths["second.0.weight"] == [0.0, 0.0]
