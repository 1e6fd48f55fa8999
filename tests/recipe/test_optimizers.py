"""The optimizers that people train with: groups, rates, keys, wrappers, rules from elsewhere."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import flerm_fx
from flerm_fx.recipe.likeness import check_state_is_free
from flerm_fx.recipe.update_rule import UpdateRule

Groups = list[dict[str, Any]]


def net(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 3))


def data(batches: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(16, 8, generator=generator) for _ in range(batches)]
    return inputs, [torch.randint(3, (16,), generator=generator) for _ in range(batches)]


def record(
    model: nn.Module, optimizer: Optimizer | list[Optimizer], batches: int = 1, **options: Any
) -> flerm_fx.Recorder:
    return flerm_fx.record(model, optimizer, *data(batches), method="exact", **options)


def train(model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], steps: int = 3) -> None:
    [x], [y] = data()
    several = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    for _ in range(steps):
        for each in several:
            each.zero_grad()
        cross_entropy(model(x), y).backward()
        for each in several:
            each.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_course(one: nn.Module, other: nn.Module, start: nn.Module) -> None:
    """Both moved alike from a start, within float32's rounding of the weights over some steps."""
    for name, initial in weights(start).items():
        moved, wanted = weights(one)[name] - initial, weights(other)[name] - initial
        rounding = 64 * torch.finfo(torch.float32).eps * max(1.0, float(initial.abs().max()))
        assert (moved - wanted).abs().max() <= 1e-4 * wanted.abs().max() + rounding, name


