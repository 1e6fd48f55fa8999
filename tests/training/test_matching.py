"""Matching while the target trains: right multipliers, in every form, under every kind of loop."""

import copy
import functools
import gc
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import flerm_fx
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.trajectory import Trajectory
from flerm_fx.training.running import RunningProber
from models.resmlp import ResMLP
from tests.cases import features, slow
from tests.rounding import rounding

EVERY = 3
X = features(12, 6)
Y = torch.randint(4, (12,), generator=torch.Generator().manual_seed(2))

Optimizers = list[torch.optim.Optimizer]


def net(width: int, seed: int = 0, depth: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return ResMLP(6, width, 4, depth=depth)


def adam(model: nn.Module) -> Optimizers:
    return [torch.optim.Adam(model.parameters(), lr=1e-2)]


def adamw(model: nn.Module) -> Optimizers:
    return [torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.3)]


def momentum(model: nn.Module) -> Optimizers:
    return [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)]


def plain_momentum(model: nn.Module) -> Optimizers:
    return [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)]


def fused(model: nn.Module) -> Optimizers:
    return [torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)]


def muon_and_adamw(model: nn.Module) -> Optimizers:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return [
        torch.optim.Muon(matrices, lr=2e-2, weight_decay=0.1),
        torch.optim.AdamW(others, lr=5e-3),
    ]


RULES: list[Callable[[nn.Module], Optimizers]] = [adam, adamw, momentum, fused, muon_and_adamw]


def train(
    model: nn.Module,
    optimizers: Optimizers,
    steps: int,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        for optimizer in optimizers:
            optimizer.step()
        after(step)


@functools.cache
def recorded(
    make: Callable[[nn.Module], Optimizers], steps: int = 8, width: int = 8, **options: Any
) -> flerm_fx.BaseProfile:
    model = net(width)
    optimizers = make(model)
    options = {"every": EVERY, "method": "exact", **options}
    with flerm_fx.record(model, optimizers, X, Y, **options) as recorder:
        train(model, optimizers, steps)
    return recorder.profile


def effective(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, flerm_fx.CompiledModel):
        model = model.fold()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changes(model: nn.Module, update: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
    """Mean squares of the function's change, of each example."""
    _, tangent = torch.func.jvp(
        lambda p: torch.func.functional_call(model, {**weights, **p}, (X,)),
        ({name: weights[name] for name in update},),
        (update,),
    )
    return tangent.square().flatten(1).mean(1)


def exact(model: nn.Module, update: dict[str, Tensor], weights: dict[str, Tensor]) -> float:
    return float(changes(model, update, weights).mean().sqrt())


@pytest.mark.parametrize("make", RULES)
def test_the_base_matches_itself_with_multipliers_of_1_and_trains_as_without(
    make: Callable[[nn.Module], Optimizers],
) -> None:
    profile = recorded(make)
    plain, watched = net(8), net(8)
    train(plain, make(plain), 8)
    optimizers = make(watched)
    with flerm_fx.match(watched, optimizers, profile, every=EVERY, method="exact") as matcher:
        train(watched, optimizers, 8)
    assert matcher.trajectory.steps == (0, 3, 6)
    assert set(matcher.multipliers.values()) == {1.0}
    for name, value in effective(plain).items():
        assert torch.equal(value, effective(watched)[name]), name


@pytest.mark.parametrize("make", RULES)
def test_the_matched_step_itself_changes_the_function_as_the_bases(
    make: Callable[[nn.Module], Optimizers],
) -> None:
    profile = recorded(make)
    model = net(32, seed=5)
    optimizers = make(model)
    rates = {
        id(p): (g["lr"], g["lr"] * g.get("weight_decay", 0.0))
        for o in optimizers
        for g in o.param_groups
        for p in g["params"]
    }
    before = [effective(model)]
    checked = 0

    def compare(step: int) -> None:
        nonlocal checked
        after = effective(model)
        if step in profile.trajectory.steps:
            base = profile.trajectory.at(step)
            for name, parameter in model.named_parameters():
                rate, decay = rates[id(parameter)]
                moved = after[name] - before[-1][name]
                moved = moved + decay * before[-1][name]
                fslr = exact(model, {name: moved / rate}, before[-1])
                assert fslr == pytest.approx(base[name].value, rel=2e-3), (step, name)
                checked += 1
        before.append(after)

    with flerm_fx.match(model, optimizers, profile, every=EVERY, method="exact"):
        train(model, optimizers, 8, compare)
    assert checked == 3 * len(list(model.parameters()))


@pytest.mark.parametrize("make", [adam, adamw, plain_momentum, muon_and_adamw])
def test_rates_scale_nodes_and_parametrizations_train_alike(
    make: Callable[[nn.Module], Optimizers],
) -> None:
    profile = recorded(make)
    finals, multipliers = [], []
    for emit in ("plain", "graph", "module"):
        model = net(32, seed=5)
        trained: nn.Module = model
        if emit != "plain":
            trained = flerm_fx.compile(model, profile, emit=emit, method="exact")  # type: ignore[arg-type]
        if emit == "module":
            compiled, trained = trained, model
        optimizers = make(trained)
        with flerm_fx.match(trained, optimizers, profile, every=EVERY, method="exact") as matcher:
            train(trained, optimizers, 8)
        finals.append(effective(compiled if emit == "module" else trained))
        multipliers.append(matcher.multipliers)
        if isinstance(trained, flerm_fx.CompiledModel):
            assert trained.multipliers == pytest.approx(matcher.multipliers)
    # Muon's iteration runs in bfloat16, which rounds scaled gradients otherwise.
    tolerance = 3e-2 if make is muon_and_adamw else 1e-3
    for other, found in zip(finals[1:], multipliers[1:], strict=True):
        assert found == pytest.approx(multipliers[0], rel=tolerance)
        for name, value in finals[0].items():
            scale = value.abs().max()
            assert torch.allclose(other[name], value, rtol=tolerance, atol=tolerance * scale), name


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 3)),
        lambda o: lr_scheduler.OneCycleLR(o, 2e-2, 10, cycle_momentum=False),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    ],
    ids=["warmup from 0", "one-cycle", "cosine", "relative"],
)
def test_multipliers_hold_under_any_scheduler(schedule: Callable[..., Any]) -> None:
    """Against the closed form: groups whose rate is the schedule times the multiplier."""
    profile = recorded(adam)
    model = net(32, seed=5)
    (optimizer,) = adam(model)
    scheduler = schedule(optimizer)
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with flerm_fx.match(model, optimizer, profile, at=[0], method="exact") as matcher:
            train(
                model,
                [optimizer],
                6,
                lambda step: (shown.append(optimizer.param_groups[0]["lr"]), scheduler.step()),  # type: ignore[func-returns-value]
            )
    assert len(optimizer.param_groups) == 1
    start = matcher.history[0].step
    by_hand = net(32, seed=5)
    groups = [
        {"params": [p], "eps": 1e-8 / matcher.multipliers[n]} for n, p in by_hand.named_parameters()
    ]
    other = torch.optim.Adam(groups, lr=1e-2)
    for step, rate in enumerate(shown):
        for group, (name, _) in zip(other.param_groups, by_hand.named_parameters(), strict=True):
            group["lr"] = rate * (matcher.multipliers[name] if step >= start else 1.0)
        train(by_hand, [other], 1)
    for name, value in effective(by_hand).items():
        assert torch.allclose(value, effective(model)[name], rtol=1e-4, atol=1e-6), name


