"""The compiler: multipliers of 1 on the base, matched FSLRs elsewhere, one trajectory."""

import copy
import json
import math
import re
import statistics
import warnings
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.recipe.schedule import settling_steps, start_steps, warmed_up
from flerm_fx.start.start import measure_start
from models.resmlp import ResMLP
from models.transformer import Transformer
from tests.cases import CASES, DataDependent, features, make, slow, target_for, tokens
from tests.rounding import assert_close, rounding, terms


def profile_of(
    model: nn.Module, x: Any, y: Any, lr: float = 1e-3, rule: Any = torch.optim.Adam, **options: Any
) -> flerm_fx.BaseProfile:
    optimizer = rule(model.parameters(), lr=lr)
    return flerm_fx.record(model, optimizer, x, y, **options).profile


@pytest.mark.parametrize("name", [name for name in CASES if name != "linear"])
def test_the_base_compiled_against_itself_has_multipliers_of_1(name: str) -> None:
    model, x = make(name)
    y = target_for(model, x)
    compiled = flerm_fx.compile(model, profile_of(model, x, y))
    for parameter, multiplier in compiled.multipliers.items():
        assert multiplier == pytest.approx(1.0, abs=1e-3), parameter


@pytest.mark.parametrize("settle", [slow(1), 3, slow(8)])
def test_so_it_has_for_any_settle(settle: int) -> None:
    torch.manual_seed(0)
    model = Transformer(vocab=17, width=16, depth=1, heads=2, context=8, dropout=0.1)
    x = [tokens(), tokens(4), tokens(5)]
    y = [target_for(model, batch) for batch in x]
    profile = profile_of(model, x, y, settle=settle, rtol=0.05)
    # What the base leaves of a multiplier's error is its rtol: as many draws, and the same ones.
    of_base = statistics.median(e.relative_error for e in profile.start.values() if e.value)
    compiled = flerm_fx.compile(model, profile, rtol=math.hypot(0.05, of_base))
    assert set(compiled.multipliers.values()) == {1.0}


@pytest.mark.parametrize("seed", [2**64 - 1, -(2**63)])
def test_a_profile_may_have_any_seed_that_torch_takes(seed: int) -> None:
    model, x = make("mlp")
    y = target_for(model, x)
    base, target = copy.deepcopy(model), copy.deepcopy(model)

    def steps(trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(x), y).backward()
            optimizer.step()

    adam = torch.optim.Adam(base.parameters(), lr=1e-3)
    with flerm_fx.record(base, adam, [x] * 3, [y] * 3, settle=2, every=1) as recorder:
        steps(base, adam)
    profile = replace(recorder.profile, seed=seed)
    compiled = flerm_fx.compile(model, profile)
    assert list(compiled.multipliers.values()) == pytest.approx([1.0] * 4, abs=1e-3)
    adam = torch.optim.Adam(target.parameters(), lr=1e-3)
    with flerm_fx.match(target, adam, profile, every=1) as matcher:
        steps(target, adam)
    assert list(matcher.multipliers.values()) == pytest.approx([1.0] * 4, abs=1e-3)


@pytest.mark.parametrize(
    "settle,rule,emit",
    [
        (1, torch.optim.SGD, "graph"),
        (6, torch.optim.Adam, "module"),
        (6, torch.optim.Adam, "param_groups"),
        slow(1, torch.optim.Adam, "module"),
        slow(6, torch.optim.SGD, "graph"),
        slow(6, torch.optim.SGD, "param_groups"),
    ],
)
def test_a_start_after_settling_is_met(settle: int, rule: Any, emit: Any) -> None:
    small, large, x, y = wide_pair()
    profile = profile_of(small, x, y, settle=settle, rule=rule, lr=1e-2)
    compiled = flerm_fx.compile(large, profile, emit=emit)
    assert all(check.passed for check in compiled.check())