def matrices_decay(model: nn.Module) -> Groups:
    """The most usual groups there are."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.5},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def rates_by_layer(model: nn.Module) -> Groups:
    """As layer-wise decay of rates and LoRA+ have them."""
    first, norm, _, last = model.children()
    return [
        {"params": [*first.parameters(), *norm.parameters()], "lr": 1e-3},
        {"params": last.parameters(), "lr": 16e-3},
    ]


def momenta_by_kind(model: nn.Module) -> Groups:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "betas": (0.5, 0.9)},
        {"params": [p for p in parameters if p.ndim < 2], "betas": (0.8, 0.99), "eps": 1e-3},
    ]


GROUPS = [matrices_decay, rates_by_layer, momenta_by_kind]


def adamw(groups: Any) -> Optimizer:
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)


@pytest.mark.parametrize("grouped", GROUPS)
@pytest.mark.parametrize("emit", ["param_groups", "graph", "module"])
def test_a_base_compiled_against_itself_steps_as_the_base(
    grouped: Callable[[nn.Module], Groups], emit: Any
) -> None:
    base, twin = net(8), net(8)
    optimizer = adamw(grouped(base))
    profile = record(base, optimizer).profile
    compiled = flerm_fx.compile(twin, profile, emit=emit, method="exact")
    assert all(m == pytest.approx(1.0, rel=1e-5) for m in compiled.multipliers.values())
    groups = compiled.param_groups if emit == "param_groups" else compiled.base_groups
    trained = twin if emit == "param_groups" else compiled
    train(base, optimizer)
    train(trained, adamw(groups(lr=1e-3)))
    assert_same_course(compiled.fold() if emit != "param_groups" else twin, base, net(8))


@pytest.mark.parametrize("grouped", GROUPS)
def test_a_base_matched_to_itself_steps_as_the_base(
    grouped: Callable[[nn.Module], Groups],
) -> None:
    base, twin = net(8), net(8)
    optimizer = adamw(grouped(base))
    with record(base, optimizer, every=1) as recorder:
        train(base, optimizer)
    optimizer = adamw(grouped(twin))
    with flerm_fx.match(twin, optimizer, recorder.profile, every=1, method="exact") as matcher:
        train(twin, optimizer)
    assert all(m == pytest.approx(1.0, rel=1e-4) for m in matcher.multipliers.values())
    assert_same_course(twin, base, net(8))


@pytest.mark.parametrize("emit", ["param_groups", "graph"])
def test_groups_have_the_base_s_rates_or_are_in_proportion(emit: Any) -> None:
    base, twin = net(8), net(8)
    profile = record(base, adamw(rates_by_layer(base))).profile
    compiled = flerm_fx.compile(twin, profile, emit=emit, method="exact")
    groups = compiled.param_groups if emit == "param_groups" else compiled.base_groups

    def rates(lr: float | None) -> list[float]:
        return sorted({group["lr"] for group in groups(lr)})

    for given, times in ((None, 1.0), (1e-3, 1.0), (4e-3, 4.0)):
        found = rates(given)
        assert [found[0], found[-1]] == pytest.approx([1e-3 * times, 16e-3 * times], rel=1e-4)
    wanted = "lr is 0.016, which another .* groups had: its first had 0.001, .* 16 times"
    with pytest.warns(UserWarning, match=wanted) as caught:
        assert rates(16e-3)[-1] == pytest.approx(0.256, rel=1e-4)
    assert caught[0].filename == __file__
    with pytest.raises(flerm_fx.InputError, match="there is no optimizer 3"):
        groups(16e-3, optimizer=3)


def test_a_wider_model_has_the_groups_of_its_counterparts(tmp_path: Path) -> None:
    base, wide = net(8), net(32)
    recorded = record(base, adamw(matrices_decay(base))).profile
    recorded.save(tmp_path / "base.safetensors")
    profile = flerm_fx.BaseProfile.load(tmp_path / "base.safetensors")
    assert profile.optimizers == recorded.optimizers
    compiled = flerm_fx.compile(wide, profile, emit="param_groups")
    names = {id(p): name for name, p in wide.named_parameters()}
    for weight_decay, wanted in ((None, 0.5), (0.25, 0.25)):
        optimizer = torch.optim.AdamW(compiled.param_groups(1e-3, weight_decay), lr=1e-3)
        for group in optimizer.param_groups:
            for p in group["params"]:
                decay = group["lr"] * group["weight_decay"]
                assert decay == pytest.approx(1e-3 * wanted if p.ndim > 1 else 0.0)
                m = compiled.multipliers[names[id(p)]]
                assert group["lr"] == pytest.approx(1e-3 * m)


def test_rates_of_groups_are_those_of_the_settling_steps() -> None:
    """A closed form: sign descent at two rates, whose second simulated step starts where it led."""
    base = net(8)
    groups = rates_by_layer(base)
    profile = record(base, SignDescent(groups), batches=2, settle=1).profile
    inputs, targets = data(2)
    model = net(8)
    cross_entropy(model(inputs[1]), targets[1]).backward()
    stepped = net(8)
    with torch.no_grad():
        for name, p in stepped.named_parameters():
            rate = 16e-3 if name.startswith("3.") else 1e-3
            p.sub_(rate * dict(model.named_parameters())[name].grad.sign())
    cross_entropy(stepped(inputs[1]), targets[1]).backward()
    for name, p in stepped.named_parameters():
        start = {n: q.detach() for n, q in stepped.named_parameters()}
        _, change = torch.func.jvp(
            lambda q, name=name, start=start: torch.func.functional_call(
                stepped, {**start, name: q}, (inputs[0],)
            ),
            (p.detach(),),
            (-p.grad.sign(),),
        )
        second = profile.settling.at(1)[name].value
        assert second == pytest.approx(float(change.square().mean().sqrt()), rel=1e-4)


def test_layers_that_share_counterparts_of_different_rates_meet_their_mean_change() -> None:
    """One block of the target answers to halves of two, of rates 1 and 3 times the first one's."""

    class Deep(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Linear(8, 8)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = x + torch.tanh(block(x))
            return self.head(x)

    base, shallow = Deep(4), Deep(2)
    rates = (1e-3, 3e-3, 1e-3, 3e-3)
    groups: Groups = [
        {"params": b.parameters(), "lr": lr} for b, lr in zip(base.blocks, rates, strict=True)
    ]
    ends = [*base.stem.parameters(), *base.head.parameters()]
    optimizer = adamw([{"params": ends}, *groups])
    profile = record(base, optimizer).profile
    compiled = flerm_fx.compile(shallow, profile, method="exact", emit="param_groups")
    rows = {row.parameter: row for row in compiled.assignments}
    for index in range(2):
        row = rows[f"blocks.{index}.weight"]
        shares = dict(row.base)
        changes = [
            float(share) * profile.start[name].value * rates[int(name.split(".")[1])]
            for name, share in shares.items()
        ]
        assert len(changes) == 2
        names = {id(p): name for name, p in shallow.named_parameters()}
        [lr] = [
            group["lr"]
            for group in compiled.param_groups(1e-3)
            for p in group["params"]
            if names[id(p)] == row.parameter
        ]
        assert lr * row.target.value == pytest.approx(sum(changes), rel=1e-6)


def test_a_run_that_trains_by_param_groups_can_be_recorded() -> None:
    small, wide, wider = net(8), net(32), net(64)
    profile = record(small, adamw(matrices_decay(small))).profile
    compiled = flerm_fx.compile(wide, profile, emit="param_groups", method="exact")
    recorded = record(wide, torch.optim.AdamW(compiled.param_groups(1e-3), lr=1e-3)).profile
    again = flerm_fx.compile(wider, recorded, emit="param_groups", method="exact")
    straight = flerm_fx.compile(wider, profile, emit="param_groups", method="exact")

    def rates(of: flerm_fx.CompiledModel) -> dict[str, tuple[float, float]]:
        names = {id(p): name for name, p in wider.named_parameters()}
        first = recorded.learning_rate if of is again else 1e-3
        return {
            names[id(p)]: (group["lr"], group["lr"] * group["weight_decay"])
            for group in of.param_groups(first)
            for p in group["params"]
        }

    for name, (lr, decay) in rates(again).items():
        assert (lr, decay) == pytest.approx(rates(straight)[name], rel=1e-3)


@pytest.mark.parametrize("first", ["empty", "at rate 0"])
def test_an_empty_first_group_or_one_at_rate_0_decides_nothing(first: str) -> None:
    base, twin = net(8), net(8)
    bias, *others = reversed(list(base.parameters()))
    held, lr = ([], 9.0) if first == "empty" else ([bias], 0.0)
    rest = [bias, *others] if first == "empty" else others
    optimizer = torch.optim.AdamW(
        [{"params": held, "lr": lr}, {"params": rest, "lr": 1e-3}], weight_decay=0.0
    )
    profile = record(base, optimizer).profile
    assert profile.learning_rate == 1e-3
    compiled = flerm_fx.compile(twin, profile, emit="param_groups", method="exact")
    train(base, optimizer)
    train(twin, adamw(compiled.param_groups(1e-3)))
    assert_same_course(twin, base, net(8))


def test_values_that_only_some_groups_state_choose_the_rule() -> None:
    base = net(16)
    parameters = list(base.parameters())
    optimizer = LowRank(
        [
            {"params": [p for p in parameters if p.ndim == 2], "rank": 1},
            {"params": [p for p in parameters if p.ndim < 2]},
        ]
    )
    with record(base, optimizer, every=1) as recorder:
        train(base, optimizer, 1)
    profile = recorder.profile
    for name, start in profile.start.items():  # one batch: both are the same step
        real = profile.trajectory.fslrs[name][0].value
        assert start.value == pytest.approx(real, rel=1e-3)


@pytest.mark.parametrize("emit", ["param_groups", "graph"])
def test_one_class_that_is_two_rules_by_group(emit: Any) -> None:
    def groups(model: nn.Module) -> Groups:
        parameters = list(model.parameters())
        return [
            {"params": [p for p in parameters if p.ndim > 1], "lr": 0.02, "use_sign": True},
            {"params": [p for p in parameters if p.ndim < 2], "lr": 0.5, "use_sign": False},
        ]

    base, twin = net(8), net(8)
    optimizer = Split(groups(base))
    profile = record(base, optimizer).profile
    assert len(profile.optimizers.rules) == 2
    with pytest.raises(flerm_fx.OptimizerError, match="Split.*pass optimizer="):
        flerm_fx.compile(twin, reloaded(profile))
    compiled = flerm_fx.compile(twin, reloaded(profile), emit=emit, optimizer=Split)
    train(base, optimizer)
    if emit == "param_groups":
        train(twin, Split(compiled.param_groups(0.02)))
        assert_same_course(twin, base, net(8))
    else:
        train(compiled, Split(compiled.base_groups(0.02)))
        assert_same_course(compiled.fold(), base, net(8))


def reloaded(profile: flerm_fx.BaseProfile) -> flerm_fx.BaseProfile:
    """As from a file, which holds no code."""
    rules = tuple(UpdateRule.from_spec(rule.spec()) for rule in profile.optimizers.rules)
    return replace(profile, optimizers=replace(profile.optimizers, rules=rules))


# What a step leaves alone.


def test_a_parameter_without_gradient_is_recorded_as_not_moved() -> None:
    model, [x], [y] = net(8), *data()
    optimizer = adamw(model.parameters())
    with record(model, optimizer, every=1) as recorder:
        cross_entropy(model(x), y).backward()
        model[3].zero_grad()
        model[3].weight.grad = model[3].bias.grad = None
        optimizer.step()
    fslrs = recorder.profile.trajectory.at(0)
    assert fslrs["3.weight"].value == fslrs["3.bias"].value == 0.0
    assert fslrs["0.weight"].value > 0


def test_a_parameter_without_gradient_keeps_its_multiplier_under_match() -> None:
    base = net(8)
    optimizer = adamw(base.parameters())
    with record(base, optimizer, every=1) as recorder:
        train(base, optimizer, 1)
    model, [x], [y] = net(32), *data()
    optimizer = adamw(model.parameters())
    with flerm_fx.match(model, optimizer, recorder.profile, method="exact") as matcher:
        cross_entropy(model(x), y).backward()
        model[3].weight.grad = model[3].bias.grad = None
        optimizer.step()
    assert matcher.multipliers["3.weight"] == matcher.multipliers["3.bias"] == 1.0
    assert matcher.multipliers["0.weight"] != 1.0


def test_a_first_step_that_only_fills_the_state_is_no_decay() -> None:
    model = net(8)
    optimizer = Warming(model.parameters(), weight_decay=0.5)
    with record(model, optimizer, every=1) as recorder:
        train(model, optimizer, 2)
    trajectory = recorder.profile.trajectory
    assert all(e.value == 0 for e in trajectory.at(0).values())
    # Sign descent from here on, whose unit update is the sign: decay is not part of it.
    bias = trajectory.at(1)["3.bias"].value
    assert bias == pytest.approx(1.0, rel=1e-5)


# Rates.


@pytest.mark.parametrize("attached", ["before", "after"])
def test_the_start_is_settled_at_the_peak_of_a_one_cycle_schedule(attached: str) -> None:
    model = net(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def schedule() -> None:
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=100)

    if attached == "before":
        recorder = record(model, optimizer)
        schedule()
    else:
        schedule()
        recorder = record(model, optimizer)
    assert recorder.profile.learning_rate == 1e-2


def test_a_given_rate_is_the_first_groups_and_others_keep_their_proportion() -> None:
    model = net(8)
    optimizer = adamw(rates_by_layer(model))
    for group in optimizer.param_groups:
        group["lr"] /= 1000  # the first step of a warm-up by hand
    with record(model, optimizer, lr=2e-3) as recorder:
        run = recorder.profile.optimizers
        assert run.rate("0.weight") == 2e-3
        assert run.rate("3.weight") == pytest.approx(32e-3)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with record(model, optimizer, lr=2e-3) as recorder:
        assert set(recorder.profile.optimizers.learning_rates) == {2e-3}
    with pytest.raises(flerm_fx.OptimizerError, match="AdamW's learning rate is 0; .* as lr=…"):
        record(model, optimizer)
    for bad in (0.0, -1.0, float("nan"), float("inf"), "1e-3"):
        with pytest.raises(flerm_fx.InputError, match="lr must be a finite number above 0"):
            record(model, optimizer, lr=bad)


def test_a_rate_far_above_that_of_the_start_is_said_once() -> None:
    model = net(8)
    optimizer = adamw(model.parameters())
    optimizer.param_groups[0]["lr"] = 1e-5
    with record(model, optimizer, every=1):
        train(model, optimizer, 1)
        optimizer.param_groups[0]["lr"] = 1e-3
        message = "rate is 0.001 at step 1, and the start was settled at 1e-05.*lr="
        with pytest.warns(UserWarning, match=message) as seen:
            train(model, optimizer, 3)
    assert len(seen) == 1


def test_warming_up_to_the_settled_rate_says_nothing() -> None:
    model = net(8)
    optimizer = adamw(model.parameters())
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
    with record(model, optimizer, every=1) as recorder, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recorder.profile.learning_rate == 1e-3
        for _ in range(4):
            train(model, optimizer, 1)
            schedule.step()


# Wrappers and rules from elsewhere.


class SignDescent(Optimizer):
    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])


