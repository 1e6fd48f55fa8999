"""The first guess of a target's multipliers."""

import pytest
import torch
from torch import nn

import flerm_fx
from models.resmlp import ResMLP


def test_the_guess_goes_by_the_rates_of_the_base_whatever_names_the_target_has() -> None:
    """One block answers to two, which the base trains at different rates."""

    def net(depth: int) -> nn.Module:
        torch.manual_seed(0)
        return ResMLP(in_features=4, width=8, depth=depth, out_features=3)

    torch.manual_seed(1)
    inputs, targets = [torch.randn(16, 4) for _ in range(3)], [torch.arange(16) % 3] * 3
    small = net(2)
    groups = [
        {"params": [p], "lr": 1e-2 if name.startswith("blocks.1.") else 1e-3}
        for name, p in small.named_parameters()
    ]
    profile = flerm_fx.record(small, torch.optim.Adam(groups), inputs, targets, settle=2).profile
    same, renamed = (
        flerm_fx.compile(model, profile, emit="param_groups").settling[0]
        for model in (net(1), nn.Sequential(net(1)))
    )
    assert renamed == pytest.approx({f"0.{name}": m for name, m in same.items()}, rel=1e-5)
