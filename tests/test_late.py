"""Parameters that have no FSLR at the start, because a weight behind them starts at zero."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.assign import multipliers
from flerm_fx.training import recording
from models.lora import LoRALinear, add_lora
from models.transformer import Transformer
from tests.cases import features, make, slow, target_for, tokens


def profile_of(
    model: nn.Module, x: Any, y: Any, lr: float = 1e-3, rule: Any = torch.optim.Adam, **options: Any
) -> flerm_fx.BaseProfile:
    optimizer = rule([p for p in model.parameters() if p.requires_grad], lr=lr)
    options.setdefault("settle", 0)
    return flerm_fx.record(model, optimizer, x, y, method="exact", **options).profile


def lora(rank: int, width: int = 8, dropout: float = 0.0) -> nn.Module:
    """A frozen MLP of two layers with updates of low rank."""
    torch.manual_seed(0)
    layers = (nn.Linear(6, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 3))
    torch.manual_seed(rank)
    return add_lora(nn.Sequential(*layers), rank, names=("0", "3"))


X, Y = features(12, 6), torch.arange(12) % 3
POOL = [X, features(9, 6), features(7, 6)], [Y, Y[:9], Y[:7]]


class ReZero(nn.Module):
    """Residual blocks behind gates that start at 0 (Bachlechner et al., arXiv 2003.04887)."""

    def __init__(self, width: int, depth: int = 2, adapted: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.input = nn.Linear(6, width)
        layers = [nn.Linear(width, width) for _ in range(depth)]
        self.blocks = nn.ModuleList(LoRALinear(x, 2) if adapted else x for x in layers)
        self.gates = nn.ParameterList(torch.zeros(()) for _ in range(depth))
        self.output = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for gate, block in zip(self.gates, self.blocks, strict=True):
            x = x + gate * block(x).tanh()
        return self.output(x)  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """One linear map with an update of low rank, and an A that is given."""

    def __init__(self, a: Tensor, outputs: int, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(outputs, a.shape[1]).to(a), requires_grad=False)
        self.a = nn.Parameter(a.clone())
        self.b = nn.Parameter(torch.zeros(outputs, a.shape[0]).to(a))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.scale * (x @ self.a.T @ self.b.T)


def rows_of(compiled: flerm_fx.CompiledModel) -> dict[str, flerm_fx.Assignment]:
    return {row.parameter: row for row in compiled.assignments}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The simulated steps of every start that is measured from here on."""
    settles: list[int] = []
    for module in (recording, multipliers):
        for name in ("measure_settling", "measure_start"):
            measure = getattr(module, name)

            def spy(*args: Any, measure: Any = measure, **options: Any) -> Any:
                settles.append(args[1].settle)
                return measure(*args, **options)

            monkeypatch.setattr(module, name, spy)
    return settles


# When the late start is measured.


@pytest.mark.parametrize("name", ["mlp", "convnet", "pre-norm", "oddity"])
def test_nothing_changes_where_no_fslr_is_zero(name: str, steps: list[int]) -> None:
    model, x = make(name)
    y = target_for(model, x)
    found, without = (profile_of(model, x, y, resolve_after=k) for k in (4, 0))
    assert steps == [0, 0]
    assert found.start == without.start
    assert found.late == {}
    flerm_fx.compile(model, found)
    assert steps == [0, 0, 0]


def test_a_late_start_leaves_the_start_as_it_is(steps: list[int]) -> None:
    x, y = X, Y
    found, without = (profile_of(lora(2), x, y, settle=1, resolve_after=k) for k in (4, 0))
    assert found.start == without.start
    assert without.late == {}
    # Settled for one step, A has an FSLR.
    assert found.late == {}
    assert steps == [1, 1]
    found, without = (profile_of(lora(2), x, y, resolve_after=k) for k in (4, 0))
    assert found.start == without.start
    assert steps[2:] == [0, 4, 0]


