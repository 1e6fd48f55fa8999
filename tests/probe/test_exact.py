"""Exact FSLRs against closed forms and against a loop of ``torch.func.jvp``."""

import itertools
import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import flerm_fx
from flerm_fx.capture.tracing import capture
from flerm_fx.model.inputs import select_output
from flerm_fx.probe.exact import exact
from tests.cases import CASES, DataDependent, features, make, random_updates
from tests.rounding import rounding, terms


def jvp_loop(model: nn.Module, updates: dict[str, Tensor], inputs: Tensor) -> dict[str, float]:
    """One ``torch.func.jvp`` of the whole model for each parameter."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = {}
    for name, update in updates.items():

        def function(value: Tensor, name: str = name) -> Tensor:
            buffers = {n: b.clone() for n, b in model.named_buffers()}
            state = {**parameters, **buffers, name: value}
            return select_output(functional_call(model, state, (inputs,)))

        with sdpa_kernel(SDPBackend.MATH):
            tangent = torch.func.jvp(function, (parameters[name],), (update,))[1]
        found[name] = tangent.square().mean().sqrt().item()
    return found


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_exact_equals_a_loop_of_jvp(name: str, mode: str) -> None:
    model, inputs = make(name)
    model.train(mode == "train")
    updates = random_updates(model)
    found = flerm_fx.measure(model, updates, inputs, method="exact")
    near = rounding(2 * terms(model) + inputs.numel())  # forward, tangent, and norms over the batch
    noise = near * max(estimate.value for estimate in found.values())
    for parameter, expected in jvp_loop(model, updates, inputs).items():
        assert found[parameter].value == pytest.approx(expected, rel=near, abs=noise), parameter
        assert found[parameter].method == "exact"
        assert found[parameter].stderr == 0.0


def test_linear_layer_has_the_closed_form() -> None:
    model, x = nn.Linear(6, 4).double(), features(10, 6).double()
    updates = random_updates(model)
    found = flerm_fx.measure(model, updates, x, method="exact")
    expected = (x @ updates["weight"].T).square().mean().sqrt().item()
    assert found["weight"].value == pytest.approx(expected, rel=1e-12)
    assert found["bias"].value == pytest.approx(
        updates["bias"].square().mean().sqrt().item(), rel=1e-12
    )


def test_deep_linear_network_has_the_closed_form() -> None:
    torch.manual_seed(0)
    sizes = (5, 7, 6, 4, 3)
    layers = [nn.Linear(i, o, bias=False) for i, o in itertools.pairwise(sizes)]
    model, x = nn.Sequential(*layers), features(11, 5)
    updates = random_updates(model)
    found = flerm_fx.measure(model, updates, x, method="exact")
    weights = [layer.weight.detach() for layer in layers]
    for level, name in enumerate(updates):
        h = x
        for i, weight in enumerate(weights):
            h = h @ (updates[name] if i == level else weight).T
        expected = h.square().mean().sqrt().item()
        assert found[name].value == pytest.approx(expected, rel=rounding(2 * terms(model)))


def test_a_memory_bound_changes_the_passes_and_not_the_numbers() -> None:
    model, inputs = make("pre-norm")
    updates = random_updates(model)
    captured = capture(model, inputs)
    parameters = dict(captured.parameters)
    whole = exact(captured, parameters, updates, inputs)
    one_by_one = exact(captured, parameters, updates, inputs, memory=1)
    assert one_by_one == pytest.approx(whole, rel=rounding(2 * terms(model)))


def test_dropout_tangents_use_the_mask_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 2)).double()
    x, updates = features(8, 4).double(), random_updates(model)
    torch.manual_seed(5)
    found = flerm_fx.measure(model, updates, x, method="exact")
    torch.manual_seed(5)
    mask = nn.functional.dropout(torch.ones(8, 6, dtype=torch.float64), 0.5, True)
    expected = ((x @ updates["0.weight"].T) * mask) @ model[2].weight.detach().T
    assert found["0.weight"].value == pytest.approx(expected.square().mean().sqrt().item())


def test_without_a_graph_the_numbers_are_the_same() -> None:
    torch.manual_seed(0)
    model, x = DataDependent(), features(6, 4)
    updates = random_updates(model)
    with pytest.warns(flerm_fx.CaptureWarning, match=r"does not export.*h\.sum\(\) > 1e9"):
        found = flerm_fx.measure(model, updates, x, method="exact")
    plain = nn.Sequential(model.first, nn.Tanh(), model.second)
    renamed = {name.replace("first", "0").replace("second", "2"): u for name, u in updates.items()}
    expected = jvp_loop(plain, renamed, x)
    values = [estimate.value for estimate in found.values()]
    assert values == pytest.approx(list(expected.values()), rel=rounding(2 * terms(model)))


def test_an_op_without_a_forward_derivative_goes_by_two_vjps() -> None:
    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            (x,) = ctx.saved_tensors
            return 3 * x**2 * gradient

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return Cube.apply(self.linear(x))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Model(), features(5, 3).double()
    update = random_updates(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", flerm_fx.CaptureWarning)
        found = flerm_fx.measure(model, update, x, method="exact")
    h = model.linear(x).detach()
    expected = 3 * h**2 * (x @ update["linear.weight"].T)
    assert found["linear.weight"].value == pytest.approx(math.sqrt(expected.square().mean().item()))