def test_a_settled_target_is_measured_where_its_first_guess_leads() -> None:
    small, large, x, y = wide_pair()
    x, y = x[:4], y[:4]  # which take no turns
    profile = profile_of(small, x, y, settle=5, lr=1e-2, method="exact")
    # The base's outputs as large as none of the target's: it has no further to go.
    huge = {step: replace(moment, output_rms=1e3) for step, moment in profile.moments.items()}
    profile = replace(profile, moments=huge)
    compiled = flerm_fx.compile(large, profile, method="exact")
    guess = compiled.settling[0]
    adam = torch.optim.Adam(large.parameters(), lr=1e-2)
    own = flerm_fx.record(large, adam, x, y, settle=5, method="exact").profile.update_sizes
    assert guess == pytest.approx({n: profile.update_sizes[n] / own[n] for n in own}, rel=1e-5)
    # The same steps by hand: the guess, a rate that rises over the warm-up, real updates.
    twin, wanted = copy.deepcopy(large), start_steps(5, profile.warmup)
    assert (profile.warmup, wanted) == (2, (3, 4, 5))
    groups = [{"params": [p], "lr": 1e-2 * guess[n]} for n, p in twin.named_parameters()]
    optimizer = torch.optim.Adam(groups)
    rising = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 3, 1.0))
    with flerm_fx.record(twin, optimizer, x, y, at=wanted, method="exact") as recorder:
        for _ in range(6):
            train_on(twin, optimizer, x, y, 1)
            rising.step()
    course = recorder.profile.trajectory
    for row in compiled.assignments:
        mean = sum(course.at(step)[row.parameter].value for step in wanted) / len(wanted)
        assert row.target.value == pytest.approx(mean, rel=1e-3)
    # Both blocks of a role have one multiplier, at which their mass is the base's.
    by_role = defaultdict(list)
    for row in compiled.assignments:
        if row.status == "matched":
            by_role[re.sub(r"\d+", "#", row.parameter)].append(row)
    assert {len(rows) for rows in by_role.values()} == {1, 2}
    for rows in by_role.values():
        assert len({row.multiplier for row in rows}) == 1
        mass = sum(row.multiplier * row.target.value for row in rows)
        of_base = sum(share * profile.start[b].value for row in rows for b, share in row.base)
        assert mass == pytest.approx(of_base, rel=1e-6)


@pytest.mark.filterwarnings("ignore:the model's outputs begin far larger")
@pytest.mark.filterwarnings("ignore:multipliers (of|are) :UserWarning")  # this large, they are odd
def test_a_target_with_larger_outputs_takes_larger_steps_on_its_way() -> None:
    def mlp(gain: float) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
        with torch.no_grad():
            model[2].weight.mul_(gain)
        return model

    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    profile = profile_of(mlp(1.0), x, y, settle=20, lr=1e-2, method="exact")
    large = mlp(10.0)
    compiled = flerm_fx.compile(large, profile, method="exact")
    size, last = float(large(x).detach().square().mean().sqrt()), profile.output_rms[-1]
    assert size > 1.5 * last
    base, own = (
        each.update_sizes
        for each in (profile, profile_of(large, x, y, settle=20, lr=1e-2, method="exact"))
    )
    way = size / max(last, profile.output_rms[0])
    for name, multiplier in compiled.settling[0].items():
        assert multiplier == pytest.approx(way * base[name] / own[name], rel=1e-3)
    assert all(check.passed for check in compiled.check())
    # How much further it has to go scales a base's FSLR and its error alike.
    uncertain = {name: replace(e, stderr=e.value / 10) for name, e in profile.start.items()}
    rows = flerm_fx.compile(large, replace(profile, start=uncertain), method="exact").assignments
    assert [row.error for row in rows] == pytest.approx([0.1] * len(rows))


