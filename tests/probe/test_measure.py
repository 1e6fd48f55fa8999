"""``measure`` as an interface: no trace, clear errors."""

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.capture.tracing import capture
from flerm_fx.probe.planner import draws_needed, plan
from flerm_fx.probe.workload import Workload, workload
from tests.cases import CASES, features, make, random_updates
from tests.rounding import rounding, terms


@pytest.mark.parametrize("method", ["exact", "sampled", "kronecker", "auto"])
@pytest.mark.parametrize("name", ["convnet", "pre-norm", "oddity"])
def test_leaves_no_trace(name: str, method: str) -> None:
    model, inputs = make(name)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    buffers = [id(b) for b in model.buffers()]
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    flerm_fx.measure(model, random_updates(model), inputs, method=method)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert [id(b) for b in model.buffers()] == buffers
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[key]), key


def test_the_same_call_gives_the_same_numbers() -> None:
    model, inputs = make("resmlp")
    updates = random_updates(model)
    first = flerm_fx.measure(model, updates, inputs, method="sampled")
    assert flerm_fx.measure(model, updates, inputs, method="sampled") == first


def test_fslr_is_linear_in_the_update() -> None:
    model, inputs = make("mlp")
    updates = random_updates(model)
    one = flerm_fx.measure(model, updates, inputs, method="exact")
    three = flerm_fx.measure(model, {n: 3 * u for n, u in updates.items()}, inputs, method="exact")
    for name in updates:
        assert three[name].value == pytest.approx(
            3 * one[name].value, rel=rounding(2 * terms(model))
        )


def test_unused_parameters_have_an_fslr_of_zero() -> None:
    model, inputs = make("oddity")
    for method in ("exact", "sampled", "kronecker"):
        found = flerm_fx.measure(model, random_updates(model), inputs, method=method)  # type: ignore[arg-type]
        assert found["unused"].value == 0.0


def test_inputs_may_be_a_tuple_or_keywords() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor, gain: torch.Tensor | None = None) -> torch.Tensor:
            y = super().forward(x)
            return y if gain is None else y * gain

    torch.manual_seed(0)
    model, x, gain = Scaled(4, 2), features(5, 4), torch.full((5, 1), 2.0)
    updates = random_updates(model)
    plain = flerm_fx.measure(model, updates, x, method="exact")
    for inputs in ((x, gain), {"x": x, "gain": gain}, {"gain": gain, "x": x}):
        found = flerm_fx.measure(model, updates, inputs, method="exact")
        expected = 2 * plain["weight"].value
        assert found["weight"].value == pytest.approx(expected, rel=rounding(2 * terms(model)))
    assert flerm_fx.measure(model, updates, {"x": x, "gain": None}, method="exact") == plain


def test_output_fn_picks_the_output() -> None:
    model, inputs = make("oddity")
    updates = random_updates(model)
    hidden = flerm_fx.measure(
        model, updates, inputs, method="exact", output_fn=lambda o: o["hidden"]
    )
    assert hidden != flerm_fx.measure(model, updates, inputs, method="exact")


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_models_are_measured(case: str) -> None:
    model, inputs = make(case)
    updates = random_updates(model)
    exact = flerm_fx.measure(model, updates, inputs, method="exact")
    half = flerm_fx.measure(
        model.bfloat16(),
        {n: u.bfloat16() for n, u in updates.items()},
        inputs.bfloat16() if inputs.is_floating_point() else inputs,
        method="exact",
    )
    for name, estimate in exact.items():
        if estimate.value > 1e-4:
            # bfloat16 keeps 8 bits; errors of a dozen layers add up
            assert half[name].value == pytest.approx(estimate.value, rel=0.15), name


def work(parameters: int) -> Workload:
    """A chain of equal layers."""
    return Workload(parameters, parameters / 2, per_random_number=0.0, ungraphed=False)


def test_the_plan_is_the_cheapest_that_reaches_the_tolerance() -> None:
    few_outputs = plan(work(100), rtol=0.01, examples=8, coordinates=3).cotangents
    assert few_outputs is not None and few_outputs.every
    assert plan(work(4), rtol=0.05, examples=4, coordinates=999).cotangents is None
    many_examples = plan(work(99), rtol=0.05, examples=256, coordinates=999).cotangents
    assert many_examples is not None and many_examples.draws == 1
    assert plan(work(20), rtol=0.05, examples=1, coordinates=9 * 256).cotangents is None
    assert draws_needed(1e-6, examples=1, coordinates=7) == 7