class LowRank(Optimizer):
    """GaLore's shape: a key that only some groups have, and that is no default."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                d = p.grad
                if "rank" in group:
                    u = torch.linalg.svd(d, full_matrices=False).U[:, : group["rank"]]
                    d = u @ (u.T @ d)
                p.sub_(d / (d.pow(2).mean().sqrt() + 1e-12), alpha=group["lr"])


class Split(Optimizer):
    """Muon with its auxiliary Adam: groups say the rule, and nothing else may be in them."""

    def __init__(self, param_groups: Groups) -> None:
        for group in param_groups:
            assert group.keys() == {"params", "lr", "use_sign"}
        super().__init__(param_groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign() if group["use_sign"] else p.grad, alpha=group["lr"])


class Warming(Optimizer):
    """SOAP's shape: the first step fills the state, and neither moves nor decays."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if "seen" not in self.state[p]:
                    self.state[p]["seen"] = torch.tensor(1.0)
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(p.grad.sign(), alpha=group["lr"])


class OfKeywords(Optimizer):
    """Names none of its settings: they are defaults made of ``**kwargs``."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, {"lr": 1e-3, "momentum": 0.0, **settings})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.mul_(group["momentum"]).add_(p.grad)
                p.sub_(mean, alpha=group["lr"])


def test_settings_that_a_constructor_takes_as_keywords_are_kept() -> None:
    def profile(kind: type[Optimizer]) -> flerm_fx.BaseProfile:
        model = net(8)
        optimizer: Any = kind(model.parameters(), lr=1e-2, momentum=0.5)  # type: ignore[call-arg]
        return flerm_fx.record(model, optimizer, *data(5), method="exact").profile

    found, right = reloaded(profile(OfKeywords)), profile(torch.optim.SGD)
    assert found.optimizer.settings == {"momentum": 0.5}
    for name, estimate in right.start.items():
        assert found.start[name].value == pytest.approx(estimate.value, rel=1e-4)
    compiled = flerm_fx.compile(
        net(16), found, optimizer=OfKeywords, emit="param_groups", method="exact"
    )
    same = flerm_fx.compile(net(16), right, emit="param_groups", method="exact")
    assert compiled.multipliers == pytest.approx(same.multipliers, rel=1e-3)


class Lookahead(Optimizer):
    """A wrapper that changes the step; pytorch_optimizer's and others keep the inner one so."""

    def __init__(self, optimizer: Optimizer, k: int = 2) -> None:
        self.optimizer, self.k, self.count = optimizer, k, 0
        super().__init__(optimizer.param_groups, {})
        self.param_groups = optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step()