def test_a_target_goes_on_until_its_outputs_have_settled() -> None:
    def linear(gain: float) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        with torch.no_grad():
            model.weight.mul_(gain)
        return model

    torch.manual_seed(1)
    x, settle = torch.randn(64, 6), 20
    y = x @ torch.randn(6, 3)
    profile = profile_of(linear(1.0), x, y, settle=settle, lr=0.05, method="exact")
    large = linear(12.0)
    compiled = flerm_fx.compile(large, profile, method="exact")
    last, sized = start_steps(settle, profile.warmup), settling_steps(settle, profile.warmup)
    rounds = 2
    again = [settle + step for step in last]
    assert list(compiled.settling) == [*sized, *again[:-1]]  # the last ends the start
    # A start that is the walk's own: the same steps, by hand.
    twin, sizes = copy.deepcopy(large), {}
    adam = torch.optim.Adam([{"params": [p], "lr": 0.05} for p in twin.parameters()])
    groups = dict(zip(dict(twin.named_parameters()), adam.param_groups, strict=True))
    multipliers: dict[str, float] = {}
    for step in range(rounds * settle + 1):
        for name, multiplier in compiled.settling.get(step, {}).items():
            multipliers[name] = multiplier
        for name, group in groups.items():
            group["lr"] = 0.05 * multipliers[name] * warmed_up(step, profile.warmup)
        adam.zero_grad()
        outputs = twin(x)
        sizes[step] = float(outputs.detach().square().mean().sqrt())
        nn.functional.mse_loss(outputs, y).backward()
        adam.step()
    left = [
        sum(profile.way_from({0: sizes[0], s: sizes[settle * r + s]}, s) for s in last) / len(last)
        for r in range(rounds)
    ]
    assert left[0] > 2 > left[1] > 1
    measured = [(step, step) for step in sized]
    measured += [(settle + step, step) for step in last]
    ways = [profile.way_from({0: sizes[0], s: sizes[step]}, s) for step, s in measured]
    way = math.prod(ways) ** (1 / len(ways))
    for row in compiled.assignments:
        wanted = way * profile.start[row.parameter].value
        assert row.base_fslr == pytest.approx(wanted, rel=1e-4)
    assert all(check.passed for check in compiled.check())


def test_outputs_that_stay_large_are_warned_of_and_met_in_proportion() -> None:
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    torch.manual_seed(0)
    small = nn.Linear(6, 3)
    profile = profile_of(small, x, y, settle=4, lr=1e-4)
    large = copy.deepcopy(small)
    with torch.no_grad():
        large.weight.mul_(50.0)
    with pytest.warns(UserWarning, match=r"after 20 steps are still \d+\.\d times"):
        compiled = flerm_fx.compile(large, profile, method="exact")
    size = float(large(x).detach().square().mean().sqrt())
    steps = settling_steps(4, profile.warmup)
    sizes = dict(zip(steps, profile.output_rms, strict=True))
    ways = {s: min(size / sizes[s], size / max(sizes[0], sizes[4])) for s in sizes}
    measured = [*ways.values(), *(4 * [ways[s] for s in start_steps(4, profile.warmup)])]
    way = math.prod(measured) ** (1 / len(measured))
    for row in compiled.assignments:
        # A step hardly moves outputs of this size.
        assert row.base_fslr == pytest.approx(way * profile.start[row.parameter].value, rel=1e-2)
    assert all(check.passed for check in compiled.check())


def train_on(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        optimizer.step()


def wide_pair(norm: Any = "pre") -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    small = Transformer(vocab=17, width=16, depth=2, heads=2, context=8, norm=norm)
    large = Transformer(vocab=17, width=48, depth=2, heads=2, context=8, norm=norm)
    return small, large, tokens(), tokens(6, 8).roll(1, 1)


@pytest.mark.parametrize("norm", ["pre", slow("post"), "post-pre-residual"])
def test_a_wider_model_meets_the_bases_fslrs(norm: str) -> None:
    small, large, x, y = wide_pair(norm)
    compiled = flerm_fx.compile(large, profile_of(small, x, y))
    for row in compiled.assignments:
        if row.status == "matched":
            assert row.base == ((row.parameter, 1.0),)
    checks = compiled.check()
    assert all(check.passed for check in checks)
    # The check is no tautology: it fails when the multipliers are wrong.
    wrong = flerm_fx.CompiledModel(
        large,
        compiled.fold(),
        {name: 2 * s for name, s in compiled.scales.items()},
        compiled.matches,
        compiled.assignments,
        compiled.procedure,
        x,
    )
    assert not any(
        c.passed
        for c, a in zip(wrong.check(), wrong.assignments, strict=True)
        if a.status == "matched"
    )


@pytest.mark.parametrize("emit", ["graph", "param_groups"])
@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.SGD])
def test_check_passes_for_both_emitters_and_degrees(rule: Any, emit: Any) -> None:
    torch.manual_seed(0)
    small, large = ResMLP(12, 5, 8, 2), ResMLP(12, 5, 32, 2)
    x, y = features(9, 12), torch.arange(9) % 5
    profile = flerm_fx.record(
        small, rule(small.parameters(), lr=0.01), x, y, method="exact"
    ).profile
    compiled = flerm_fx.compile(large, profile, emit=emit, method="exact")
    checks = compiled.check()
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]


