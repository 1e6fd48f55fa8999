"""Taps: projections of each example from one backward pass of the batch."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

import flerm_fx
from flerm_fx.capture.tracing import capture
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.taps import TapNodes, by_taps, no_axis, products
from tests.cases import make, random_updates
from tests.rounding import rounding, terms


def example_by_example(
    model: nn.Module, updates: dict[str, Tensor], inputs: Tensor, rows: Tensor
) -> Tensor:
    """The projections, by a backward pass of the model itself for each example and row."""
    found = torch.zeros(len(inputs), rows.shape[1], len(updates), dtype=rows.dtype)
    parameters = dict(model.named_parameters())
    for n in range(len(inputs)):
        output = model(torch.stack([inputs[n], inputs[n]]))[0]
        for i, row in enumerate(rows[n]):
            gradients = torch.autograd.grad(
                output.flatten() @ row, [parameters[u] for u in updates], retain_graph=True
            )
            for column, (gradient, update) in enumerate(
                zip(gradients, updates.values(), strict=True)
            ):
                found[n, i, column] = (gradient * update).sum()
    return found


@pytest.mark.parametrize("name", ["mlp", "pre-norm", "tied"])
def test_projections_are_those_of_single_examples(name: str) -> None:
    model, inputs = make(name)
    model = model.double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    updates = random_updates(model)
    captured = capture(model, inputs)
    assert captured.probe_module is not None
    updates = {parameter: updates[parameter] for parameter in captured.parameters}
    tapped = TapNodes(tuple(updates))(captured.probe_module).graph_module
    assert no_axis(tapped.graph) == ""
    coordinates = model(inputs)[0].numel()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(inputs), 2, coordinates, dtype=torch.float64, generator=generator)
    parameters = {parameter: p.detach() for parameter, p in captured.parameters.items()}
    found = by_taps(tapped, parameters, updates, captured.flat(inputs), rows)
    expected = example_by_example(model, updates, inputs, rows)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(4, 6, 3), (6, 3), (3,), (4, 1, 3), (1, 6, 1), (1,)])
def test_inner_products_with_what_broadcasts(axis: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    cotangent = torch.randn(4, 6, 3, dtype=torch.float64)
    tangent = torch.randn(shape, dtype=torch.float64)
    examples = 2  # with 2 or 3 entries each along the axis
    each = (cotangent * tangent).movedim(axis, 0).reshape(examples, -1).sum(1)
    assert torch.allclose(products(cotangent, tangent, axis, examples), each, rtol=1e-12)
    total = products(cotangent, tangent, None, 1)
    assert torch.allclose(total, each.sum().unsqueeze(0), rtol=1e-12)


class Prompted(nn.Module):
    """What it learns to put before each example has no axis for examples until it is repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Embedding(3, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(3).expand(x.shape[0], 3)[:1]
        prompt = torch.tanh(self.mix(self.prompt(places)))
        together = torch.cat([prompt.expand(x.shape[0], 3, 4), x], 1)
        size = x.sum((1, 2), keepdim=True)
        return self.out(together) * size  # type: ignore[no-any-return]


def test_what_is_one_for_all_examples_is_carried_on() -> None:
    torch.manual_seed(0)
    model, x = Prompted(), torch.randn(5, 6, 4)
    updates = random_updates(model)
    exact = flerm_fx.measure(model, updates, x, method="exact")
    sampled = flerm_fx.measure(model, updates, x, method="sampled", samples=18)
    near = rounding(2 * terms(model) + 2 * 18)
    for name, estimate in sampled.items():
        assert estimate.note == ""
        # 18 orthonormal rows in 18 coordinates leave nothing to chance.
        assert estimate.value == pytest.approx(exact[name].value, rel=near)


def test_a_recurrent_network_tells_its_examples_apart() -> None:
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 5, batch_first=True)
            self.out = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]

    model, x = Last(), torch.randn(6, 7, 3)
    updates = random_updates(model)
    exact = flerm_fx.measure(model, updates, x, method="exact")
    sampled = flerm_fx.measure(model, updates, x, method="sampled", samples=3)
    for name, estimate in sampled.items():
        assert estimate.note == ""
        assert abs(estimate.value - exact[name].value) <= 4.5 * estimate.stderr


def test_a_lost_axis_is_named_and_takes_the_batch_as_one() -> None:
    model, inputs = make("mlp")
    captured = capture(model, inputs)
    assert captured.probe_module is not None
    graph = copy.deepcopy(captured.probe_module.graph)
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
        node.meta.pop("val")
    lost = fx.GraphModule(captured.probe_module, graph)
    tapped = TapNodes(tuple(captured.parameters))(lost).graph_module
    assert no_axis(tapped.graph) == "examples have no one axis in the output of aten.linear"


def test_draws_of_an_estimate_share_their_tangents_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make("pre-norm")
    updates = random_updates(model)
    prober = CaptureProber(capture(model, inputs))
    parameters = dict(prober.captured.parameters)

    def values() -> list[float]:
        found = prober.estimate(parameters, updates, inputs, method="sampled", samples=3)
        return [estimate.value for estimate in found.values()]

    kept = values()
    monkeypatch.setattr("flerm_fx.probe.taps.KEPT", 0)
    assert values() == pytest.approx(kept, rel=rounding(2 * terms(model)))
