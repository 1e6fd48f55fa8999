"""Live models: what their own passes measure, and that nothing is left behind."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import flerm_fx
from flerm_fx.capture.ungraphed import capture_ungraphed
from flerm_fx.model.distributed import Ranks
from flerm_fx.probe.live_prober import MOST, LiveProber, live_plan
from flerm_fx.probe.live_signs import Signs, signs
from tests.cases import random_updates

EXAMPLES, FEATURES, OUTPUTS = 8, 5, 300
SIGMAS = 5.0


class Net(nn.Module):
    """Two layers that run in some way, of which most have no graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(FEATURES, 9), nn.Linear(9, 9)
        self.last = nn.Linear(9, OUTPUTS)

    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(x)))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.middle(self.first(x)))
        return output


class Branching(Net):
    def middle(self, x: Tensor) -> Tensor:
        return super().middle(x) if x.sum() < 1e9 else x


class Reentrant(Net):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(checkpoint(self.middle, self.first(x), use_reentrant=True))
        return output


class NotReentrant(Branching):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(checkpoint(self.middle, self.first(x), use_reentrant=False))
        return output


class Hooked(Branching):
    """A hook on the middle layer doubles what comes out, and one on gradients doubles those."""

    def __init__(self) -> None:
        super().__init__()
        self.second.register_forward_hook(lambda module, args, output: 2 * output)
        self.second.register_full_backward_hook(
            lambda module, given, got: tuple(2 * g for g in given)
        )


class Tied(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Linear(9, 9)
        self.third.weight = self.second.weight

    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.third(super().middle(x)))


class Frozen(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.second.weight.requires_grad_(False)


KINDS = [Branching, Reentrant, NotReentrant, Hooked, Tied, Frozen]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(EXAMPLES, FEATURES, generator=torch.Generator().manual_seed(1))


def by_jvp(model: nn.Module, updates: dict[str, Tensor], x: Tensor) -> dict[str, float]:
    """FSLRs from forward mode, of each parameter by itself."""
    found = {}
    for name, update in updates.items():

        def moved(value: Tensor, name: str = name) -> Tensor:
            output: Tensor = torch.func.functional_call(model, {name: value}, (x,))
            return output

        own = model.get_parameter(name).detach()
        _, tangent = torch.func.jvp(moved, (own,), (update,))
        found[name] = float(tangent.detach().square().mean().sqrt())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["live", "auto", "sampled"])