def test_a_plateau_scheduler_sees_and_sets_the_users_own_rates() -> None:
    profile = recorded(adam)
    model = net(32)
    (optimizer,) = adam(model)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    with flerm_fx.match(model, optimizer, profile, every=EVERY):
        train(model, [optimizer], 4, lambda step: scheduler.step(1.0))
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(1e-5)]


def test_groups_may_be_edited_between_steps() -> None:
    profile = recorded(adam)
    model, reference = net(32), net(32)
    moved = []
    for each, rate in ((model, 1e-2), (reference, 1e-2)):
        (optimizer,) = adam(each)

        def edit(step: int, optimizer: torch.optim.Optimizer = optimizer, each: Any = each) -> None:
            if step == 1 and each is model:
                optimizer.param_groups[0]["lr"] = 0.0

        with flerm_fx.match(each, optimizer, profile, at=[0], method="exact"):
            train(each, [optimizer], 2, edit)
            before = effective(each)
            train(each, [optimizer], 1)
        moved.append(max(float((effective(each)[n] - v).abs().max()) for n, v in before.items()))
        assert rate == 1e-2
    assert moved[0] == 0.0
    assert moved[1] > 0.0


def test_gradient_accumulation_closures_and_checkpointing() -> None:
    profile = recorded(adam)

    def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        for half in (slice(0, 6), slice(6, 12)):
            (nn.functional.cross_entropy(model(X[half]), Y[half]) / 2).backward()
        optimizer.step()

    def closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        def evaluate() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(X), Y)
            loss.backward()
            return loss

        optimizer.step(evaluate)  # type: ignore[arg-type]

    def checkpointed(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        output = torch.utils.checkpoint.checkpoint(model, X, use_reentrant=False)
        nn.functional.cross_entropy(output, Y).backward()
        optimizer.step()

    results = []
    for loop in (closure, accumulated, checkpointed):
        model = net(32)
        (optimizer,) = adam(model)
        with flerm_fx.match(model, optimizer, profile, every=EVERY, method="exact") as matcher:
            for _ in range(4):
                loop(model, optimizer)
        results.append((matcher.multipliers, effective(model)))
    for multipliers, weights in results[1:]:
        assert multipliers == pytest.approx(results[0][0], rel=1e-3)
        for name, value in results[0][1].items():
            assert torch.allclose(weights[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [adam, fused])
def test_steps_that_a_gradient_scaler_skips_are_none(
    make: Callable[[nn.Module], Optimizers],
) -> None:
    profile = recorded(adam)
    model = net(32)
    (optimizer,) = make(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with flerm_fx.match(model, optimizer, profile, every=EVERY, method="exact") as matcher:
        for step in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(X), Y)
            scaler.scale(loss * (math.inf if step in (0, 2) else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert matcher.step == 3
    assert matcher.trajectory.steps == (0,)


@pytest.mark.parametrize("emit", ["plain", "graph", "module"])
@pytest.mark.parametrize("make", [adam, slow(momentum), muon_and_adamw])
def test_a_failing_measurement_raises_with_everything_as_before_the_step(
    make: Callable[[nn.Module], Optimizers], emit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = recorded(make)
    model: nn.Module = net(32)
    if emit != "plain":
        compiled = flerm_fx.compile(model, profile, emit=emit, method="exact")  # type: ignore[arg-type]
        model = model if emit == "module" else compiled
    optimizers = make(model)

    def everything() -> list[Any]:
        found: list[Any] = [p.detach().clone() for p in model.parameters()]
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        for optimizer in optimizers:
            for values in optimizer.state_dict()["state"].values():
                found += [v.clone() if isinstance(v, Tensor) else v for v in values.values()]
            found += [len(optimizer.param_groups), optimizer.param_groups[0]["lr"]]
        return found

    with flerm_fx.match(model, optimizers, profile, every=EVERY) as matcher:
        train(model, optimizers, 3)
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        before, multipliers = everything(), dict(matcher.multipliers)
        monkeypatch.setattr(RunningProber, "estimate", _raise)

        def step() -> None:
            for optimizer in optimizers:
                optimizer.step()

        with pytest.raises(flerm_fx.EstimateError, match="no FSLR"):
            step()
        after = everything()
        assert len(before) == len(after)
        for a, b in zip(before, after, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
        assert matcher.multipliers == multipliers
        monkeypatch.undo()
        for optimizer in optimizers:
            optimizer.step()
        assert matcher.trajectory.steps == (0, 3)


def _raise(*args: Any) -> None:
    raise flerm_fx.EstimateError("no FSLR")


def test_a_nan_in_the_gradients_undoes_the_step_and_names_the_parameter() -> None:
    profile = recorded(adam)
    model = net(32)
    (optimizer,) = adam(model)
    with flerm_fx.match(model, optimizer, profile):
        before = effective(model)
        (nn.functional.cross_entropy(model(X), Y) * math.nan).backward()
        with pytest.raises(flerm_fx.EstimateError, match=r"parameter '.*weight'.*NaN"):
            optimizer.step()
        assert all(torch.equal(before[n], v) for n, v in effective(model).items())
        assert not optimizer.state_dict()["state"]


@pytest.mark.parametrize("emit", ["plain", "graph", "module"])
@pytest.mark.parametrize("make", [adam, momentum])
@pytest.mark.parametrize("broken", [slow(2), 3, slow(4)])
def test_a_resumed_run_is_bitwise_the_run(
    make: Callable[[nn.Module], Optimizers], emit: str, broken: int, tmp_path: Any
) -> None:
    profile = recorded(make)

    def build() -> tuple[nn.Module, nn.Module, Optimizers, flerm_fx.Matcher]:
        model: nn.Module = net(32, seed=5)
        saved = model
        if emit != "plain":
            compiled = flerm_fx.compile(model, profile, emit=emit)  # type: ignore[arg-type]
            saved = model = model if emit == "module" else compiled
        optimizers = make(model)
        return (
            model,
            saved,
            optimizers,
            flerm_fx.match(model, optimizers, profile, every=EVERY, ema=0.5),
        )

    model, _, optimizers, matcher = build()
    train(model, optimizers, 8)
    matcher.close()

    first, saved, others, early = build()
    train(first, others, broken)
    early.close()
    state = {
        "model": saved.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in others],
        "matcher": early.state_dict(),
    }
    torch.save(state, tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)

    second, saved, others, late = build()
    saved.load_state_dict(state["model"])
    for optimizer, values in zip(others, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    late.load_state_dict(state["matcher"])
    train(second, others, 8 - broken)
    assert late.multipliers == matcher.multipliers
    assert late.trajectory.steps == matcher.trajectory.steps
    assert late.history == matcher.history
    for (name, a), (_, b) in zip(model.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_state_of_another_model_or_checkpoint_is_refused() -> None:
    profile = recorded(adam)
    model = net(32)
    compiled = flerm_fx.compile(net(32), profile)
    with flerm_fx.match(model, adam(model), profile) as matcher:
        state = matcher.state_dict()
    deep = net(16, depth=4)
    with flerm_fx.match(deep, adam(deep), profile) as other:  # noqa: SIM117
        with pytest.raises(flerm_fx.InputError, match="load it for the model that it was saved"):
            other.load_state_dict(state)
    with flerm_fx.match(compiled, adam(compiled), profile) as scaled:  # noqa: SIM117
        with pytest.raises(flerm_fx.InputError, match="load the model's state first"):
            scaled.load_state_dict(state)


def test_closing_leaves_no_trace() -> None:
    profile = recorded(adam)
    model = net(32)
    (optimizer,) = adam(model)
    groups, hooks = optimizer.param_groups, len(optimizer._optimizer_step_pre_hooks)

    def interrupted(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), flerm_fx.match(model, optimizer, profile):
        train(model, [optimizer], 1, interrupted)
    assert optimizer.param_groups is groups
    assert len(optimizer._optimizer_step_pre_hooks) == hooks
    assert not model._forward_hooks
    reference = copy.deepcopy(model)
    other = torch.optim.Adam(reference.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, [optimizer], 2)
    train(reference, [other], 2)
    assert all(torch.equal(effective(reference)[n], v) for n, v in effective(model).items())


def test_a_step_that_raises_leaves_no_split_groups_behind() -> None:
    profile = recorded(adam)
    model = net(32)
    (optimizer,) = adam(model)
    with flerm_fx.match(model, optimizer, profile, at=[0]) as matcher:
        train(model, [optimizer], 1)

        def broken() -> float:
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(broken)  # type: ignore[arg-type]
        train(model, [optimizer], 1)
        assert len(optimizer.param_groups) == 1
        assert matcher.step == 2


def test_what_an_optimizer_writes_into_its_groups_is_kept() -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["count"] = group.get("count", 0) + 1
            return super().step(closure)

    profile = recorded(lambda m: [torch.optim.SGD(m.parameters(), lr=1e-2)])
    model = net(32)
    optimizer = Counting(model.named_parameters(), lr=1e-2)
    with flerm_fx.match(model, optimizer, profile):
        train(model, [optimizer], 3)
    assert [group["count"] for group in optimizer.param_groups] == [3]


def test_steps_are_taken_where_asked_and_logged() -> None:
    profile = recorded(adam)
    model = net(32)
    (optimizer,) = adam(model)
    logged: dict[int, dict[str, float]] = {}

    def log(numbers: dict[str, float], step: int) -> None:
        logged[step] = numbers

    with flerm_fx.match(model, optimizer, profile, at=[1, 4], log=log) as matcher:
        train(model, [optimizer], 6)
    assert matcher.trajectory.steps == (1, 4) == tuple(logged)
    for name, m in matcher.multipliers.items():
        assert logged[4][f"flerm/multiplier/{name}"] == m
        assert logged[4][f"flerm/fslr/{name}"] == matcher.trajectory.at(4)[name].value


@pytest.mark.parametrize("emit", ["plain", "graph"])
def test_a_log_that_fails_does_not_undo_the_step(emit: str) -> None:
    profile = recorded(adam)
    model: nn.Module = net(32)
    if emit == "graph":
        model = flerm_fx.compile(model, profile, method="exact")
    (optimizer,) = adam(model)

    def log(numbers: dict[str, float], step: int) -> None:
        raise OSError("the server is gone")

    with flerm_fx.match(model, optimizer, profile, every=EVERY, log=log) as matcher:
        before = effective(model)
        with pytest.raises(OSError, match="the server is gone"):
            train(model, [optimizer], 1)
        assert matcher.step == 1
        assert matcher.trajectory.steps == (0,)
        moved = [float((effective(model)[n] - v).abs().max()) for n, v in before.items()]
        assert 0 < max(moved) < 1
        train(model, [optimizer], 2)
        assert matcher.step == 3


def trajectory(*values: float, steps: tuple[int, ...]) -> Trajectory:
    estimates = tuple(Estimate(value, 0.1 * value, "exact", 0) for value in values)
    return Trajectory(steps, (0.1,) * len(steps), {"w": estimates})


@pytest.mark.parametrize(
    "step,value", [(-1, 1.0), (0, 1.0), (5, 2.0), (2.5, 2**0.5), (10, 4.0), (15, 2.0), (99, 0.0)]
)
def test_between_recorded_steps_logarithms_are_interpolated(step: float, value: float) -> None:
    course = trajectory(1.0, 4.0, 0.0, steps=(0, 10, 20))
    assert course.between(step)["w"].value == pytest.approx(value)


def test_a_run_of_another_length_reads_the_base_at_the_same_part() -> None:
    profile = recorded(adam)
    model = net(8)
    (optimizer,) = adam(model)
    with flerm_fx.match(
        model, optimizer, profile, at=[0, 12], stretch=2.0, method="exact"
    ) as matcher:
        train(model, [optimizer], 13)
    found = matcher.history[-1]
    for name, estimate in found.fslrs.items():
        wanted = profile.trajectory.at(6)[name].value
        assert found.multipliers[name] == pytest.approx(wanted / estimate.value)


def test_moving_averages_are_of_squares_and_corrected_for_their_start() -> None:
    profile = recorded(adam)
    d = 0.9
    model = net(32)
    (optimizer,) = adam(model)
    with flerm_fx.match(model, optimizer, profile, every=EVERY, ema=d, method="exact") as matcher:
        train(model, [optimizer], 7)

    def average(values: list[float]) -> float:
        weights = [d ** (len(values) - 1 - i) for i in range(len(values))]
        total = sum(w * v**2 for w, v in zip(weights, values, strict=True))
        return math.sqrt(total / sum(weights))

    for index, found in enumerate(matcher.history):
        for name, m in found.multipliers.items():
            base = [e.value for e in profile.trajectory.fslrs[name][: index + 1]]
            own = [h.fslrs[name].value for h in matcher.history[: index + 1]]
            assert m == pytest.approx(average(base) / average(own))


def test_what_has_no_function_change_keeps_its_multiplier() -> None:
    """A LoRA's A, while B is 0: matched from the second measurement on."""
    from models.lora import add_lora

    def lora(width: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))
        return add_lora(model, rank=2, names=["0", "2"])

    base = lora(8)
    optimizer = torch.optim.Adam([p for p in base.parameters() if p.requires_grad], lr=1e-2)
    with flerm_fx.record(base, optimizer, X, Y, every=1, method="exact") as recorder:
        train(base, [optimizer], 3)
    model = lora(64)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with flerm_fx.match(model, optimizer, recorder.profile, every=1, method="exact") as matcher:
        train(model, [optimizer], 2)
    first, second = matcher.history
    late = [name for name, e in first.fslrs.items() if e.value == 0]
    assert late
    for name in late:
        assert first.multipliers[name] == 1.0
        assert second.multipliers[name] != 1.0


def test_compiled_by_torch_and_averaged_models_train() -> None:
    profile = recorded(adam)
    model = net(32)
    wrapped = torch.compile(model, backend="aot_eager")
    average = torch.optim.swa_utils.AveragedModel(model)
    (optimizer,) = adam(model)
    plain = net(32)
    (other,) = adam(plain)
    with flerm_fx.match(wrapped, optimizer, profile, every=EVERY, method="exact") as matcher:  # type: ignore[arg-type]
        train(wrapped, [optimizer], 4, lambda step: average.update_parameters(model))  # type: ignore[arg-type]
    with flerm_fx.match(plain, other, profile, every=EVERY, method="exact") as reference:
        train(plain, [other], 4)
    assert matcher.multipliers == pytest.approx(reference.multipliers, rel=1e-4)


def test_other_depths_share_the_bases_mass() -> None:
    profile = recorded(adam)
    model = net(8, depth=6)
    (optimizer,) = adam(model)
    with flerm_fx.match(model, optimizer, profile, at=[0], method="exact") as matcher:
        train(model, [optimizer], 1)
    (found,) = matcher.history
    total = sum(found.multipliers[n] * e.value for n, e in found.fslrs.items() if "blocks" in n)
    base = profile.trajectory.at(0)
    assert total == pytest.approx(sum(e.value for n, e in base.items() if "blocks" in n))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"at": [-1]}, "at must hold whole numbers of steps from 0 on"),
        ({"stretch": 0.0}, "stretch must be a finite number above 0"),
        ({"ema": 1.0}, "ema must be a finite number of at least 0 and below 1, got 1.0"),
        ({"method": "guess"}, "unknown method 'guess'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    model = net(8)
    with pytest.raises(flerm_fx.InputError, match=message):
        flerm_fx.match(model, adam(model), recorded(adam, steps=1), **options)


def test_a_profile_without_a_trajectory_or_of_another_model_is_refused() -> None:
    model = net(8)
    with pytest.raises(flerm_fx.InputError, match="has no trajectory to match"):
        flerm_fx.match(model, adam(model), recorded(adam, steps=0))
    other = nn.Sequential(nn.Conv1d(6, 3, 1), nn.Flatten(), nn.Linear(3, 4))
    with pytest.raises(flerm_fx.MatchError):
        flerm_fx.match(other, adam(other), recorded(adam, steps=1), features(4, 6, 1))
    with pytest.raises(flerm_fx.InputError, match="must be a BaseProfile or a law, got str"):
        flerm_fx.match(model, adam(model), "base.safetensors")  # type: ignore[arg-type]
    with pytest.raises(flerm_fx.InputError, match="must be a torch.optim.Optimizer"):
        flerm_fx.match(model, "adam", recorded(adam, steps=1))  # type: ignore[arg-type]


class Lion(torch.optim.Optimizer):
    """A rule from elsewhere, known by its interface alone: the sign of an interpolated momentum."""

    def __init__(self, params: Any, lr: float = 1e-3, beta: float = 0.9, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(mean.lerp(p.grad, 1 - group["beta"]).sign(), alpha=-group["lr"])
                mean.lerp_(p.grad, 0.01)


def lion(model: nn.Module) -> Optimizers:
    return [Lion(model.parameters(), lr=3e-3, weight_decay=0.1)]


@pytest.mark.parametrize("emit", ["plain", "graph"])
def test_a_rule_from_elsewhere(emit: str) -> None:
    profile = recorded(lion)
    model: nn.Module = net(32, seed=5)
    if emit == "graph":
        model = flerm_fx.compile(model, profile, optimizer=Lion, method="exact")
    optimizers = lion(model)
    with flerm_fx.match(model, optimizers, profile, every=EVERY, method="exact") as matcher:
        train(model, optimizers, 4)
    for found in matcher.history:
        base = profile.trajectory.at(found.step)
        for name, estimate in found.fslrs.items():
            assert found.multipliers[name] * estimate.value == pytest.approx(base[name].value)


def test_under_autocast_the_float32_function_is_matched() -> None:
    profile = recorded(adam)
    model = net(32)
    (optimizer,) = adam(model)
    with flerm_fx.match(model, optimizer, profile, every=EVERY, method="exact") as matcher:
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(X), Y).backward()
                optimizer.step()  # even inside of it
    for found in matcher.history:
        base = profile.trajectory.at(found.step)
        for name, estimate in found.fslrs.items():
            assert found.multipliers[name] * estimate.value == pytest.approx(base[name].value)


@pytest.mark.parametrize("emit", ["graph", "module"])
def test_emitted_models_are_compiled_by_torch(emit: str) -> None:
    profile = recorded(adam)
    weights = []
    for compiles in (False, True):
        model: nn.Module = net(32, seed=5)
        compiled = flerm_fx.compile(model, profile, emit=emit, method="exact")  # type: ignore[arg-type]
        model = compiled if emit == "graph" else model
        optimizers = adam(model)
        called = torch.compile(model, backend="aot_eager") if compiles else model
        train(called, optimizers, 3)  # type: ignore[arg-type]
        weights.append(effective(compiled))
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=1e-3, atol=1e-5), name


def test_while_a_run_warms_up_a_plain_model_has_multipliers_by_first_updates() -> None:
    profile = recorded(adam, settle=2)
    model = net(24)
    (optimizer,) = optimizers = adam(model)
    sizes = flerm_fx.record(model, optimizer, X, Y, settle=2).profile.update_sizes
    guess = {name: profile.update_sizes[name] / sizes[name] for name in sizes}
    rising = lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 8, 1.0))
    with flerm_fx.match(model, optimizer, profile, every=1, method="exact") as matcher:
        train(model, optimizers, 6, lambda step: rising.step())
    for found in matcher.history:
        warms_up = found.step < 3  # the fourth step is at half of the rate
        assert (found.multipliers == pytest.approx(guess, rel=1e-4)) == warms_up


def test_a_rate_that_falls_does_not_warm_up() -> None:
    """Against the closed form of two measurements: ln(2)² / 2 against ln(4)² is one to eight."""
    profile = recorded(adam, settle=2)
    model = net(24)
    (optimizer,) = optimizers = adam(model)
    falling = lr_scheduler.LambdaLR(optimizer, lambda step: 0.4 * 0.5**step)
    with flerm_fx.match(model, optimizer, profile, at=[], method="exact") as matcher:
        train(model, optimizers, 4, lambda step: falling.step())
    first, held, last = matcher.history
    assert [first.step, held.step, last.step] == [0, 1, 2]
    assert first.multipliers == held.multipliers != last.multipliers
    for name in ("input.weight", "output.weight"):  # all others have a role in common
        guess = first.multipliers[name]
        ratios = [
            profile.settling.at(each.step)[name].value / each.fslrs[name].value
            for each in (held, last)
        ]
        wanted = math.prod(ratios) ** (4 / 9) * guess ** (1 / 9)
        assert last.multipliers[name] == pytest.approx(wanted, rel=1e-4)


def test_a_settled_base_starts_itself_with_multipliers_of_1() -> None:
    """Its run is what settling simulates: steps on one batch, at one rate, on the same examples."""
    profile = recorded(adam, settle=4, warmup=0, steps=9, every=2)
    model = net(8)
    (optimizer,) = optimizers = adam(model)
    with flerm_fx.match(model, optimizer, profile, method="exact", at="start") as matcher:
        train(model, optimizers, 9)
    assert matcher.multipliers == pytest.approx(dict.fromkeys(matcher.multipliers, 1.0), rel=0.02)


def test_a_settled_base_matches_itself_but_for_what_parts_of_the_examples_differ() -> None:
    """At the start both sides measure the same examples. Behind it the base's FSLRs are of all N
    of them and the run's of n, so that the mean square is off by the standard error of a sample
    without replacement, and of a geometric mean only what was measured there is off.
    """
    profile = recorded(adam, settle=4, warmup=0, steps=9, every=2)
    model = net(8)
    (optimizer,) = optimizers = adam(model)
    weights = [effective(model)]
    with flerm_fx.match(model, optimizer, profile, method="exact", every=2) as matcher:
        train(model, optimizers, 9, lambda step: weights.append(effective(model)))
    of_start = [each for each in matcher.history if each.step <= 4]
    behind = [each for each in matcher.history if each.step > 4]
    assert [each.step for each in behind] == [6, 8]
    for each in of_start:
        assert each.multipliers == pytest.approx(dict.fromkeys(each.multipliers, 1.0), rel=0.02)
    part, most = 6, 0.0  # of 12 examples, which each have two turns in four steps
    for each in behind:
        before, after = weights[each.step], weights[each.step + 1]
        for name, estimate in each.fslrs.items():
            log = math.log(estimate.value / profile.trajectory.at(each.step)[name].value)
            squares = changes(model, {name: after[name] - before[name]}, before)
            variance = float(squares.var() / squares.mean() ** 2) * (1 / part - 1 / len(X))
            assert abs(log) <= 4 * math.sqrt(variance) / 2 + 0.02
            most = max(most, abs(log))
    share = len(behind) / (len(profile.settling.steps) + len(behind))
    for multiplier in matcher.multipliers.values():
        assert abs(math.log(multiplier)) <= share * most + 0.02


def test_the_start_is_matched_in_the_run_and_needs_no_trajectory() -> None:
    profile = recorded(adam, steps=0, settle=4)
    assert not profile.trajectory.steps
    model = net(32)
    (optimizer,) = optimizers = adam(model)
    with flerm_fx.match(model, optimizer, profile, at="start", stretch=2.0) as matcher:
        train(model, optimizers, 12)
    steps = (0, *(2 * step for step in profile.settling.steps))
    assert matcher.trajectory.steps == steps
    first, *held, last = (each.multipliers for each in matcher.history)
    assert all(multipliers == first for multipliers in held)
    assert last == matcher.multipliers != first


def test_the_start_of_a_base_that_has_none_is_refused() -> None:
    model = net(24)
    with pytest.raises(flerm_fx.InputError, match=r"at='start' follows the settling steps"):
        flerm_fx.match(model, adam(model), recorded(adam), at="start")


def test_a_moving_average_asked_for_is_of_each_parameter_by_itself() -> None:
    profile = recorded(adam, settle=2, every=1)
    model = net(24)
    (optimizer,) = optimizers = adam(model)
    with flerm_fx.match(model, optimizer, profile, at=[1], ema=0.0, method="exact") as matcher:
        train(model, optimizers, 2)
    (found,) = matcher.history
    for name, estimate in found.fslrs.items():
        wanted = profile.trajectory.at(1)[name].value
        assert found.multipliers[name] * estimate.value == pytest.approx(wanted, rel=1e-4)


def test_a_start_within_the_warm_up_is_warned_of() -> None:
    profile = recorded(adam, settle=2)
    model = net(24)
    (optimizer,) = optimizers = adam(model)
    rising = lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 100)
    with (
        pytest.warns(UserWarning, match="still warms up at step 2, where the base's start ends"),
        flerm_fx.match(model, optimizer, profile, at="start") as matcher,
    ):
        train(model, optimizers, 4, lambda step: rising.step())
    first, *others = (each.multipliers for each in matcher.history)
    assert all(multipliers == first for multipliers in others)


def test_a_state_of_another_way_of_matching_is_refused() -> None:
    profile = recorded(adam, settle=2)
    states = []
    for ema in (0.0, None):
        model = net(24)
        matcher = flerm_fx.match(model, adam(model), profile, ema=ema)
        states.append(matcher.state_dict())
    with pytest.raises(flerm_fx.InputError, match="averages own, and this matcher own, met"):
        matcher.load_state_dict(states[0])


@pytest.mark.parametrize("broken", [2, 5])
def test_a_resumed_run_that_follows_means_is_bitwise_the_run(broken: int) -> None:
    profile = recorded(adam, settle=4, every=2)

    def build() -> tuple[nn.Module, torch.optim.Optimizer, flerm_fx.Matcher]:
        model = net(24)
        (optimizer,) = adam(model)
        return model, optimizer, flerm_fx.match(model, optimizer, profile, every=2)

    whole, optimizer, matcher = build()
    train(whole, [optimizer], 8)
    first, optimizer, early = build()
    train(first, [optimizer], broken)
    states = copy.deepcopy((first.state_dict(), optimizer.state_dict(), early.state_dict()))
    second, optimizer, late = build()
    for each, state in zip((second, optimizer, late), states, strict=True):
        each.load_state_dict(state)
    train(second, [optimizer], 8 - broken)
    assert late.history == matcher.history
    for (name, a), (_, b) in zip(whole.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("emit", ["plain", "graph", "module"])
def test_no_copy_of_the_weights_is_held(emit: str) -> None:
    width = 211

    def held() -> set[int]:
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
        real = [t for t in tensors if t.shape == (width, width) and t.device.type == "cpu"]
        kept = [t.untyped_storage() for t in real]
        return {each.data_ptr() for each in kept if each.nbytes() >= 4 * width**2}

    profile = recorded(adam)
    model: nn.Module = net(width)
    if emit != "plain":
        compiled = flerm_fx.compile(model, profile, emit=emit)  # type: ignore[arg-type]
        model = compiled if emit == "graph" else model
    (optimizer,) = adam(model)
    train(model, [optimizer], 1)
    before = held()
    with flerm_fx.match(model, optimizer, profile):
        assert held() <= before


def test_without_a_settled_start_multipliers_wait_at_1() -> None:
    profile = recorded(adam)
    model = net(24)
    (optimizer,) = optimizers = adam(model)
    rising = lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 8, 1.0))
    with flerm_fx.match(model, optimizer, profile, every=1, method="exact") as matcher:
        train(model, optimizers, 4, lambda step: rising.step())
    ones = dict.fromkeys(matcher.multipliers, 1.0)
    assert [found.multipliers == ones for found in matcher.history] == [True, True, True, False]


