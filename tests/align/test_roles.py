"""Roles: what does the same in blocks that repeat."""

import pytest
import torch
from torch import nn

from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.align.roles import roles
from flerm_fx.capture.tracing import capture
from models.convnet import ConvNet
from models.resmlp import ResMLP
from models.transformer import Transformer


def of(model: nn.Module, x: torch.Tensor) -> dict[str, str]:
    captured = capture(model, x)
    shapes = {name: tuple(p.shape) for name, p in captured.parameters.items()}
    return roles(capture_graph(captured), shapes)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_blocks_of_a_transformer_have_one_role_for_each_of_their_parameters(depth: int) -> None:
    model = Transformer(vocab=17, width=16, depth=depth, heads=2, context=8)
    found = of(model, torch.randint(17, (2, 8)))
    for name, role in found.items():
        expected = name.replace("blocks.", "").split(".", 1)
        if name.startswith("blocks."):
            assert role == f"blocks.0.{expected[1]}"
        else:
            assert role == name


def test_layers_of_other_shapes_have_other_roles() -> None:
    model = nn.Sequential(
        *(layer for i in range(3) for layer in (nn.Linear(4 + i, 5 + i), nn.ReLU()))
    )
    found = of(model, torch.randn(2, 4))
    assert all(role == name for name, role in found.items())


def test_stages_of_several_widths_are_kept_apart() -> None:
    model = ConvNet()
    found = of(model, torch.randn(2, 3, 16, 16))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert all(shapes[name] == shapes[role] for name, role in found.items())


def test_ends_of_a_stack_are_no_blocks() -> None:
    model = ResMLP(in_features=12, width=12, depth=3, out_features=12)
    found = of(model, torch.randn(2, 12))
    assert found["input.weight"] == "input.weight"
    assert found["output.weight"] == "output.weight"
    assert {found[f"blocks.{i}.layers.0.weight"] for i in range(3)} == {"blocks.0.layers.0.weight"}
