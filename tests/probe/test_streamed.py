"""Weights that stream: the same bits, and no more of them at once than an operation reads."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import flerm_fx
from benchmarks.gathers import Gathers
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.outlined import capture_outline
from flerm_fx.capture.tracing import capture
from flerm_fx.model.outline import outline
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.cotangent import Cotangents
from flerm_fx.probe.coupling import coupling, disagreement
from flerm_fx.probe.sampled import output_size
from flerm_fx.probe.taps import TapNodes, by_taps
from tests.cases import CASES, DataDependent, make, random_updates

CPU = torch.device("cpu")


class Derived(nn.Module):
    """Weights that others are made of, in views and in new memory, one that is not trained, and
    constants."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.packed = nn.Parameter(torch.randn(2, 5, 5))
        self.log_gain = nn.Parameter(torch.randn(5))
        self.frozen = nn.Parameter(torch.randn(5, 5), requires_grad=False)
        self.register_buffer("shift", torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.packed.transpose(1, 2).unbind()
        x = torch.relu(x @ first + self.shift) @ self.frozen
        scale = torch.arange(5, device=x.device, dtype=x.dtype)
        x = x @ (second * self.log_gain.exp()) + scale
        return x * torch.tensor(0.5, device=x.device) + x.new_tensor([0.25])


def tapped(captured: Capture, names: tuple[str, ...]) -> fx.GraphModule:
    assert captured.probe_module is not None
    graph = copy.deepcopy(captured.probe_module.graph)
    root = fx.GraphModule(captured.probe_module, graph, class_name="Tapped")
    TapNodes(names)(root)
    return root


def size(tensors: Mapping[str, Tensor], kind: type = sum) -> int:
    return int(kind(t.numel() * t.element_size() for t in tensors.values()))


@pytest.mark.parametrize(
    "name,rows",
    [("tied", 2), ("derived", 1), ("oddity", 1)]
    + [pytest.param(name, 1, marks=pytest.mark.slow) for name in CASES if name != "oddity"],
)
def test_projections_are_bit_for_bit_those_of_whole_weights(name: str, rows: int) -> None:
    model, inputs = (Derived(), torch.randn(4, 5)) if name == "derived" else make(name)
    updates = random_updates(model)
    own, elsewhere = capture(model, inputs), capture_outline(model, inputs, device=CPU)
    names = tuple(n for n in own.parameters if n in updates)
    updates = {n: updates[n] for n in names}
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    examples, coordinates = output_size(own, parameters, inputs)
    assert output_size(elsewhere, parameters, inputs) == (examples, coordinates)
    (q,) = Cotangents(examples, coordinates, rows).sets(torch.Generator().manual_seed(0))
    gathers = Gathers()
    torch.manual_seed(1)
    expected = by_taps(tapped(own, names), parameters, updates, own.flat(inputs), q)
    torch.manual_seed(1)
    graph = tapped(elsewhere, names)
    found = by_taps(graph, parameters, updates, elsewhere.flat(inputs), q, gathers)
    assert torch.equal(found, expected)
    assert gathers.largest == size(parameters, max)
    # With a weight its bias, at most; tangents of the first row are kept for the second.
    assert gathers.most <= 1.3 * gathers.largest or rows > 1 or name == "derived"
    assert gathers.traffic <= 5 * (1 + rows) * size(parameters)


@pytest.mark.parametrize("name", ["resmlp", pytest.param("pre-norm", marks=pytest.mark.slow)])
def test_what_couples_examples_is_found_alike(name: str) -> None:
    model, inputs = make(name)
    own, elsewhere = capture(model, inputs), capture_outline(model, inputs, device=CPU)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    updates = {n: u for n, u in random_updates(model).items() if n in own.parameters}
    assert coupling(elsewhere, parameters, inputs) == coupling(own, parameters, inputs) == ""
    graph = tapped(elsewhere, tuple(updates))
    assert disagreement(elsewhere, graph, parameters, updates, inputs) == ""
    wrong = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    tap = next(node for node in wrong.graph.nodes if "axes" in node.meta)
    tap.update_arg(4, {})  # it hears nothing
    assert "differ" in disagreement(elsewhere, wrong, parameters, updates, inputs)


def test_examples_that_influence_each_other_are_found() -> None:
    model, inputs = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(5, 3)
    captured = capture_outline(model, inputs, device=CPU)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    assert "examples influence each other" in coupling(captured, parameters, inputs)


class Tied(nn.Module):
    """Weights that are not trained, under two names, of which the graph has the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.middle = nn.Embedding(8, 4), nn.Linear(4, 4)
        self.readout = nn.Linear(4, 8, bias=False)
        self.readout.weight = self.embedding.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.middle(self.embedding(x)))


@pytest.mark.parametrize("method", ["sampled", "exact", "full_cov"])
def test_tied_weights_that_are_not_trained_are_read_under_any_name(method: Any) -> None:
    model, x = Tied(), torch.randint(8, (4, 3))
    updates = {"middle.weight": torch.ones(4, 4)}
    moved = {name: p.detach() + 1 for name, p in model.named_parameters()}
    found = [
        CaptureProber(captured).estimate(moved, updates, x, method=method, samples=2)
        for captured in (capture_outline(model, x, device=CPU), capture(model, x))
    ]
    assert found[0] == found[1]
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(moved[name])
    assert found[0] == flerm_fx.measure(
        model, updates, x, method=method, samples=None if method == "exact" else 2
    )


def test_an_outline_holds_no_values_and_leaves_its_model_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = copy.deepcopy(model.state_dict())
    twin = outline(model)
    assert all(t.is_meta for t in (*twin.parameters(), *twin.buffers()))
    captured = capture_outline(model, torch.randn(5, 3), device=CPU)
    assert all(p.is_meta for p in captured.model.parameters())
    for name, buffer in model.named_buffers():
        assert torch.equal(captured.model.get_buffer(name), buffer)
        assert captured.model.get_buffer(name) is not buffer
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_has_no_graph_is_refused_by_name() -> None:
    model = DataDependent()
    with pytest.raises(
        flerm_fx.CaptureError,
        match=r"^DataDependent is to be measured with weights that are gathered .* has none: .*"
        r"Measure it in one process, before it is sharded",
    ):
        capture_outline(model, torch.randn(4, 3), device=CPU)


def test_weights_that_are_no_parameters_are_refused_by_name() -> None:
    captured = capture_outline(nn.Linear(3, 2), torch.randn(4, 3), device=CPU)
    parameters, updates = {"weight": torch.ones(2, 3)}, {"weight": torch.ones(2, 3)}
    graph, q = tapped(captured, ("weight",)), torch.ones(4, 1, 2)
    with pytest.raises(flerm_fx.InputError, match=r"'bias' has no values on cpu and is no"):
        by_taps(graph, parameters, updates, captured.flat(torch.randn(4, 3)), q)


def test_a_device_to_compute_on_is_refused_if_there_is_none() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    update = {"bias": torch.ones(2)}
    assert flerm_fx.measure(model, update, x, device="cpu")["bias"].value == pytest.approx(1.0)
    with pytest.raises(flerm_fx.InputError, match=r"^device must be a device that torch can use"):
        flerm_fx.measure(model, update, x, device="nowhere")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_weights_on_the_cpu_are_measured_on_a_gpu() -> None:
    model, inputs = make("pre-norm")
    updates = random_updates(model)
    here = flerm_fx.measure(model, updates, inputs, method="exact")
    there = flerm_fx.measure(model, updates, inputs, method="exact", device="cuda")
    drawn = flerm_fx.measure(model, updates, inputs, method="auto", device="cuda")
    for name, estimate in here.items():
        assert there[name].value == pytest.approx(estimate.value, rel=1e-3)
        assert drawn[name].value == pytest.approx(estimate.value, abs=5 * drawn[name].stderr)