def test_depth_conserves_the_mass_of_every_base_parameter() -> None:
    x, y = features(9, 12), torch.arange(9) % 5
    for n, m in ((2, 4), (2, 3), (4, 2), (1, 3), (3, 1)):
        torch.manual_seed(0)
        profile = profile_of(ResMLP(12, 5, 8, n), x, y, method="exact")
        compiled = flerm_fx.compile(ResMLP(12, 5, 8, m), profile, method="exact")
        given: dict[str, float] = {}
        for row in compiled.assignments:
            for base, share in row.base:
                given[base] = given.get(base, 0.0) + share
        assert given == pytest.approx(dict.fromkeys(profile.parameters, 1.0), abs=1e-9)
        assert all(check.passed for check in compiled.check())


def test_names_and_wrapping_do_not_matter() -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.anything = inner

        def forward(self, tokens: Tensor) -> Tensor:
            return self.anything(tokens)  # type: ignore[no-any-return]

    small, large, x, y = wide_pair()
    profile = profile_of(small, x, y)
    plain = flerm_fx.compile(large, profile)
    wrapped = flerm_fx.compile(Wrapped(large), profile)
    assert wrapped.multipliers == {f"anything.{n}": m for n, m in plain.multipliers.items()}


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Adam": (torch.optim.Adam, {"lr": 1e-3}),
    "Adam with coupled decay": (torch.optim.Adam, {"lr": 1e-3, "weight_decay": 0.1}),
    "AdamW": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    "SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "SGD with decay": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 1e-3}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 1e-2}),
    "Adamax": (torch.optim.Adamax, {"lr": 1e-3}),
    "Muon": (torch.optim.Muon, {"lr": 1e-3, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_graph_and_parameter_groups_train_alike(name: str) -> None:
    kind, settings = OPTIMIZERS[name]
    bias = name != "Muon"  # Muon takes matrices only

    def mlp(width: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, width, bias=bias), nn.Tanh(), nn.Linear(width, 3, bias=bias)
        ).double()

    small, large = mlp(8), mlp(32)
    x, y = features(12, 6).double(), torch.arange(12) % 3
    optimizer = kind(small.parameters(), **settings)
    profile = flerm_fx.record(small, optimizer, x, y, method="exact").profile
    compiled = flerm_fx.compile(large, profile, method="exact")
    assert max(abs(m - 1) for m in compiled.multipliers.values()) > 0.05
    by_graph = kind(compiled.parameters(), **settings)
    by_groups = kind(compiled.param_groups(settings["lr"]), **settings)
    for _ in range(20):
        for module, stepper in ((compiled, by_graph), (large, by_groups)):
            stepper.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            stepper.step()
    moved = dict(mlp(32).named_parameters())
    for parameter, effective in compiled.fold().named_parameters():
        other = large.get_parameter(parameter)
        assert not torch.allclose(other, moved[parameter], rtol=1e-3)
        # Muon iterates in bfloat16: a scale that is no power of two rounds its 8 bits otherwise
        tolerance = 5e-3 if name == "Muon" else 1e-4
        assert (effective - other).norm() <= tolerance * other.norm(), parameter


def test_weight_decay_of_param_groups_is_the_bases() -> None:
    small, large, x, y = wide_pair()
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3, weight_decay=0.1)
    profile = flerm_fx.record(small, optimizer, x, y).profile
    compiled = flerm_fx.compile(large, profile)
    for groups, decay in (
        (compiled.param_groups(2e-3), 0.1),
        (compiled.param_groups(2e-3, 0.3), 0.3),
    ):
        assert sum(len(group["params"]) for group in groups) == len(compiled.multipliers)
        for group in groups:
            assert group["lr"] * group["weight_decay"] == pytest.approx(2e-3 * decay)


