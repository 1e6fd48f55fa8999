"""First steps of a compiled model: by an optimizer of the original, or other than the base's."""

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.emit.first_steps import is_watched
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
    assert not is_watched(compiled)
    model.zero_grad()
    optimizers[0].step()


def test_nothing_is_kept_alive(profile: flerm_fx.BaseProfile) -> None:
    model = mlp(12)
    compiled = flerm_fx.compile(model, profile)
    assert is_watched(compiled)
    gone = weakref.ref(model), weakref.ref(compiled)
    del model
    gc.collect()
    assert gone[0]() is None
    adam(mlp(3)).step()
    assert is_watched(compiled)  # its own steps are still to come
    del compiled
    gc.collect()
    assert gone[1]() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adam(mlp(3)).step()


def in_layers(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for n, p in model.named_parameters() if n.startswith("0.")], "lr": 1e-3},
        {"params": [p for n, p in model.named_parameters() if n.startswith("2.")], "lr": 4e-3},
    ]


@pytest.mark.parametrize("emit", ["graph", "module"])
def test_one_rate_where_the_base_had_several_is_refused_before_the_step(emit: Any) -> None:
    small = mlp(6)
    optimizer = torch.optim.Adam(in_layers(small), lr=1e-2)
    recorded = flerm_fx.record(small, optimizer, X, Y, method="exact").profile
    compiled = flerm_fx.compile(mlp(12), recorded, emit=emit)
    before = {name: p.detach().clone() for name, p in compiled.named_parameters()}
    for _ in range(2):
        with pytest.raises(
            flerm_fx.OptimizerError, match=r"had lr 0.001, 0.004, and all .*base_gro"
        ):
            step(compiled, adam(compiled))
    assert all(torch.equal(p, before[name]) for name, p in compiled.named_parameters())
    step(compiled, torch.optim.Adam(in_layers(compiled), lr=1e-2))
    step(compiled, torch.optim.Adam(compiled.base_groups(1e-3), lr=1e-3))
    assert not is_watched(compiled)


def test_one_decay_where_the_base_had_several_is_warned_of_once() -> None:
    small = mlp(6)
    groups = [
        {"params": [p for p in small.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in small.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    recorded = flerm_fx.record(small, optimizer, X, Y, method="exact").profile
    compiled = flerm_fx.compile(mlp(12), recorded)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-2, weight_decay=0.1)
    with pytest.warns(UserWarning, match="had weight_decay 0.1, 0.0, and all of this model's have"):
        step(compiled, optimizer)
    step(compiled, optimizer)


def test_another_rule_than_the_bases_is_refused(profile: flerm_fx.BaseProfile) -> None:
    compiled = flerm_fx.compile(mlp(12), profile)
    with pytest.raises(flerm_fx.OptimizerError, match=r"is trained by torch.optim.SGD, and its"):
        step(compiled, torch.optim.SGD(compiled.parameters(), lr=1e-2))
    step(compiled, torch.optim.AdamW(compiled.parameters(), lr=1e-2))  # Adam, decay apart


def test_two_optimizers_are_each_looked_at(profile: flerm_fx.BaseProfile) -> None:
    compiled = flerm_fx.compile(mlp(12), profile)
    first, *others = compiled.parameters()
    adams = [torch.optim.Adam([first], lr=1e-2), torch.optim.SGD(others, lr=1e-2)]
    nn.functional.cross_entropy(compiled(X), Y).backward()
    adams[0].step()
    with pytest.raises(flerm_fx.OptimizerError, match=r"is trained by torch.optim.SGD, and its"):
        adams[1].step()
