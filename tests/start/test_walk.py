"""Simulated steps on a model's own weights are those on a copy, and leave no trace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from tests.cases import features

XS, YS = [features(8, 4) + i for i in range(3)], [torch.arange(8) % 3] * 3


class Follows(nn.Module):
    """With a frozen teacher that follows its student whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        for own, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.data.mul_(0.5).add_(other.data, alpha=0.5)
        return self.norm(self.student(x) + self.teacher(x).detach())  # type: ignore[no-any-return]


def started(model: nn.Module, **options: Any) -> dict[str, flerm_fx.Estimate]:
    adam = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    with flerm_fx.record(model, adam, XS, YS, settle=3, method="exact", **options) as recorder:
        return recorder.profile.start


@pytest.mark.filterwarnings("ignore:Follows does not export")
@pytest.mark.parametrize("make", [Follows, lambda: nn.Linear(4, 3)])
def test_a_start_is_the_same_wherever_the_steps_are_taken(make: Any) -> None:
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    starts = [started(model, **options) for options in ({}, {"copy": True}, {"offload": True})]
    assert starts[0] == starts[1] == starts[2]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("option", ["copy", "offload"])
def test_whether_to_copy_is_yes_or_no(option: str) -> None:
    with pytest.raises(flerm_fx.InputError, match=f"{option} must be True or False, got 'cpu'"):
        started(nn.Linear(4, 3), **{option: "cpu"})