def test_fold_gives_a_plain_model_and_the_original_keys() -> None:
    small, large, x, y = wide_pair()
    compiled = flerm_fx.compile(large, profile_of(small, x, y))
    optimizer = torch.optim.Adam(compiled.parameters(), lr=1e-3)
    nn.functional.cross_entropy(compiled(x).flatten(0, 1), y.flatten()).backward()
    optimizer.step()
    folded = compiled.fold()
    assert type(folded) is Transformer
    assert folded.state_dict().keys() == large.state_dict().keys()
    assert_close(folded(x), compiled(x), terms(large))
    large.load_state_dict(folded.state_dict())
    assert_close(large(x), compiled(x), terms(large))


def test_the_target_is_left_as_it_was() -> None:
    small, large, x, y = wide_pair()
    profile = profile_of(small, x, y, settle=2)
    before, random = copy.deepcopy(large.state_dict()), torch.get_rng_state()
    flerm_fx.compile(large, profile)
    assert all(torch.equal(v, before[k]) for k, v in large.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in large.parameters())


def test_donating_takes_the_parameters_and_leaves_the_model_unusable() -> None:
    small, large, x, y = wide_pair()
    expected, held = large(x).detach(), {n: id(p) for n, p in large.named_parameters()}
    compiled = flerm_fx.compile(large, profile_of(small, x, y), donate=True)
    assert {n: id(p) for n, p in compiled.named_parameters()} == held
    assert_close(compiled(x), expected, terms(compiled))
    with pytest.raises(flerm_fx.FlermError, match="gave its parameters"):
        large(x)
    with pytest.raises(flerm_fx.InputError, match="gone"):
        compiled.param_groups(1e-3)


def test_dropout_and_batchnorm_train_and_evaluate() -> None:
    def net(width: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(width, 3),
        )

    x, y = features(12, 6), torch.arange(12) % 3
    compiled = flerm_fx.compile(net(32), profile_of(net(8), x, y))
    optimizer = torch.optim.Adam(compiled.parameters(), lr=1e-2)
    first = None
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(compiled(x), y)
        loss.backward()
        optimizer.step()
        first = first or loss.item()
    compiled.eval()
    assert nn.functional.cross_entropy(compiled(x), y).item() < first
    assert_close(compiled(x), compiled.fold()(x), terms(compiled))
    assert torch.equal(compiled(x[:1]), compiled(x[:1]))
    compiled.train()
    assert not torch.equal(compiled(x), compiled(x))


