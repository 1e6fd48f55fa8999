"""An optimizer of the model that was compiled steps, and trains nothing."""

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.emit import idle_optimizer
from tests.cases import features

X, Y = features(8, 4), torch.arange(8) % 3


def mlp(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


@pytest.fixture(scope="module")
def profile() -> flerm_fx.BaseProfile:
    small = mlp(6)
    return flerm_fx.record(small, adam(small), X, Y, method="exact").profile


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()


def test_the_first_step_that_trains_nothing_is_warned_of_once(
    profile: flerm_fx.BaseProfile,
) -> None:
    model = mlp(12)
    optimizer = adam(model)
    compiled = flerm_fx.compile(model, profile)
    with pytest.warns(UserWarning, match=r"trains nothing. Build .* over compiled.parameters\(\)"):
        step(compiled, optimizer)
    step(compiled, optimizer)


def test_groups_of_the_original_are_not_for_the_copy(profile: flerm_fx.BaseProfile) -> None:
    model = mlp(12)
    compiled = flerm_fx.compile(model, profile)
    optimizer = torch.optim.SGD(compiled.param_groups(1e-2), lr=1e-2)
    with pytest.warns(UserWarning, match="SGD holds the parameters of the model"):
        step(compiled, optimizer)


@pytest.mark.parametrize(
    "options", [{"emit": "module"}, {"emit": "param_groups"}, {"donate": True}], ids=str
)
def test_where_parameters_are_the_models_own_it_trains(
    options: Any, profile: flerm_fx.BaseProfile
) -> None:
    model = mlp(12)
    optimizer = adam(model)
    compiled = flerm_fx.compile(model, profile, **options)
    before = [p.detach().clone() for p in compiled.parameters()]
    step(compiled, optimizer)
    assert not any(map(torch.equal, before, compiled.parameters()))


def test_models_that_train_side_by_side_are_left_alone(profile: flerm_fx.BaseProfile) -> None:
    model, other = mlp(12), mlp(12)
    compiled = flerm_fx.compile(model, profile)
    optimizers = [adam(model), adam(compiled), adam(other)]
    step(other, optimizers[2])
    step(model, optimizers[0])
    step(compiled, optimizers[1])
    assert compiled not in idle_optimizer._watched
    model.zero_grad()
    optimizers[0].step()


def test_nothing_is_kept_alive(profile: flerm_fx.BaseProfile) -> None:
    model = mlp(12)
    compiled = flerm_fx.compile(model, profile)
    assert compiled in idle_optimizer._watched
    gone = weakref.ref(model), weakref.ref(compiled)
    del model
    gc.collect()
    assert gone[0]() is None
    adam(mlp(3)).step()
    assert compiled not in idle_optimizer._watched
    del compiled
    gc.collect()
    assert gone[1]() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adam(mlp(3)).step()
