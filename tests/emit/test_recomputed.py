"""Scales stay in their places when a part of the model runs again in its backward pass."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import flerm_fx
from flerm_fx.errors import InputError

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


class Net(nn.Module):
    def __init__(self, width: int, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, width)
        self.last = nn.Linear(width, 3)
        self.reentrant = reentrant

    def middle(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.second(torch.tanh(x)))
        return hidden if hidden.sum() < 1e9 else x

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.reentrant is None:
            x = self.middle(x)
        else:
            x = checkpoint(self.middle, x, use_reentrant=self.reentrant)
        output: Tensor = self.last(x)
        return output


def compiled(reentrant: bool | None, emit: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", flerm_fx.CaptureWarning)
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        small, large = Net(5, reentrant), Net(20, reentrant)
        optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
        profile = flerm_fx.record(small, optimizer, X, Y, settle=0).profile
        return flerm_fx.compile(large, profile, emit=emit)


@pytest.mark.parametrize("reentrant", [True, False])
def test_scales_that_a_checkpoint_would_not_see_are_refused(reentrant: bool) -> None:
    with pytest.raises(InputError, match="runs a part of itself again.*emit='module'"):
        compiled(reentrant, "graph")


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_sees_scales_of_the_module(reentrant: bool) -> None:
    """Gradients of stored weights are those of effective ones times the scale."""
    model = compiled(reentrant, "module")
    model(X).square().sum().backward()
    plain = Net(20, None)
    plain(X).square().sum().backward()
    gradients = {n: p.grad for n, p in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        own = name.replace("parametrizations.", "").replace(".original", "")
        expected = gradients[own] * model.scales.get(own, 1.0)
        size = float(expected.norm())
        assert float((parameter.grad - expected).norm()) <= 1e-4 * size, name


def test_without_a_checkpoint_nothing_is_refused() -> None:
    assert compiled(None, "graph").graph_module is None