def test_parameters_without_an_fslr_keep_a_multiplier_of_1() -> None:
    class LoRA(nn.Module):
        def __init__(self, rank: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.base = nn.Linear(6, 5).requires_grad_(False)
            self.a = nn.Parameter(torch.randn(rank, 6))
            self.b = nn.Parameter(torch.zeros(5, rank))
            self.unused = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + x @ self.a.T @ self.b.T  # type: ignore[no-any-return]

    x, y = features(8, 6), torch.arange(8) % 5
    compiled = flerm_fx.compile(LoRA(8), profile_of(LoRA(2), x, y, resolve_after=0))
    rows = {row.parameter: row for row in compiled.assignments}
    assert rows["a"].status == "unresolved" and rows["a"].multiplier == 1.0
    assert rows["b"].status == "matched" and rows["b"].multiplier != 1.0
    assert rows["unused"].status == "unused" and rows["unused"].multiplier == 1.0


def test_an_attention_keys_bias_is_unresolved() -> None:
    class Attention(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.query, self.key, self.value = (nn.Linear(6, width) for _ in range(3))
            self.out = nn.Linear(width, 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.query(x), self.key(x), self.value(x)
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v))  # type: ignore[no-any-return]

    x, y = features(5, 7, 6), torch.arange(35).reshape(5, 7) % 4
    compiled = flerm_fx.compile(
        Attention(16), profile_of(Attention(8), x, y, method="exact"), method="exact"
    )
    unresolved = [row.parameter for row in compiled.assignments if row.status != "matched"]
    assert unresolved == ["key.bias"]


def test_a_model_without_a_graph_compiles_trains_and_folds() -> None:
    class Wide(DataDependent):
        def __init__(self, width: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, width), nn.Linear(width, 3)

    x, y = features(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", flerm_fx.CaptureWarning)
        compiled = flerm_fx.compile(Wide(20), profile_of(Wide(5), x, y))
        assert compiled.graph_module is None
        assert all(check.passed for check in compiled.check())
    assert_close(compiled(x), Wide(20)(x), terms(compiled))
    nn.functional.cross_entropy(compiled(x), y).backward()
    assert "first.weight" in compiled.dump()
    with pytest.raises(flerm_fx.InputError, match="graph"):
        compiled.dump("code")


def test_node_meta_carries_what_was_found() -> None:
    small, large, x, y = wide_pair()
    compiled = flerm_fx.compile(large, profile_of(small, x, y))
    assert compiled.graph_module is not None
    for node in compiled.graph_module.graph.nodes:
        if node.target is flerm_fx.ops.scale.scale:
            name = node.meta["parameter"]
            assert node.args[1] == compiled.scales[name]
            assert node.meta["multiplier"] == compiled.multipliers[name]
            assert node.meta["base"] == compiled.matches[name].base
            assert isinstance(node.meta["fslr"], flerm_fx.Estimate)
            assert node.meta["shape"] == tuple(large.get_parameter(name).shape)


def test_every_dump_format_names_every_parameter(tmp_path: Any) -> None:
    small, large, x, y = wide_pair()
    compiled = flerm_fx.compile(large, profile_of(small, x, y))
    for format in ("table", "json", "dot", "code"):
        text = compiled.dump(format)  # type: ignore[arg-type]
        path = compiled.dump(format, tmp_path / format)  # type: ignore[arg-type]
        assert path == str(tmp_path / format)
        assert (tmp_path / format).read_text().rstrip() == text.rstrip()
        if format == "json":
            assert len(json.loads(text)["parameters"]) == len(compiled.multipliers)
        for name in compiled.multipliers:
            assert name in text, (format, name)


@pytest.fixture
def pair() -> tuple[nn.Module, flerm_fx.BaseProfile]:
    small, large, x, y = wide_pair()
    return large, profile_of(small, x, y)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"emit": "magic"}, "unknown emit 'magic'"),
        ({"targets": torch.zeros(2)}, "targets were given without inputs"),
        ({"emit": "param_groups", "donate": True}, "donate=True goes with emit='graph'"),
        ({"inputs": torch.zeros(1, 8).long(), "targets": torch.zeros(1, 8).long()}, "a batch of 1"),
    ],
)
def test_bad_options_are_named(
    pair: tuple[nn.Module, flerm_fx.BaseProfile], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(flerm_fx.InputError, match=message):
        flerm_fx.compile(*pair, **options)


def test_a_model_of_another_kind_names_its_parameters() -> None:
    x, y = features(7, 5), torch.arange(7) % 3
    small = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    other = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(flerm_fx.MatchError, match=r"1\.weight(.|\n)*mapping"):
        flerm_fx.compile(other, profile_of(small, x, y))


def test_losses_and_optimizers_that_a_file_cannot_name_are_asked_for(tmp_path: Any) -> None:
    class Lion(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float = 1e-3) -> None:
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad.sign(), alpha=group["lr"])

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, targets) * 2

    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), features(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = Lion(model.parameters())
    flerm_fx.record(model, optimizer, x, y, loss_fn=loss).profile.save(tmp_path / "p.safetensors")
    profile = flerm_fx.BaseProfile.load(tmp_path / "p.safetensors")
    with pytest.raises(flerm_fx.OptimizerError, match="to flerm_fx.compile again, as loss_fn="):
        flerm_fx.compile(model, profile, optimizer=Lion)
    with pytest.raises(flerm_fx.OptimizerError, match=r"Lion.*pass optimizer="):
        flerm_fx.compile(model, profile, loss_fn=loss)
    compiled = flerm_fx.compile(model, profile, loss_fn=loss, optimizer=Lion)
    assert set(compiled.multipliers.values()) == {1.0}


def with_bias(width: int, *, bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, width, bias=bias), nn.ReLU(), nn.Linear(width, 3, bias=bias)
    ).to(torch.float64)