def test_the_late_start_is_the_mean_over_so_many_more_steps() -> None:
    x, y = ([each[:4] for each in of_pool] for of_pool in POOL)  # all at each step of a start
    late = profile_of(lora(2, dropout=0.1), x, y, resolve_after=3)
    settled = profile_of(lora(2, dropout=0.1), x, y, settle=3, warmup=0).settling
    assert late.resolve_after == 3
    assert settled.steps == (1, 2, 3)
    for name, estimate in late.late.items():
        after = [late.start[name], *(settled.at(step)[name] for step in settled.steps)]
        mean = sum(each.value for each in after) / 4
        assert estimate.value == pytest.approx(mean, rel=1e-5)
        assert estimate.value > 0


class Attention(nn.Module):
    """Has a bias for keys, which softmax does not see."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(6, width) for _ in range(3))
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))  # type: ignore[no-any-return]


def test_rounding_is_not_zero(steps: list[int]) -> None:
    x, y = features(5, 7, 6), torch.arange(35).reshape(5, 7) % 4
    profile = profile_of(Attention(8), x, y)
    assert 0 < profile.start["key.bias"].value < 1e-5
    compiled = flerm_fx.compile(Attention(16), profile, method="exact")
    assert rows_of(compiled)["key.bias"].status == "unresolved"
    assert steps == [0, 0]


def test_a_parameter_that_nothing_reads_takes_no_steps(steps: list[int]) -> None:
    model = nn.Linear(6, 3)
    model.register_parameter("spare", nn.Parameter(torch.zeros(2)))
    profile = profile_of(model, features(5, 6), torch.arange(5) % 3)
    assert profile.start["spare"].value == 0
    assert steps == [0]


def test_a_profile_without_a_late_start_leaves_zeros_unresolved(steps: list[int]) -> None:
    x, y = X, Y
    compiled = flerm_fx.compile(lora(4), profile_of(lora(2), x, y, resolve_after=0))
    assert steps == [0, 0]
    for row in compiled.assignments:
        a = row.parameter.endswith("lora_a")
        assert row.status == ("unresolved" if a else "matched")
        assert row.after == 0
        assert (row.multiplier == 1.0) == a


def test_what_is_still_zero_later_stays_unresolved() -> None:
    class Dead(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.dead, self.out = nn.Linear(6, width), nn.Linear(width, 3)
            nn.init.constant_(self.dead.bias, -100.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x[:, :1] + self.dead(x).relu())  # type: ignore[no-any-return]

    x, y = features(8, 6), torch.arange(8) % 3
    profile = profile_of(Dead(4), x, y)
    assert profile.late["dead.weight"].value == 0
    compiled = flerm_fx.compile(Dead(8), profile, method="exact")
    for name, row in rows_of(compiled).items():
        dead = name.startswith("dead")
        assert (row.status, row.after) == (("unresolved", 4) if dead else ("matched", 0))
        assert row.multiplier == 1.0 or not dead
    assert all(check.passed for check in compiled.check())


# What comes of it.


@pytest.mark.parametrize("settle", [0, 3])
@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.SGD])
def test_the_base_compiled_against_itself_has_multipliers_of_1(
    rule: Any, settle: int, steps: list[int]
) -> None:
    x, y = POOL
    model = lora(2, dropout=0.1)
    profile = profile_of(
        model, x, y, 1e-2 if rule is torch.optim.Adam else 1.0, rule, settle=settle
    )
    compiled = flerm_fx.compile(model, profile, method="exact")
    assert set(compiled.multipliers.values()) == {1.0}
    assert {row.status for row in compiled.assignments} == {"matched"}
    if settle == 0:
        assert steps == [0, 4, 0, 4]  # the first measurement confirms itself


@pytest.mark.parametrize("emit", ["graph", "param_groups"])
@pytest.mark.parametrize("lr", [slow(1e-4), 1e-3, slow(1e-2)])
@pytest.mark.parametrize("rank,width", [(16, 16), slow(1, 16), (16, 48)])
def test_lora_of_another_rank_and_width_meets_the_bases_fslrs(
    rank: int, width: int, lr: float, emit: Any
) -> None:
    x, y = X, Y
    large = lora(rank, width)
    compiled = flerm_fx.compile(large, profile_of(lora(4), x, y, lr), method="exact", emit=emit)
    for row in compiled.assignments:
        assert row.status == "matched"
        assert row.after == (4 if row.parameter.endswith("lora_a") else 0)
    checks = compiled.check()
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]


def test_a_transformer_adapted_by_lora() -> None:
    def adapted(rank: int, width: int) -> nn.Module:
        torch.manual_seed(rank)
        model = Transformer(vocab=17, width=width, depth=1, heads=2, context=8)
        return add_lora(model, rank)

    x, y = tokens(), tokens().roll(1, 1)
    profile = profile_of(adapted(2, 16), x, y)
    compiled = flerm_fx.compile(adapted(8, 48), profile, method="exact")
    assert {row.status for row in compiled.assignments} == {"matched"}
    assert all(check.passed for check in compiled.check())


def test_the_check_measures_late_parameters_late() -> None:
    x, y = X, Y
    large = lora(16)
    compiled = flerm_fx.compile(
        large, profile_of(lora(4), x, y), method="exact", emit="param_groups"
    )
    wrong = [
        replace(row, multiplier=row.multiplier * (1.05 if row.after else 1.0))
        for row in compiled.assignments
    ]
    compiled.__dict__["assignments"] = tuple(wrong)
    failed = {check.parameter for check in compiled.check() if not check.passed}
    assert failed == {row.parameter for row in wrong if row.after}


@pytest.mark.parametrize("rule,lr", [(torch.optim.Adam, 1e-2), (torch.optim.SGD, 0.1)])
def test_branches_behind_closed_gates_are_resolved(rule: Any, lr: float) -> None:
    # In float32 SGD moves the gates so little that the branches are lost in rounding.
    small, large, x = ReZero(8).double(), ReZero(32, depth=4).double(), X.double()
    compiled = flerm_fx.compile(large, profile_of(small, x, Y, lr, rule), method="exact")
    for name, row in rows_of(compiled).items():
        assert row.status == "matched"
        assert row.after == (4 if name.startswith("blocks") else 0)
    assert all(check.passed for check in compiled.check())


def test_a_parameter_behind_two_zeros_is_resolved(steps: list[int]) -> None:
    # The gate moves first, then B, then A.
    x, y = X, Y
    small, large = (ReZero(width, adapted=True) for width in (8, 32))
    for model in (small, large):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name or "gates" in name)
    profile = profile_of(small, x, y, 1e-2)
    assert {n for n, e in profile.start.items() if e.value} == {"gates.0", "gates.1"}
    compiled = flerm_fx.compile(large, profile, method="exact")
    assert {row.status for row in compiled.assignments} == {"matched"}
    # B's multiplier scales A's late FSLR, so that it takes more measurements.
    assert steps[:3] == [0, 4, 0]
    assert 3 <= len(steps[3:]) < multipliers.MEASUREMENTS
    assert all(check.passed for check in compiled.check())


def test_a_late_start_that_does_not_settle_says_so() -> None:
    # In 64 large steps each multiplier changes the walk of all.
    profile = profile_of(ReZero(8), X, Y, 0.1, torch.optim.SGD, resolve_after=64)
    message = "8 measurements the multipliers of .*'blocks.0.weight'.*smaller resolve_after"
    with pytest.warns(UserWarning, match=message):
        compiled = flerm_fx.compile(ReZero(32, depth=4), profile, method="exact")
    assert not all(check.passed for check in compiled.check())


@pytest.mark.parametrize("zero", ["base", "target"])
def test_a_zero_on_one_side_is_compared_late_on_both(zero: str, steps: list[int]) -> None:
    x, y = X, Y
    models = {"base": ReZero(8), "target": ReZero(32)}
    for side, model in models.items():
        if side != zero:
            for gate in model.gates:  # type: ignore[union-attr]
                nn.init.constant_(gate, 0.3)
    profile = profile_of(models["base"], x, y, 1e-2)
    compiled = flerm_fx.compile(models["target"], profile, method="exact")
    rows = rows_of(compiled)
    if zero == "base":
        assert {name for name, row in rows.items() if row.after} == {
            name for name in rows if name.startswith("blocks")
        }
        assert {row.status for row in rows.values()} == {"matched"}
        assert all(check.passed for check in compiled.check())
    else:  # the base had no reason for a late start
        assert profile.late == {}
        assert steps == [0, 0]
        assert rows["blocks.0.weight"].status == "unresolved"


def test_graph_and_parameter_groups_train_alike_and_leave_frozen_weights() -> None:
    x, y = X.double(), Y
    large = lora(16).double()
    frozen = {n: p.clone() for n, p in large.named_parameters() if not p.requires_grad}
    compiled = flerm_fx.compile(large, profile_of(lora(4).double(), x, y), method="exact")
    assert all(row.multiplier != 1.0 for row in compiled.assignments)
    trained = [p for p in compiled.parameters() if p.requires_grad]
    by_graph = torch.optim.Adam(trained, lr=1e-3)
    by_groups = torch.optim.Adam(compiled.param_groups(1e-3), lr=1e-3)
    for _ in range(5):
        for module, stepper in ((compiled, by_graph), (large, by_groups)):
            stepper.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            stepper.step()
    for name, effective in compiled.fold().named_parameters():
        other = large.get_parameter(name)
        if name in frozen:
            assert torch.equal(effective, frozen[name]) and torch.equal(other, frozen[name])
        else:
            torch.testing.assert_close(effective, other, rtol=1e-6, atol=1e-9)


def test_node_meta_and_dumps_say_when() -> None:
    x, y = X, Y
    compiled = flerm_fx.compile(lora(16), profile_of(lora(4), x, y), method="exact")
    rows = rows_of(compiled)
    assert compiled.graph_module is not None
    scaled = [n for n in compiled.graph_module.graph.nodes if n.target is flerm_fx.ops.scale.scale]
    assert len(scaled) == len(rows)
    for node in scaled:
        assert node.meta["after"] == rows[node.meta["parameter"]].after
    assert compiled.dump("table").count("matched after 4") == len(rows) // 2
    for format in ("dot", "code"):
        assert compiled.dump(format).count("matched after 4") >= len(rows) // 2  # type: ignore[arg-type]


def test_a_late_start_that_diverges_says_what_to_change() -> None:
    x, y = X, Y
    for steps in (4, 9):
        message = f"at step . of {steps} .* or a smaller settle or resolve_after"
        with pytest.raises(flerm_fx.DivergenceError, match=message):
            profile_of(lora(2), x, y, 1e15, torch.optim.SGD, resolve_after=steps)
    profile_of(lora(2), x, y, 1e15, torch.optim.SGD, resolve_after=0)


# Closed forms, for f(x) = (W + s B A) x with B = 0. The gradient of B is s Σ_n e_n (A x_n)ᵀ, where
# e_n is the gradient of the loss with respect to f_n. With A of r ≥ d rows scaled to AᵀA = r σ² I,
# what independent entries of variance σ² tend to, an SGD step changes the function by
#
#     Δ_B f_n = −s² Σ_m e_m (x_mᵀ AᵀA x_n) = −s² r σ² Σ_m e_m (x_mᵀ x_n).
#
# So with s = α/r the FSLR of B falls as 1/r, and B's multiplier is r₂/r₁; with s = α/√r (rsLoRA)
# it is 1. A step by the sign of the gradient, for one example, changes it by s sign(e) ‖A x‖₁.


def columns(rank: int, features: int, std: float = 0.3) -> Tensor:
    """A of given rank with AᵀA = rank · std² · I."""
    generator = torch.Generator().manual_seed(rank)
    a = torch.randn(rank, features, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(a)[0] * std * math.sqrt(rank)


def linear_loss(output: Tensor, targets: Tensor) -> Tensor:
    """Has a gradient that does not depend on the output."""
    return (output * targets).sum()


def standard(rank: int) -> float:
    return 2.0 / rank


def stabilised(rank: int) -> float:
    return 2.0 / math.sqrt(rank)


def closed_form(
    rule: Any,
    scale: Callable[[int], float],
    ranks: tuple[int, int],
    x: Tensor,
    e: Tensor,
    **options: Any,
) -> tuple[flerm_fx.BaseProfile, dict[str, float]]:
    small, large = (Adapter(columns(r, x.shape[1]), e.shape[1], scale(r)) for r in ranks)
    profile = profile_of(small, x, e, 0.05, rule, loss_fn=linear_loss, **options)
    compiled = flerm_fx.compile(large, profile, method="exact", loss_fn=linear_loss)
    return profile, compiled.multipliers


@pytest.mark.parametrize("ranks", [(6, 24), (24, 6), (8, 9)])
@pytest.mark.parametrize("scale", [standard, stabilised])
def test_multiplier_of_b_under_sgd(scale: Any, ranks: tuple[int, int]) -> None:
    x, e = features(5, 6).double(), features(5, 4).double()
    profile, multipliers = closed_form(torch.optim.SGD, scale, ranks, x, e)
    r = ranks[0]
    change = scale(r) ** 2 * r * 0.3**2 * (x @ x.T) @ e
    expected = change.square().mean().sqrt().item()
    assert profile.start["b"].value == pytest.approx(expected, rel=1e-9)
    ratio = ranks[1] / ranks[0] if scale is standard else 1.0
    assert multipliers["b"] == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("scale", [standard, stabilised])
def test_multiplier_of_b_under_sign_updates(scale: Any) -> None:
    # Adam's first step is the sign of the gradient, up to its eps.
    x, e = features(1, 6).double().repeat(2, 1), features(1, 4).double().repeat(2, 1)
    ranks = (6, 24)
    profile, multipliers = closed_form(torch.optim.Adam, scale, ranks, x, e)
    small, large = (scale(r) * (columns(r, 6) @ x[0]).abs().sum().item() for r in ranks)
    assert profile.start["b"].value == pytest.approx(small, rel=1e-5)
    assert multipliers["b"] == pytest.approx(small / large, rel=1e-5)


def test_under_sign_updates_rank_hardly_matters_at_scale_alpha_over_r() -> None:
    # E ‖A x‖₁ = r σ ‖x‖ sqrt(2/π) for normal A, so s ‖A x‖₁ is α σ ‖x‖ sqrt(2/π) at any rank. Its
    # relative spread is sqrt((π/2 − 1) / r): 4 % at the smaller rank.
    x, e = features(1, 6).double().repeat(2, 1), features(1, 4).double().repeat(2, 1)
    _, multipliers = closed_form(torch.optim.Adam, standard, (400, 3200), x, e)
    assert multipliers["b"] == pytest.approx(1.0, abs=4 * math.sqrt(0.571 / 400))
    _, multipliers = closed_form(torch.optim.Adam, stabilised, (400, 3200), x, e)
    assert multipliers["b"] == pytest.approx(8**-0.5, rel=4 * math.sqrt(0.571 / 400))


@pytest.mark.parametrize("ranks", [(6, 24), (24, 6)])
@pytest.mark.parametrize("scale", [standard, stabilised])
def test_late_multiplier_of_a_under_sgd(scale: Any, ranks: tuple[int, int]) -> None:
    # After one step B = −lr m_B s G Aᵀ with G = Σ_n e_n x_nᵀ, A is where it was, and
    #     Δ_A f_n = −s² B Bᵀ G x_n = −(lr m_B)² s⁴ r σ² G Gᵀ G x_n.
    # So A's multiplier is s₁⁴ r₁ / (m_B² s₂⁴ r₂), which is r₂/r₁ for either scale. The step
    # before it enters the average of the two with an FSLR of 0.
    x, e = features(5, 6).double(), features(5, 4).double()
    profile, multipliers = closed_form(torch.optim.SGD, scale, ranks, x, e, resolve_after=1)
    r, g = ranks[0], e.T @ x
    change = 0.05**2 * scale(r) ** 4 * r * 0.3**2 * x @ (g @ g.T @ g).T
    expected = change.square().mean().sqrt().item() / 2
    assert profile.start["a"].value == 0
    assert profile.late["a"].value == pytest.approx(expected, rel=1e-7)
    assert multipliers["a"] == pytest.approx(ranks[1] / ranks[0], rel=1e-6)