class Hookless(Optimizer):
    def __init__(self, inner: Optimizer) -> None:
        self.optimizer = inner
        self.param_groups, self.state = inner.param_groups, inner.state
        self.defaults = inner.defaults

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step()


class Modes(SignDescent):
    """Schedule-free rules step in training mode alone."""

    mode = False

    def train(self) -> None:
        self.mode = True

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if not self.mode:
            raise RuntimeError("not in train mode when step is called")
        super().step(closure)


class OneRate(SignDescent):
    """Prodigy refuses unequal rates."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if len({group["lr"] for group in self.param_groups}) > 1:
            raise RuntimeError("different learning rates are not supported")
        super().step(closure)


class OwnRate(SignDescent):
    """Keeps the rate of each group as it was built."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr)
        self.rates = [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group, rate in zip(self.param_groups, self.rates, strict=True):
            for p in group["params"]:
                p.sub_(p.grad.sign(), alpha=rate)


class Deaf(SignDescent):
    """Steps by a constant: adaptive in the rate, as with relative steps."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign(), alpha=1e-3)


class Relative(Optimizer):
    """Adafactor with relative steps has no rate."""

    def __init__(self, params: Any, lr: float | None = None) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign(), alpha=1e-2)


class OfModel(SignDescent):
    """Takes the model whose parameters it trains."""

    def __init__(self, params: Any, model: nn.Module, lr: float = 1e-3) -> None:
        super().__init__(params, lr)
        self.model = model


class OfSecret(SignDescent):
    def __init__(self, params: Any, secret: float, lr: float = 1e-3) -> None:
        super().__init__(params, lr)


class Renamed(SignDescent):
    """Keeps an argument under another name."""

    def __init__(self, params: Any, lr: float = 1e-3, sign: bool = True) -> None:
        super().__init__(params, lr)
        self.use_sign = sign

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign() if self.use_sign else p.grad, alpha=group["lr"])


class Guarded(torch.optim.Adam):
    """Its list of groups is a property, which cannot be assigned once it is there."""

    @property
    def param_groups(self) -> Groups:
        return self._groups

    @param_groups.setter
    def param_groups(self, groups: Groups) -> None:
        if "_groups" in vars(self):
            raise AttributeError("param_groups is fixed")
        self._groups = groups


class Powered(Optimizer):
    """An argument of the constructor that it keeps to itself."""

    def __init__(self, params: Any, lr: float = 1e-3, power: float = 1.0) -> None:
        self.power = power
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign() * p.grad.abs() ** self.power, alpha=group["lr"])


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda m: Lookahead(SignDescent(m.parameters())), "around another optimizer, SignDescent"),
        (lambda m: Hookless(SignDescent(m.parameters())), "Hookless has no step hooks"),
        (lambda m: OwnRate(m.parameters()), "OwnRate does not step at the learning rate that its"),
        (lambda m: Deaf(m.parameters()), "Deaf does not step at the learning rate that its"),
        (lambda m: Relative(m.parameters()), "rate of Relative is None; expected a number"),
        (lambda m: OfModel(m.parameters(), m), "takes a Sequential as 'model'"),
        (
            lambda m: Renamed(m.parameters(), sign=False),
            "its use_sign is False, .* keeps 'sign' un",
        ),
        (lambda m: OfSecret(m.parameters(), 1.0), "OfSecret .* constructor needs 'secret'"),
        (lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS has no update rule"),
    ],
)
def test_what_cannot_be_built_again_or_stepped_is_refused_with_the_reason(
    make: Callable[[nn.Module], Optimizer], message: str
) -> None:
    model = net(8)
    before = weights(model)
    with pytest.raises(flerm_fx.OptimizerError, match=message):
        record(model, make(model))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_rule_that_refuses_unequal_rates_is_recorded_and_not_compiled() -> None:
    base = net(8)
    optimizer = OneRate(base.parameters())
    with record(base, optimizer, batches=3, every=1) as recorder:
        train(base, optimizer, 2)
    with pytest.raises(flerm_fx.OptimizerError, match="OneRate cannot .*different learning rates"):
        flerm_fx.compile(net(32), recorder.profile, optimizer=OneRate)


@pytest.mark.filterwarnings("ignore:the model's loss has fallen")  # by steps of one size
def test_a_rule_with_a_mode_is_put_in_training_mode() -> None:
    base = net(8)
    optimizer = Modes(base.parameters())
    optimizer.train()
    profile = record(base, optimizer, batches=3).profile
    plain = net(8)
    same = record(plain, SignDescent(plain.parameters()), batches=3).profile
    for name, estimate in profile.start.items():
        assert estimate.value == same.start[name].value
    assert flerm_fx.compile(net(32), profile, optimizer=Modes).multipliers


def test_an_argument_that_no_group_states_is_kept() -> None:
    base = net(8)
    optimizer = Powered(base.parameters(), power=0.5)
    with record(base, optimizer, every=1) as recorder:
        train(base, optimizer, 1)
    profile = recorder.profile
    for name, start in profile.start.items():
        real = profile.trajectory.fslrs[name][0].value
        assert start.value == pytest.approx(real, rel=1e-3)
    again = flerm_fx.compile(net(8), reloaded(profile), optimizer=Powered, method="exact")
    assert all(m == pytest.approx(1.0, rel=1e-5) for m in again.multipliers.values())


def test_wrappers_that_pass_steps_on_are_looked_through() -> None:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    model = net(8)
    inner = adamw(model.parameters())
    with record(model, AcceleratedOptimizer(inner), every=1) as recorder:
        train(model, inner, 2)
    assert recorder.profile.trajectory.steps == (0, 1)


# Another optimizer than the base's.


def test_compile_refuses_another_rule_than_the_profiles() -> None:
    base = net(8)
    profile = record(base, torch.optim.Adam(base.parameters(), lr=1e-3, betas=(0.8, 0.9))).profile
    with pytest.raises(flerm_fx.OptimizerError, match=r"by torch.optim.Adam, and optimizer= is .*"):
        flerm_fx.compile(net(16), profile, optimizer=torch.optim.SGD)
    other = torch.optim.Adam(net(8).parameters(), betas=(0.9, 0.9))
    with pytest.raises(
        flerm_fx.OptimizerError, match=r"betas=\(0.8, 0.9\), and optimizer= has bet"
    ):
        flerm_fx.compile(net(16), profile, optimizer=other)
    compiled = flerm_fx.compile(net(16), profile, optimizer=torch.optim.Adam)
    assert compiled.procedure.optimizers.rules[0].settings["betas"] == (0.8, 0.9)


def test_match_refuses_another_rule_than_the_bases() -> None:
    base, model = net(8), net(16)
    optimizer: Optimizer = torch.optim.Adam(base.parameters(), lr=1e-3)
    with record(base, optimizer, every=1) as recorder:
        train(base, optimizer, 1)
    with pytest.raises(flerm_fx.OptimizerError, match=r"is trained by torch.optim.SGD, and its"):
        flerm_fx.match(model, torch.optim.SGD(model.parameters(), lr=1e-3), recorder.profile)
    # Adam without decay is AdamW.
    with flerm_fx.match(model, adamw(model.parameters()), recorder.profile):
        pass


def test_match_refuses_one_rate_where_the_base_had_several() -> None:
    base, model = net(8), net(16)
    optimizer = adamw(rates_by_layer(base))
    with record(base, optimizer, every=1) as recorder:
        train(base, optimizer, 1)
    with pytest.raises(
        flerm_fx.OptimizerError, match=r"had lr 0.001, 0.016, and all of this model"
    ):
        flerm_fx.match(model, adamw(model.parameters()), recorder.profile)
    base = net(8)
    optimizer = adamw(matrices_decay(base))
    with record(base, optimizer, every=1) as recorder:
        train(base, optimizer, 1)
    with pytest.warns(
        UserWarning, match=r"had weight_decay 0.5, 0.0, and all of this model's have"
    ):
        flerm_fx.match(model, adamw(model.parameters()), recorder.profile).close()


def test_match_refuses_several_rates_where_the_base_had_one() -> None:
    """Multipliers that are in the groups would act twice."""
    base, model = net(8), net(16)
    optimizer = adamw(base.parameters())
    with record(base, optimizer, every=1) as recorder:
        train(base, optimizer, 1)
    profile = recorder.profile
    compiled = flerm_fx.compile(model, profile, emit="param_groups")
    several = adamw(compiled.param_groups(1e-3))
    before = copy.deepcopy(several.state_dict()), [p.clone() for p in model.parameters()]
    for each in (model, compiled):
        with pytest.raises(
            flerm_fx.OptimizerError, match=r"trained at the rate .* would act twice\. Train both at"
        ):
            flerm_fx.match(each, several, profile)
    assert several.state_dict() == before[0]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before[1], strict=True))
    resting = adamw(rates_by_layer(model))
    for group in resting.param_groups[1:]:
        group["lr"] = 0.0
    flerm_fx.match(model, resting, profile).close()


@pytest.mark.parametrize(
    "name", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Adafactor", "Muon"]
)
def test_the_state_of_usual_rules_holds_no_rate(name: str) -> None:
    check_state_is_free(UpdateRule.from_name(name))


class ScheduleFree(Optimizer):
    """Defazio et al. 2024: the state holds weights, and the groups the largest rate so far."""

    def __init__(self, params: Any, lr: float = 1e-2, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "lr_max": 0.0, "weight_sum": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, beta = group["lr"], group["beta"]
            group["lr_max"] = max(lr, group["lr_max"])
            group["weight_sum"] += group["lr_max"] ** 2
            c = group["lr_max"] ** 2 / group["weight_sum"]
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, c).add_(p.grad, alpha=lr * (beta * (1 - c) - 1))
                z.sub_(p.grad, alpha=lr)


def test_state_that_holds_weights_or_rates_is_refused_under_match_and_compiled() -> None:
    base, model = net(8), net(32)
    optimizer = ScheduleFree(base.parameters(), lr=0.1)
    with record(base, optimizer, at=[0]) as recorder:
        train(base, optimizer, 2)
    with pytest.raises(
        flerm_fx.OptimizerError, match="'z', 'lr_max', 'weight_sum' of .*param_groups"
    ):
        flerm_fx.match(model, ScheduleFree(model.parameters(), lr=0.1), recorder.profile)
    compiled = flerm_fx.compile(
        model, recorder.profile, optimizer=ScheduleFree, emit="param_groups", method="exact"
    )
    assert all(check.passed for check in compiled.check())
    train(model, ScheduleFree(compiled.param_groups(0.1)), 3)


def test_groups_that_cannot_be_assigned_are_matched() -> None:
    base, model = net(8), net(32)
    optimizer = torch.optim.Adam(base.parameters(), lr=1e-3)
    with record(base, optimizer, every=1) as recorder:
        train(base, optimizer, 1)
    guarded = Guarded(model.parameters(), lr=1e-3)
    groups = guarded.param_groups
    with flerm_fx.match(model, guarded, recorder.profile, every=1, method="exact") as matcher:
        train(model, guarded, 1)
    assert guarded.param_groups is groups
    assert len(groups) == 1
    assert len(set(matcher.multipliers.values())) > 1


def test_an_argument_under_another_name_at_its_default_is_no_obstacle() -> None:
    base = net(8)
    assert record(base, Renamed(base.parameters())).profile.start


def test_what_has_nothing_to_train_is_not_taken_for_a_rate_of_0() -> None:
    def adam(model: nn.Module) -> Optimizer:
        return torch.optim.Adam(model.parameters(), lr=1e-2)

    model, (xs, ys) = net(8), data()
    message = "Adam holds no trainable parameter of the model; leave it out of the list"
    with pytest.raises(flerm_fx.OptimizerError, match=message):
        flerm_fx.record(model, [adam(model), adam(net(8))], xs, ys)
    frozen = net(8).requires_grad_(False)
    with pytest.raises(flerm_fx.InputError, match="the model has no trainable parameter .*; set"):
        flerm_fx.record(frozen, adam(frozen), xs, ys)
    with pytest.raises(flerm_fx.InputError, match="got the class Adam"):
        flerm_fx.record(model, torch.optim.Adam, xs, ys)  # type: ignore[arg-type]