X6, Y6 = features(8, 6).double(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def test_parameters_of_one_side_only_are_named_or_left_at_one() -> None:
    profile = profile_of(with_bias(4, bias=False), X6, Y6)
    target = with_bias(16, bias=True)
    with pytest.raises(flerm_fx.MatchError, match="'0.bias'") as error:
        flerm_fx.compile(target, profile)
    assert 'on_unmatched="unit"' in str(error.value)
    expected = (
        r"2 parameters of the model have no counterpart in the base and keep a multiplier of 1 "
        r"\(0\.bias, 2\.bias\), and 0 of the base have none in the model \(none\)"
    )
    with pytest.warns(UserWarning, match=expected):
        compiled = flerm_fx.compile(target, profile, on_unmatched="unit")
    rows = {row.parameter: row for row in compiled.assignments}
    assert [rows[n].status for n in ("0.bias", "2.bias")] == ["unmatched", "unmatched"]
    assert compiled.multipliers["0.bias"] == 1.0
    assert rows["0.weight"].base == (("0.weight", 1.0),)
    assert all(check.passed for check in compiled.check())
    with pytest.warns(UserWarning, match="0 parameters of the model .* and 2 of the base have"):
        flerm_fx.compile(
            with_bias(16, bias=False),
            profile_of(with_bias(4, bias=True), X6, Y6),
            on_unmatched="unit",
        )


@pytest.mark.parametrize("eps", [1e-8, 1e-3, 1.0])
@pytest.mark.parametrize("emit", ["graph", "param_groups"])
def test_fslrs_meet_the_bases_whatever_adams_eps(eps: float, emit: Any) -> None:
    # Gradients here are of size 1e-3 to 1e-1: below eps, Adam's step is in proportion to them.
    def record(model: nn.Module) -> flerm_fx.BaseProfile:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=eps)
        return flerm_fx.record(model, optimizer, X6, Y6, method="exact").profile

    small, large = with_bias(4, bias=True), with_bias(64, bias=True)
    profile = record(small)
    compiled = flerm_fx.compile(large, profile, emit=emit, method="exact")
    assert all(check.passed for check in compiled.check())
    for check in compiled.check():
        assert check.measured.value == pytest.approx(check.expected, rel=3e-3)
    itself = flerm_fx.compile(small, profile, method="exact")
    near = rounding(2 * terms(small))  # forward and tangent
    assert all(m == pytest.approx(1.0, abs=near) for m in itself.multipliers.values())


def test_multipliers_that_eps_keeps_moving_are_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = with_bias(4, bias=True), with_bias(64, bias=True)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3, eps=1e-2)
    profile = flerm_fx.record(small, optimizer, X6, Y6, method="exact").profile
    monkeypatch.setattr("flerm_fx.assign.multipliers.MEASUREMENTS", 1)
    with pytest.warns(UserWarning, match=r"the start did not settle: after 1 measure.*'0.weight'"):
        flerm_fx.compile(large, profile, method="exact")


@pytest.mark.parametrize("eps,full", [(1e-3, {0}), (1e-1, {1, 2})])
def test_what_eps_does_is_measured_in_full_only_where_it_is_much(
    eps: float, full: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = with_bias(4, bias=True), with_bias(64, bias=True)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3, eps=eps)
    profile = flerm_fx.record(small, optimizer, X6, Y6, method="exact").profile
    exact = flerm_fx.compile(large, profile, method="exact").multipliers
    measured = []

    def listening(captured: Any, procedure: Any, *args: Any, **kwargs: Any) -> Any:
        measured.append(procedure.method)
        return measure_start(captured, procedure, *args, **kwargs)

    monkeypatch.setattr("flerm_fx.assign.multipliers.measure_start", listening)
    compiled = flerm_fx.compile(large, profile)
    assert measured[0] == "sampled"  # beside the start itself
    assert measured.count("auto") in full
    assert measured.count("sampled") >= 2
    for name, m in compiled.multipliers.items():
        assert m == pytest.approx(exact[name], rel=4 * 0.05)
    assert all(check.passed for check in compiled.check())


