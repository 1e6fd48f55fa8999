"""The conv net."""

import math

import pytest
import torch

from models.convnet import ConvNet
from tests.models.checks import assert_exports, assert_gradients_reach_all, assert_normal
from tests.rounding import assert_close, terms


def small(**changes: int) -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(**changes)


@pytest.mark.parametrize("channels,size", [(3, 16), (1, 28), (3, 7)])
def test_outputs_are_examples_by_classes(channels: int, size: int) -> None:
    images = torch.randn(5, channels, size, size)
    assert small(in_channels=channels, classes=4)(images).shape == (5, 4)


def test_width_multiplier_multiplies_every_width() -> None:
    base, wide = small(width=4), small(width=4, width_multiplier=3)
    for (name, narrow), parameter in zip(base.named_parameters(), wide.parameters(), strict=True):
        kept = {"first.weight": {1}, "logits.weight": {0}, "logits.bias": {0}}.get(name, set())
        for axis, size in enumerate(narrow.shape):
            factor = 1 if axis in kept or axis > 1 else 3
            assert parameter.shape[axis] == factor * size, name


@pytest.mark.parametrize("width", [8, 32])
def test_initial_weights(width: int) -> None:
    model = small(width=width)
    assert_normal(model.first.weight, math.sqrt(2 / (9 * 3)))
    assert_normal(model.second.weight, math.sqrt(2 / (9 * width)))
    assert_normal(model.residual.first.weight, math.sqrt(2 / (9 * 2 * width)))
    assert_normal(model.residual.second.weight, math.sqrt(2 / (9 * 2 * width)))
    assert_normal(model.logits.weight, (2 * width) ** -0.5)


def test_biases_start_at_zero_and_norms_at_one() -> None:
    for name, parameter in small().named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_examples_are_coupled_in_training_alone() -> None:
    model, first = small(), torch.randn(5, 3, 16, 16)
    second = torch.cat([first[:1], torch.randn(4, 3, 16, 16)])
    assert (model(first)[0] - model(second)[0]).abs().max() > 1e-2
    model.eval()
    assert_close(model(first)[0], model(second)[0], terms(model) + first[0].numel())


def test_running_statistics_move_in_training_alone() -> None:
    model, images = small(), torch.randn(5, 3, 16, 16)
    model.eval()(images)
    assert model.first_norm.num_batches_tracked == 0
    model.train()(images)
    assert model.first_norm.num_batches_tracked == 1
    expected = 0.1 * model.first(images).mean(dim=(0, 2, 3))
    assert_close(model.first_norm.running_mean, expected, terms(model.first) + images[:, 0].numel())


def test_gradients_reach_all_parameters() -> None:
    assert_gradients_reach_all(small(), torch.randn(5, 3, 16, 16, dtype=torch.float64))


@pytest.mark.parametrize("training", [False, True])
def test_exports(training: bool) -> None:
    model = small().train(training)
    assert_exports(model, torch.randn(3, 3, 16, 16), torch.randn(6, 3, 16, 16))
