"""A few examples of a batch tell whether its examples influence each other."""

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import flerm_fx
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.tracing import capture
from flerm_fx.model.inputs import difference
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.coupling import EXAMPLES, LARGE, coupling, few
from flerm_fx.probe.planner import Method
from tests.cases import CASES, features, make, random_updates
from tests.rounding import rounding, terms


def captured() -> Capture:
    return capture(nn.Linear(3, 2), features(9, 3))


def test_a_few_are_taken_and_two_of_a_large_output() -> None:
    x = features(9, 3)
    assert torch.equal(few(captured(), x, (9, 2)), x[:EXAMPLES])  # type: ignore[arg-type]
    assert len(few(captured(), x, (9, LARGE))) == 2  # type: ignore[arg-type]
    assert few(captured(), x[:EXAMPLES], (EXAMPLES, 2)) is not None
    assert len(few(captured(), x[:3], (3, 2))) == 3  # type: ignore[arg-type]


class Branches(nn.Linear):
    """Another function of few examples."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - y.mean(0) if x.shape[0] > 6 else y


def test_all_are_taken_where_the_graph_does_not_hold_for_few() -> None:
    x = features(9, 3)
    torch.manual_seed(0)
    model = Branches(3, 2)
    graph = capture(model, x)
    assert few(graph, x, (9, 2)) is x
    updates = random_updates(model)
    estimates = CaptureProber(graph).estimate(dict(graph.parameters), updates, x, method="sampled")
    assert "influence each other" in estimates["weight"].note


class MixesInto(nn.Linear):
    """A little of each example gets to the next."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + 0.02 * y.roll(1, 0)


def test_coupling_of_a_large_batch_is_found() -> None:
    torch.manual_seed(0)
    x, model = features(40, 3), MixesInto(3, 2)
    graph = capture(model, x)
    estimates = CaptureProber(graph).estimate(
        dict(graph.parameters), random_updates(model), x, method="sampled"
    )
    assert "influence each other" in estimates["weight"].note


@pytest.mark.parametrize("rows", [1, 2**21 + 3])
def test_outputs_are_compared_a_part_at_a_time(rows: int) -> None:
    expected = torch.ones(rows, 4)
    output = expected.clone()
    assert difference(output, expected) == 0
    output[-1, -1] = 3
    assert difference(output, expected) == 2
    output[0, 0] = float("nan")
    assert not difference(output, expected) <= 2


def peak(run: object) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()  # type: ignore[operator]
    held = most = 0
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.slow
def test_a_first_call_holds_no_more_logits_than_a_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50_257, 8), nn.Linear(8, 50_257))
    x = torch.randint(50_257, (8, 64))

    def step() -> None:
        nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
        model.zero_grad()

    step()
    updates = random_updates(model)

    def first() -> None:
        graph = capture(model, x)
        CaptureProber(graph).estimate(
            dict(graph.parameters), updates, x, method="sampled", samples=1
        )

    first()
    assert peak(first) <= 1.1 * peak(step)


def weakly_coupled(dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A network that BatchNorm couples by a tenth of its outputs, which is within 16 steps in the
    last place of bfloat16.
    """

    class Weak(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.norm, self.second = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return self.second(hidden + 0.03 * self.norm(hidden))

    return Weak().to(dtype), features(16, 6).to(dtype)


@pytest.mark.parametrize("method", ["sampled", "live"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weak_coupling_is_found_in_half_precision_too(dtype: torch.dtype, method: Method) -> None:
    model, x = weakly_coupled(dtype)
    first = x[:EXAMPLES]
    with torch.no_grad():
        alone = torch.cat([model(torch.cat([e, e]))[:1] for e in first.split(1)])
        assert difference(alone, model(first)) < 0.125  # outputs alone do not tell
    updates = random_updates(model)
    estimates = flerm_fx.measure(model, updates, x, method=method)
    assert all("influence each other" in e.note for e in estimates.values() if e.samples)
    truth = flerm_fx.measure(model, updates, x, method="exact")
    for name, estimate in estimates.items():
        noise = rounding(terms(model), dtype, size=truth[name].value)
        assert abs(estimate.value - truth[name].value) <= 4.5 * estimate.stderr + noise, name


@pytest.mark.parametrize("name", CASES)
def test_half_precision_couples_nothing_that_float32_does_not(name: str) -> None:
    model, inputs = make(name)
    fine = capture(model, inputs)
    is_coupled = bool(coupling(fine, dict(fine.parameters), inputs))
    inputs = inputs.bfloat16() if inputs.is_floating_point() else inputs
    coarse = capture(model.bfloat16(), inputs)
    assert bool(coupling(coarse, dict(coarse.parameters), inputs)) == is_coupled