class AddsToAll(nn.Module):
    """Adds one number to all logits, which cross entropy does not see."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(6, width)
        self.head = nn.Linear(width, 3)
        self.unseen = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x).tanh()
        return self.head(hidden) + self.unseen(hidden)  # type: ignore[no-any-return]


def test_a_gradient_of_rounding_alone_leaves_its_parameter_unresolved() -> None:
    x = X6.float()
    optimizer = torch.optim.Adam((small := AddsToAll(5)).parameters(), lr=1e-3, eps=1e-15)
    profile = flerm_fx.record(small, optimizer, x, Y6, method="exact").profile
    assert profile.start["unseen.weight"].value > 0
    compiled = flerm_fx.compile(AddsToAll(20), profile, method="exact")
    rows = {row.parameter: row for row in compiled.assignments}
    for name in ("unseen.weight", "unseen.bias"):
        assert rows[name].status == "unresolved"
        assert rows[name].multiplier == 1.0
        assert rows[name].target.note == "its gradient is rounding"
    assert rows["inner.weight"].status == rows["head.bias"].status == "matched"
    assert all(check.passed for check in compiled.check())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_deep_models_are_not_taken_for_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(24) for layer in (nn.Linear(16, 16), nn.Tanh())]
    model = nn.Sequential(nn.Linear(6, 16), *layers, nn.Linear(16, 3)).to(dtype)
    profile = profile_of(model, X6.to(dtype), Y6, method="exact")
    assert not any(estimate.note for estimate in profile.start.values())


class Embeds(nn.Module):
    """A mean over a sequence of any length, whose graph is of one length alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.place = nn.Embedding(31, width), nn.Embedding(9, width)
        self.head = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.place(torch.arange(tokens.shape[1]))
        z = (self.embedding(tokens) + places).tanh().sum(1) / tokens.shape[1] ** 0.5
        return self.head(z)  # type: ignore[no-any-return]


@pytest.mark.parametrize("emit", ["graph", "module", "param_groups"])
def test_check_settles_on_batches_of_other_lengths(emit: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    pool = [torch.randint(31, (4, length), generator=generator) for length in (6, 2, 3, 9)]
    targets = [torch.randint(3, (4,), generator=generator) for _ in pool]
    small = Embeds(8)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    profile = flerm_fx.record(small, optimizer, pool, targets, method="exact", settle=4).profile
    for check in flerm_fx.compile(Embeds(16), profile, method="exact", emit=emit).check():
        assert check.measured.value == pytest.approx(check.expected, rel=1e-3)
        assert check.passed


class UsedTwice(nn.Module):
    """A block that is registered under two names, and two layers with one weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.inner = nn.Linear(4, width)
        self.blocks = nn.ModuleList([block, block])
        self.head, self.other = nn.Linear(width, width), nn.Linear(width, width)
        self.other.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for block in self.blocks:
            x = x + block(x)
        return self.other(self.head(x).relu())[:, :3]  # type: ignore[no-any-return]


@pytest.mark.parametrize("emit", ["graph", "module", "param_groups"])
@pytest.mark.parametrize("method", ["exact", "auto"])
def test_what_is_registered_twice_is_compiled_and_checked(emit: Any, method: Any) -> None:
    x, y = features(8, 4), torch.arange(8) % 3
    small = UsedTwice(6)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
    profile = flerm_fx.record(small, optimizer, x, y, method=method).profile
    large = UsedTwice(12)
    expected = large(x).detach()
    compiled = flerm_fx.compile(large, profile, emit=emit, method=method)
    assert all(check.passed for check in compiled.check())
    torch.testing.assert_close(compiled(x), expected)
    assert all(isinstance(p, nn.Parameter) for m in large.modules() for p in m._parameters.values())