@pytest.mark.parametrize("emit", ["plain", "graph", "module"])
def test_the_course_of_a_match_has_the_loss_on_the_bases_batch(emit: str) -> None:
    profile = recorded(adam)
    model = net(16)
    if emit != "plain":
        compiled = flerm_fx.compile(model, profile, emit=emit)  # type: ignore[arg-type]
        model = compiled if emit == "graph" else model
    optimizers = adam(model)
    losses = []

    def look(step: int) -> None:
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(model(X), Y).item())

    look(-1)
    with flerm_fx.match(model, optimizers, profile, every=2) as matcher:
        train(model, optimizers, 4, look)
    expected = [losses[0], losses[2]]
    # A match rescales stored weights by a factor and back, which rounds each of them once.
    assert matcher.trajectory.losses == pytest.approx(expected, rel=rounding(100))
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_the_loss_of_a_match_is_not_known_where_a_profile_has_none() -> None:
    def own(output: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, targets)

    for options in ({"loss_fn": own}, {}):
        profile = recorded(adam, 2, **options)
        assert len(profile.trajectory.losses) == 1
        model = net(16)
        optimizers = adam(model)
        inputs = None if options else features(10, 6)  # other inputs than the targets are for
        with flerm_fx.match(model, optimizers, profile, inputs, every=2) as matcher:
            train(model, optimizers, 2)
        assert matcher.trajectory.steps == (0,) and matcher.trajectory.losses == ()


def test_targets_of_the_base_that_do_not_fit_are_warned_of_once() -> None:
    profile = recorded(adam)
    torch.manual_seed(0)
    model = ResMLP(6, 2, 16, depth=2)  # of fewer classes than the base's targets have
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y % 2).backward()
        optimizer.step()

    with flerm_fx.match(model, optimizer, profile, every=1) as matcher:
        with pytest.warns(UserWarning, match="do not fit this model's outputs"):
            step()
        step()  # would fail if it warned again
    assert matcher.trajectory.steps == (0, 1) and matcher.trajectory.losses == ()
