"""muP's rates on a model as it is: the steps that muP itself takes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments import mup_models
from experiments.axes import AXES, Axis
from experiments.training import optimizers
from experiments.work import build
from tests.rounding import assert_close, terms


@pytest.fixture(params=["mlp-width", "pre-width"])
def axis(request: pytest.FixtureRequest) -> Axis:
    return AXES[request.param]


def test_the_base_itself_is_trained_at_the_rate(axis: Axis) -> None:
    rates = mup_models.rates(axis, 1)
    assert set(rates) == {name for name, _ in build(axis, 1, 0).named_parameters()}
    assert set(rates.values()) == {1.0}


def test_rates_fall_with_the_widths_that_a_weight_reads() -> None:
    rates = mup_models.rates(AXES["mlp-width"], 4)
    for name, rate in rates.items():
        wide = name.endswith("weight") and name != "input.weight"
        assert math.isclose(rate, 0.25 if wide else 1.0), name


def test_a_step_moves_the_function_as_mup_does(axis: Axis) -> None:
    scale, readout = 4, "output" if axis.model == "resmlp" else "logits"
    theirs, ours = mup_models.build(axis, scale, 0), build(axis, scale, 1)
    state = {**theirs.state_dict()}
    state[f"{readout}.weight"] = state[f"{readout}.weight"] / scale
    ours.load_state_dict(state)
    if axis.data == "images":
        inputs, targets = torch.randn(16, 784), torch.randint(10, (16,))
    else:
        inputs = torch.randint(256, (4, 64))
        targets = inputs.roll(-1, 1)
    before = ours(inputs)
    assert_close(theirs(inputs), before, terms(ours))
    (rule,) = optimizers("adam", ours, 1e-3, mup_models.rates(axis, scale))
    _step(theirs, mup_models.optimizer(theirs, 1e-3), inputs, targets)
    _step(ours, rule, inputs, targets)
    moved = (ours(inputs) - before).norm()
    assert moved > 0.01 * before.norm()
    assert (theirs(inputs) - ours(inputs)).norm() < 0.01 * moved  # eps beside small gradients


def _step(model: nn.Module, rule: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    outputs = model(inputs)
    F.cross_entropy(outputs.flatten(0, -2), targets.flatten()).backward()
    rule.step()
