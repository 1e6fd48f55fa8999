"""Capture: the graph is the model."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.capture.tracing import capture
from flerm_fx.ops.aliasing import is_functional
from tests.cases import CASES, DataDependent, features, make
from tests.rounding import assert_close, terms


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_the_graph_computes_the_model_and_its_gradients(name: str, mode: str) -> None:
    model, inputs = make(name)
    model.train(mode == "train")
    twin = copy.deepcopy(model)
    captured = capture(model, inputs)
    assert captured.graph_module is not None and captured.probe_module is not None
    more = torch.cat([inputs, inputs[:3]])  # another batch size
    outputs = []
    for function, module in ((captured.graph_module, model), (twin, twin)):
        output = function(more)
        tensor = output["logits"] if isinstance(output, dict) else output
        tensor.square().mean().backward()
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        outputs.append((tensor.detach(), gradients))
    (graph_output, graph_gradients), (output, gradients) = outputs
    count = 2 * terms(model) + more.numel()  # norms and gradients also sum over the batch
    assert_close(graph_output, output, count)
    assert graph_gradients.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for parameter, gradient in gradients.items():
        assert_close(graph_gradients[parameter], gradient, count, largest)
    for buffer, mine in zip(twin.buffers(), model.buffers(), strict=True):
        assert_close(mine, buffer, count)


@pytest.mark.parametrize("name", CASES)
def test_the_probe_graph_is_functional_and_returns_the_output(name: str) -> None:
    model, inputs = make(name)
    captured = capture(model, inputs)
    assert captured.probe_module is not None
    assert is_functional(captured.probe_module.graph)
    buffers = {k: b.clone() for k, b in model.named_buffers()}
    found = captured.probe_module(*captured.flat(inputs))
    for key, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[key]), key
    expected = captured.apply(dict(captured.parameters), inputs)
    assert_close(found, expected, terms(model) + inputs.numel())


def test_parameters_come_in_execution_order_with_ties_once() -> None:
    model, inputs = make("oddity")
    captured = capture(model, inputs)
    assert list(captured.parameters) == [
        "embedding.weight",
        "cls",
        "mix.weight",
        "mix.bias",
        "log_scale",
        "norm.weight",
        "norm.bias",
        "unused",
    ]
    assert captured.aliases["head.weight"] == "embedding.weight"
    assert "frozen" not in captured.parameters
    assert captured.parameters["mix.weight"] is model.mix.weight  # type: ignore[union-attr]


def test_regions_without_gradient_are_inlined_behind_detach() -> None:
    model, inputs = make("oddity")
    graph_module = capture(model, inputs).graph_module
    assert graph_module is not None
    targets = [str(node.target) for node in graph_module.graph.nodes]
    assert "aten.detach.default" in targets
    assert not [t for t in targets if "wrap_with_set_grad" in t or "_assert" in t or "_guards" in t]


def test_what_does_not_export_is_measured_with_a_warning_that_names_the_line() -> None:
    with pytest.warns(flerm_fx.CaptureWarning, match=r"cases\.py:\d+: if h\.sum\(\) > 1e9"):
        captured = capture(DataDependent(), features(4, 4))
    assert captured.graph_module is None
    assert list(captured.parameters) == [
        "first.weight",
        "first.bias",
        "second.weight",
        "second.bias",
    ]
    assert captured.reason


class Normalised(nn.Module):
    """A graph convolution, whose degrees are raised to a power in place."""

    def __init__(self, write: str) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.write = write

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        degree = torch.ones(x.shape[0]).index_add(0, edges[1], torch.ones(edges.shape[1]))
        if self.write == "pow_":
            degree = degree.pow_(-0.5)
        elif self.write == "pow_ of a tensor":
            degree = degree.pow_(torch.full((x.shape[0],), -0.5))
        elif self.write == "floor_divide_":
            degree = degree.floor_divide_(torch.tensor(2.0))
        else:
            degree = degree.polygamma_(1)
        h = self.fc(x) * degree[:, None]
        return h.index_add(0, edges[1], h[edges[0]])


@pytest.mark.parametrize("write", ["pow_", "pow_ of a tensor", "floor_divide_"])
def test_a_write_whose_twin_goes_by_another_name_is_exported(write: str) -> None:
    """``aten.pow_.Scalar`` is ``aten.pow.Tensor_Scalar`` out of place, and not ``aten.pow.Scalar``,
    whose first argument is a number.
    """
    model = Normalised(write)
    inputs = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 3, 4]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured = capture(model, inputs)
    assert captured.probe_module is not None and is_functional(captured.probe_module.graph)
    found = captured.probe_module(*captured.flat(inputs))
    assert_close(found, model(*inputs), terms(model) + inputs[0].numel())


def test_a_write_without_a_twin_is_a_reason_to_have_no_graph() -> None:
    """``aten.polygamma`` takes its arguments in another order than ``aten.polygamma_``."""
    inputs = torch.randn(5, 4), torch.tensor([[0, 1, 2], [1, 2, 3]])
    with pytest.warns(flerm_fx.CaptureWarning, match=r"its own.*polygamma_.*test_tracing\.py:\d+"):
        captured = capture(Normalised("polygamma_"), inputs)
    assert captured.probe_module is None


def test_what_only_the_probe_graph_raises_is_a_reason_to_have_no_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other_twin(graph: torch.fx.Graph) -> bool:
        for node in graph.nodes:
            if node.target is torch.ops.aten.relu.default:
                node.target = torch.ops.aten.pow.Scalar
                node.args = (*node.args, 2)
        return True

    monkeypatch.setattr("flerm_fx.capture.graphs.functionalize", other_twin)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with pytest.warns(
        flerm_fx.CaptureWarning, match=r"passes of its own.*RuntimeError: aten::pow\(\)"
    ):
        captured = capture(model, torch.randn(5, 4))
    assert captured.probe_module is None


def test_the_eager_order_is_that_of_execution_not_of_registration() -> None:
    class Swapped(DataDependent):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = self.second(x)
            return h if h.sum() > 1e9 else self.first(h)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", flerm_fx.CaptureWarning)
        captured = capture(Swapped(), features(4, 4))
    assert next(iter(captured.parameters)) == "second.weight"


class Keywords(nn.Module):
    """Takes what it reads by ``**kwargs``, as a ``PeftModel`` does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 3)

    def forward(self, *args: Tensor, scale: Tensor | None = None, **rest: Tensor) -> Tensor:
        value: Tensor = self.layer(rest["x"]) + rest.get("shift", 0.0)
        return value if scale is None else value * scale


@pytest.mark.parametrize("names", [["x"], ["x", "shift"], ["other", "shift", "scale", "x"]])
def test_keywords_that_forward_does_not_name_are_inputs_of_the_graph(names: list[str]) -> None:
    model, x = Keywords(), features(16, 8)
    inputs = {"x": x, "shift": x[:, 1:4], "scale": 1 + x[:, :1], "other": x}
    captured = capture(model, {name: inputs[name] for name in names})
    assert captured.graph_module is not None
    for rows in (16, 5):  # another batch size, in another order
        given = {name: inputs[name][:rows] for name in reversed(names)}
        assert_close(captured.graph_module(**given), model(**given), terms(model))


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = nn.Linear(3, 2).requires_grad_(False)
    with pytest.raises(flerm_fx.InputError, match="no trainable parameter"):
        capture(model, features(4, 3))
