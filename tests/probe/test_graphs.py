"""Inputs that are no batch: graphs of nodes and edges, batched graphs, ragged and single ones."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.model.inputs import Inputs

NODES, EDGES, GRAPHS = 7, 12, 3


class MessagePassing(nn.Module):
    """Nodes get what a layer makes of their neighbours, summed, beside their own."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.neighbours = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.own = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def nodes(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        h = self.embed(x)
        for neighbours, own in zip(self.neighbours, self.own, strict=True):
            messages = neighbours(h)[source]
            h = h + (own(h) + torch.zeros_like(h).index_add(0, target, messages)).tanh()
        return h

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.head(self.nodes(x, edge_index))


class Pooled(MessagePassing):
    """An output for each of several graphs, whose nodes stand one after another."""

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        h = self.nodes(x, edge_index)
        index = batch[:, None].expand_as(h)
        return self.head(h.new_zeros(GRAPHS, h.shape[1]).scatter_add(0, index, h))


class Segments(nn.Module):
    """The sum of what a layer makes of each node, by graph: no edges, so that sizes agree."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        h = self.first(x).tanh()
        return self.head(h.new_zeros(GRAPHS, 6).index_add(0, batch, h))


def graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NODES, 4, generator=generator)
    return x, torch.randint(NODES, (2, EDGES), generator=generator)


BATCH = torch.tensor([0, 0, 0, 1, 1, 2, 2])


def cases() -> dict[str, tuple[nn.Module, Inputs]]:
    torch.manual_seed(0)
    x, edges = graph()
    return {
        "nodes and edges": (MessagePassing(5, 2), (x, edges)),
        "keywords": (MessagePassing(5, 2), {"x": x, "edge_index": edges}),
        "batched graphs": (Pooled(5, 2), (x, edges, BATCH)),
        "batched without edges": (Segments(), (x, BATCH)),
    }


def by_differentiation(
    model: nn.Module, updates: Mapping[str, Tensor], inputs: Inputs
) -> dict[str, float]:
    """FSLRs from the definition: the root mean square of J u, by one jvp for each parameter."""
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    kwargs = inputs if isinstance(inputs, dict) else {}
    state = {name: p.detach() for name, p in model.named_parameters()}
    found = {}
    for name, update in updates.items():

        def moved(value: Tensor, name: str = name) -> Any:
            return torch.func.functional_call(model, {**state, name: value}, args, kwargs)

        _, tangent = torch.func.jvp(moved, (state[name],), (update,))
        found[name] = math.sqrt(float(tangent.square().mean()))
    return found


def random_updates(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", list(cases()))
def test_exact_fslrs_are_those_of_the_definition(name: str) -> None:
    model, inputs = cases()[name]
    updates = random_updates(model)
    expected = by_differentiation(model, updates, inputs)
    for method in ("exact", "auto"):
        found = flerm_fx.measure(model, updates, inputs, method=method)
        for parameter, value in expected.items():
            assert found[parameter].value == pytest.approx(value, rel=1e-4), (method, parameter)


WHOLE = "the inputs' first dimensions differ, so all of them are one example"


@pytest.mark.parametrize("name", list(cases()))
def test_sampled_fslrs_are_right_within_their_errors(name: str) -> None:
    note = WHOLE if name != "batched without edges" else "examples influence each other"
    model, inputs = cases()[name]
    updates = random_updates(model)
    expected = by_differentiation(model, updates, inputs)
    for samples in (1, 5):
        found = flerm_fx.measure(model, updates, inputs, method="sampled", samples=samples)
        for parameter, value in expected.items():
            assert found[parameter].value > 0, parameter
            stderr = found[parameter].stderr * max(1.0, value / found[parameter].value)
            assert abs(found[parameter].value - value) < 5 * stderr + 1e-4 * value
            assert found[parameter].note.startswith(note)


def test_one_example_without_a_batch_is_measured_as_it_is() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(4)
    updates = random_updates(model)
    expected = by_differentiation(model, updates, x)
    for method in ("exact", "auto", "sampled"):
        with pytest.warns(flerm_fx.CaptureWarning, match="for a batch of 4 alone"):
            found = flerm_fx.measure(model, updates, x, method=method)
        for parameter, value in expected.items():
            stderr = found[parameter].stderr * max(1.0, value / found[parameter].value)
            assert abs(found[parameter].value - value) < 5 * stderr + 1e-4 * value


def test_a_model_of_graphs_is_recorded_and_compiled_at_another_size() -> None:
    inputs, targets = graph(), torch.arange(NODES) % 2
    torch.manual_seed(0)
    small, large = MessagePassing(5, 2), MessagePassing(9, 4)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
    profile = flerm_fx.record(small, optimizer, inputs, targets).profile
    compiled = flerm_fx.compile(large, profile)
    assert compiled.matches["own.3.weight"].base == (("own.1.weight", 0.5),)
    assert all(check.passed for check in compiled.check())
    assert torch.allclose(compiled(*inputs), large(*inputs), atol=1e-6)
    x, edges = torch.randn(11, 4), torch.randint(11, (2, 5))  # a graph of another size
    assert torch.allclose(compiled(x, edges), large(x, edges), atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (lambda x: x[:1], r"a batch of 1; .* passed twice, as with torch\.cat"),
        (
            lambda x: torch.nested.nested_tensor([x[:2], x[:3]], layout=torch.jagged),
            "nested tensor, .*: pad it, .* and have the model take the lengths or a mask",
        ),
        (lambda x: {"input": x.to_sparse()}, r"inputs\['input'\] has the layout torch\.sparse_coo"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_advice(inputs: Any, message: str) -> None:
    model = nn.Linear(4, 3)
    given = inputs(torch.randn(5, 4))
    with pytest.raises(flerm_fx.InputError, match=message):
        flerm_fx.measure(model, random_updates(model), given)