def test_work_is_the_share_of_the_graph_behind_each_parameter() -> None:
    # Tangents pass the last product, to 8 times as many, by way of its triangular factor.
    layers = [nn.Linear(256, 256, bias=False) for _ in range(4)]
    model = nn.Sequential(*layers, nn.Linear(256, 2048, bias=False))
    captured = capture(model, torch.zeros(16, 256))
    assert captured.probe_module is not None
    found = workload(captured.probe_module.graph, tuple(captured.parameters))
    # In units of a small product, the last is 8: (4 + 3 + 2 + 1) and 8, of 12.
    assert found.passes == pytest.approx((10 + 8) / 12, rel=0.05)
    assert found.parameters == 5 and not found.ungraphed


def measure_linear(**changes: object) -> dict[str, flerm_fx.Estimate]:
    model = nn.Linear(3, 2)
    arguments: dict[str, object] = {"updates": random_updates(model), "inputs": features(5, 3)}
    return flerm_fx.measure(model, **{**arguments, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"inputs": torch.zeros(1, 3)}, "a batch of 1; at least 2 examples"),
        ({"inputs": 3}, "inputs must be a tensor, .* a DataLoader or another iterable, got int"),
        ({"inputs": []}, "the list of inputs is empty"),
        ({"inputs": {}}, "no tensor"),
        ({"inputs": torch.tensor(1.0)}, "scalar tensor"),
        ({"updates": {"wieght": torch.zeros(2, 3)}}, "'wieght'.*nearest: weight"),
        (
            {"updates": {"weight": torch.zeros(3, 2)}},
            r"'weight' has shape \(3, 2\), expected \(2, 3\)",
        ),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"rtol": 0.0}, "rtol must be a finite number above 0 and below 1, got 0.0"),
        ({"method": "sampled", "samples": 0}, "samples must be a whole number of at least 1"),
        ({"method": "exact", "samples": 3}, "samples is for the methods that draw, and not for me"),
        ({"generator": 3}, "generator must be a torch.Generator, got int"),
        ({"updates": None}, "updates must be a dict .*, got None"),
        (
            {"output_fn": lambda output: 3},
            "output_fn must return a floating tensor, batch first, got int",
        ),
    ],
)
def test_bad_input_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(flerm_fx.InputError, match=message):
        measure_linear(**changes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_updates_that_are_not_finite_name_the_parameter(bad: float) -> None:
    update = torch.zeros(2, 3)
    update[0, 1] = bad
    with pytest.raises(flerm_fx.EstimateError, match="update of parameter 'weight' has 1 NaN"):
        measure_linear(updates={"weight": update})


def test_outputs_that_overflow_name_the_parameter() -> None:
    with pytest.raises(flerm_fx.EstimateError, match="FSLR of parameter 'weight' is"):
        measure_linear(
            updates={"weight": torch.full((2, 3), 1e38)},
            inputs=features(5, 3) * 1e6,
            method="exact",
        )


def test_a_model_without_floating_output_is_refused() -> None:
    class Argmax(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(-1)

    model = Argmax(3, 2)
    with pytest.raises(flerm_fx.InputError, match="returned no floating tensor.*output_fn"):
        flerm_fx.measure(model, random_updates(model), features(4, 3))


def test_an_unregistered_parameter_is_refused_by_name() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.gains = [nn.Parameter(torch.ones(3))]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * self.gains[0]

    model = Listed()
    with pytest.raises(flerm_fx.InputError, match=r"gains holds a Parameter.*not registered"):
        flerm_fx.measure(model, random_updates(model), features(4, 3))


def test_a_model_that_cannot_run_is_refused_with_its_own_error() -> None:
    message = r"^Linear cannot be run on inputs of float32 \(4, 7\); pass batches .*: RuntimeError"
    for method in ("auto", "live"):
        with pytest.raises(flerm_fx.CaptureError, match=message):
            flerm_fx.measure(nn.Linear(3, 2), {}, features(4, 7), method=method)  # type: ignore[arg-type]