def test_passes_of_a_model_find_its_fslrs(kind: Callable[[], Net], method: Any, x: Tensor) -> None:
    model = kind()
    updates = random_updates(model)
    # No forward derivative passes checkpoints, reentrant ones or, on torch 2.10, any: this is the
    # same function without them.
    expected = by_jvp(Net() if kind in (Reentrant, NotReentrant) else model, updates, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", flerm_fx.CaptureWarning)
        found = flerm_fx.measure(
            model, updates, x, method=method, samples=None if method == "auto" else 12
        )
    for name, estimate in found.items():
        assert estimate.method == "live" or (method == "auto" and kind is not Reentrant)
        allowed = SIGMAS * estimate.stderr + 1e-4 * expected[name]
        assert abs(estimate.value - expected[name]) <= allowed, name


def test_draws_are_unbiased_and_their_errors_true(x: Tensor) -> None:
    model = Branching()
    updates = random_updates(model)
    expected = by_jvp(model, updates, x)
    captured = capture_ungraphed(model, x)
    prober = LiveProber(captured, Ranks())
    weights, trials = dict(captured.parameters), 100
    squares = {name: torch.zeros(trials) for name in updates}
    variances = {name: torch.zeros(trials) for name in updates}
    for trial in range(trials):
        found = prober.estimate(
            weights, updates, x, rtol=0.1, samples=1, generator=torch.Generator().manual_seed(trial)
        )
        for name, estimate in found.items():
            squares[name][trial] = estimate.value**2
            variances[name][trial] = (2 * estimate.value * estimate.stderr) ** 2
    for name, of_trials in squares.items():
        error = of_trials.std() / math.sqrt(trials)
        assert abs(of_trials.mean() - expected[name] ** 2) <= 4.5 * error, name
        # A bound of the variance, which is reached where no few numbers are most of the change:
        # the spread of 100 variances is known to sqrt(2 / 100) and the weight of their tails.
        ratio = float(of_trials.var() / variances[name].mean())
        assert 0.5 <= ratio <= 1.5, (name, ratio)


@pytest.mark.parametrize("coordinates", [1, 2, 50])
def test_the_variance_of_signs(coordinates: int) -> None:
    a = torch.ones(coordinates)  # of equal numbers, at which the bound is reached
    trials = 4000
    v = torch.stack([(signs(a, seed) @ a).square() for seed in range(trials)]) / coordinates
    bound = Signs(coordinates, 1).relative_variance
    assert v.mean() == pytest.approx(1.0, abs=4.5 * math.sqrt(max(bound, 1e-9) / trials) + 1e-6)
    spread = (v - 1).square()
    error = float(spread.std()) / math.sqrt(trials)
    assert float(spread.mean()) == pytest.approx(bound, abs=4.5 * error + 1e-6)


def test_few_coordinates_are_taken_one_by_one() -> None:
    torch.manual_seed(0)

    class Few(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() < 1e9 else x

    model, x = Few(4, 3), torch.randn(6, 4)
    updates = random_updates(model)
    found = flerm_fx.measure(model, updates, x, method="live")
    for name, value in by_jvp(model, updates, x).items():
        assert found[name].value == pytest.approx(value, rel=1e-5)
        assert found[name].method == "exact" and found[name].stderr == 0


def test_examples_that_influence_each_other_are_one(x: Tensor) -> None:
    class Coupled(Branching):
        def middle(self, x: Tensor) -> Tensor:
            return super().middle(x - x.mean(0))

    model = Coupled()
    updates = random_updates(model)
    found = flerm_fx.measure(model, updates, x, method="live", samples=60)
    error = 0.5 * math.sqrt(torch.polygamma(1, torch.tensor(60 / 2)))  # one sample a pass
    for name, value in by_jvp(model, updates, x).items():
        estimate = found[name]
        assert "influence each other" in estimate.note
        assert abs(estimate.value - value) <= SIGMAS * estimate.stderr + 1e-6
        if value > 1e-6:
            assert estimate.relative_error == pytest.approx(error, rel=1e-2)


def test_every_pass_draws_the_same_dropout(x: Tensor) -> None:
    class Dropping(Branching):
        def middle(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().middle(x), 0.5, self.training)

    model = Dropping()
    updates = random_updates(model)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = flerm_fx.measure(model, updates, x, method="live", samples=100)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for name, update in updates.items():
        torch.set_rng_state(state)
        value = by_jvp(model, {name: update}, x)[name]
        assert abs(found[name].value - value) <= SIGMAS * found[name].stderr + 1e-6


def test_more_passes_are_taken_until_the_tolerance_or_the_most(x: Tensor) -> None:
    model = Branching()
    updates = random_updates(model)
    found = flerm_fx.measure(model, updates, x, method="live", rtol=0.05)
    assert all(e.relative_error <= 0.05 and not e.note for e in found.values())
    assert all(25 <= e.samples < MOST for e in found.values())  # 200 samples of 8 examples
    found = flerm_fx.measure(model, updates, x, method="live", rtol=0.01)
    assert {e.samples for e in found.values()} == {MOST}
    assert all("would take more than 256 passes" in e.note for e in found.values())


def test_plans_use_examples_ranks_and_passes() -> None:
    assert live_plan(0.05, 16, 10**6, 1).passes == 13  # 200 samples, 16 a pass
    assert live_plan(0.05, 16, 10**6, 4).parts == 4
    assert live_plan(0.4, 16, 10**6, 4).parts == 1  # 4 samples are enough
    coupled = live_plan(0.05, 1, 10**6, 8)
    assert (coupled.parts, coupled.passes, coupled.signs.draws) == (1, 25, 200)
    more_ranks_than_rows = live_plan(0.05, 3, 10**6, 8)
    assert (more_ranks_than_rows.ranks, more_ranks_than_rows.parts) == (3, 1)
    assert live_plan(0.05, 16, 10, 1).signs.every


def states(model: nn.Module) -> Iterator[Any]:
    yield from (p.detach().clone() for p in model.parameters())
    yield from (p.grad for p in model.parameters())
    yield from (b.clone() for b in model.buffers())
    yield torch.get_rng_state()


class Stateful(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(9)
        self.calls = 0
        self.fails_at = math.inf

    def middle(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls >= self.fails_at:
            raise ValueError("amid a pass")
        return torch.rand(1) * super().middle(self.norm(x))


class FailsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("amid a backward pass")


@pytest.mark.parametrize("fails", ["", "forward", "backward"])
def test_nothing_is_left_behind(fails: str, x: Tensor) -> None:
    model = Stateful()
    model(x).square().mean().backward()
    heard: list[Tensor] = []
    model.first.weight.register_hook(heard.append)
    model.first.weight.register_post_accumulate_grad_hook(heard.append)
    gradients = [p.grad for p in model.parameters()]
    before = list(states(model))
    calls = model.calls
    if fails == "backward":
        middle = model.middle
        model.middle = lambda x: FailsBackwards.apply(middle(x))  # type: ignore[method-assign]
    model.fails_at = calls if fails == "forward" else math.inf
    if fails:
        with pytest.raises((flerm_fx.FlermError, ValueError), match="amid a"):
            flerm_fx.measure(model, random_updates(model), x, method="live", samples=2)
    else:
        flerm_fx.measure(model, random_updates(model), x, method="live", samples=2)
    after = list(states(model))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert model.calls == calls and not heard


def test_what_is_compiled_runs_as_it_was_written(x: Tensor) -> None:
    """It has a graph, and nothing is compiled by measuring."""
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    whole = torch.compile(Net(), backend=backend)
    part = Branching()
    part.second = torch.compile(part.second, backend=backend)  # type: ignore[assignment]
    in_place = Branching()
    in_place.second.compile(backend=backend)
    for model in (whole, part, in_place):
        updates = random_updates(model)
        found = flerm_fx.measure(model, updates, x, method="live", samples=20)
        plain = by_jvp(Net(), {n.replace("_orig_mod.", ""): u for n, u in updates.items()}, x)
        for name, estimate in found.items():
            value = plain[name.replace("_orig_mod.", "")]
            assert abs(estimate.value - value) <= SIGMAS * estimate.stderr
    assert not compiled
    updates = random_updates(whole)
    exact = flerm_fx.measure(whole, updates, x, method="exact")  # which would differentiate twice
    assert not compiled and {e.note for e in exact.values()} == {""}
    whole(x)
    assert compiled


class Doubled(nn.Linear):
    """A module of its own, since ``Module.compile`` passes over those of torch."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", ["wrapped", "in place"])
def test_a_walk_compiles_nothing_and_leaves_what_is_compiled(kind: str, x: Tensor) -> None:
    """Settling steps of a live model with a compiled part are those of the part as written."""
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    def start(model: nn.Module) -> list[float]:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        targets = torch.arange(EXAMPLES)
        with (
            pytest.warns(flerm_fx.CaptureWarning, match="does not export"),
            flerm_fx.record(model, optimizer, x, targets, settle=3, method="live") as recorder,
        ):
            return [estimate.value for estimate in recorder.profile.start.values()]

    plain, part = Branching(), Branching()
    for model in (plain, part):
        torch.manual_seed(1)
        model.second = Doubled(9, 9)
    if kind == "wrapped":
        part.second = torch.compile(part.second, backend=backend)  # type: ignore[assignment]
    else:
        part.second.compile(backend=backend)
    assert start(part) == start(plain)
    assert not compiled
    with torch.no_grad():
        part(x)
    assert len(compiled) == 1


def test_live_models_stay_where_they_are(x: Tensor) -> None:
    model = Branching()
    with pytest.raises(
        flerm_fx.errors.InputError, match="method='live' runs the model where it is"
    ):
        flerm_fx.measure(model, random_updates(model), x, method="live", device="meta")


def test_a_prober_follows_the_weights(x: Tensor) -> None:
    model = Branching()
    prober = flerm_fx.Prober(model, x)
    updates = random_updates(model)
    first = prober.measure(updates, method="live", samples=12)
    with torch.no_grad():
        model.last.weight.mul_(3.0)
    second = prober.measure(updates, method="live", samples=12)
    assert second["first.weight"].value == pytest.approx(3 * first["first.weight"].value, rel=1e-4)


def test_a_walk_on_the_models_own_weights_is_heard() -> None:
    """Others stand in the places of a model's parameters while it takes simulated steps."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 4), torch.arange(6) % 3

    def model() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    base = model()
    adam = torch.optim.Adam(base.parameters(), lr=1e-3)
    profile = flerm_fx.record(base, adam, x, y, settle=0, method="exact").profile
    compiled = flerm_fx.compile(model(), profile, emit="param_groups", method="live", rtol=0.01)
    assert [row.status for row in compiled.assignments] == ["matched"] * 4
    for name, row in compiled.matches.items():
        assert row.base == ((name, 1),)
    for row in compiled.assignments:
        assert abs(row.multiplier - 1) <= 5 * row.error + 1e-5
