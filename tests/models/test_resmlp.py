"""The residual MLP."""

import math
from typing import Literal

import pytest
import torch
from torch import nn

from models.resmlp import ResMLP
from tests.models.checks import (
    SIGMAS,
    assert_exports,
    assert_gradients_reach_all,
    assert_normal,
)
from tests.rounding import assert_close, terms


def small(**changes: int) -> ResMLP:
    torch.manual_seed(0)
    return ResMLP(in_features=12, out_features=5, width=16, depth=3, **changes)


def test_outputs_are_examples_by_features() -> None:
    assert small()(torch.randn(7, 12)).shape == (7, 5)


def test_images_are_flattened() -> None:
    images = torch.randn(4, 3, 2, 2)
    model = small()
    assert_close(model(images), model(images.reshape(4, 12)), terms(model))


def test_defaults_are_the_papers_base_model_for_cifar10() -> None:
    model = ResMLP()
    assert model.input.weight.shape == (128, 3 * 32 * 32)
    assert [len(block.layers) for block in model.blocks] == [1, 1, 1, 1]
    assert model.output.weight.shape == (10, 128)


def test_multipliers_multiply_width_depth_and_block_size() -> None:
    model = small(block_size=2, width_multiplier=4, depth_multiplier=2, block_size_multiplier=3)
    assert len(model.blocks) == 6
    for block in model.blocks:
        assert [tuple(layer.weight.shape) for layer in block.layers] == [(64, 64)] * 6


def test_width_multiplier_is_a_width() -> None:
    wide, multiplied = (
        [p.shape for p in ResMLP(12, 5, **size).parameters()]
        for size in ({"width": 32}, {"width": 8, "width_multiplier": 4})
    )
    assert wide == multiplied


def test_a_block_is_the_formula() -> None:
    torch.manual_seed(0)
    model = ResMLP(
        12, 5, width=16, depth=1, block_size=2, depth_multiplier=4, depth_scaling="forward"
    )
    block, x = model.blocks[0], torch.randn(7, 16)
    first, second = block.layers
    expected = x + second(first(x.relu()).relu()) / 2
    assert_close(block(x), expected, terms(block))


def test_a_small_readout_shrinks_with_the_width_multiplier_alone() -> None:
    torch.manual_seed(0)
    model = ResMLP(12, 500, 16, 1, width_multiplier=9, small_readout=True)
    assert_normal(model.output.weight, 144**-0.5 / 3)
    assert_normal(model.blocks[0].layers[0].weight, 2**0.5 * 144**-0.5)


@pytest.mark.parametrize("width", [32, 128])
@pytest.mark.parametrize("block_size", [1, 2])
def test_initial_weights_with_depth_in_the_initialisation(width: int, block_size: int) -> None:
    torch.manual_seed(0)
    model = ResMLP(
        200, 100, width, 2, block_size, depth_multiplier=9, depth_scaling="init", init_scale=0.5
    )
    assert_normal(model.input.weight, 200**-0.5)
    assert_normal(model.output.weight, width**-0.5)
    blocks = torch.stack([p for n, p in model.blocks.named_parameters() if n.endswith("weight")])
    assert_normal(blocks, 0.5 * math.sqrt(2 / width) * 9 ** (-0.5 / block_size))
    assert all(block.branch_scale == 1 for block in model.blocks)


def test_initial_weights_with_depth_in_the_forward_pass() -> None:
    torch.manual_seed(0)
    model = ResMLP(12, 5, 64, 2, depth_multiplier=9, depth_scaling="forward")
    blocks = torch.stack([p for n, p in model.blocks.named_parameters() if n.endswith("weight")])
    assert_normal(blocks, math.sqrt(2 / 64))
    assert all(block.branch_scale == pytest.approx(1 / 3) for block in model.blocks)


def test_biases_start_at_zero() -> None:
    model = small()
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    assert len(biases) == 5
    assert all((bias == 0).all() for bias in biases)


@pytest.mark.parametrize("depth_scaling", ["init", "forward"])
@pytest.mark.parametrize("block_size", [1, 3])
@pytest.mark.parametrize("depth_multiplier", [1, 4])
def test_variance_stays_bounded_with_depth(
    depth_multiplier: int, block_size: int, depth_scaling: Literal["init", "forward"]
) -> None:
    torch.manual_seed(0)
    growth = []
    for _ in range(30):
        model = ResMLP(
            8,
            5,
            256,
            2,
            block_size,
            depth_multiplier=depth_multiplier,
            depth_scaling=depth_scaling,
        )
        x = model.input(torch.randn(1, 8))
        y = nn.Sequential(*model.blocks)(x)
        growth.append((y.square().sum() / x.square().sum()).item())
    samples = torch.tensor(growth)
    expected = (1 + 1 / depth_multiplier) ** (2 * depth_multiplier)
    assert abs(samples.mean() - expected) < SIGMAS * samples.std() / math.sqrt(30)


def test_gradients_reach_all_parameters() -> None:
    assert_gradients_reach_all(small(block_size=2), torch.randn(7, 12, dtype=torch.float64))


def test_exports() -> None:
    assert_exports(small(block_size=2), torch.randn(3, 12), torch.randn(8, 12))


def test_unknown_depth_scaling() -> None:
    with pytest.raises(ValueError, match=r"^depth_scaling is 'loss'; it must be 'init' or 'forw"):
        ResMLP(depth_scaling="loss")  # type: ignore[arg-type]
