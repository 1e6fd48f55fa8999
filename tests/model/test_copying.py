"""Copies that are the model: compiled in place, wrapped, or with hooks on parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.model.copying import copied, refuse_gradient_hooks

X, Y = torch.randn(16, 8), torch.randint(3, (16,))


def mlp(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 3)
    )


def recorded(model: nn.Module) -> flerm_fx.BaseProfile:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return flerm_fx.record(model, optimizer, X, Y, method="exact").profile


def test_a_copy_of_a_module_that_was_compiled_in_place_runs_itself() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    model.compile(backend="eager")
    twin = copied(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(X).nan_to_num().any()  # 0 / 0 in the norm
    assert model(X).any()


def test_check_measures_a_submodule_that_was_compiled_in_place() -> None:
    model = mlp(32)
    model[2].compile(backend="eager")
    compiled = flerm_fx.compile(model, recorded(mlp(8)), emit="module", method="exact")
    assert all(check.passed for check in compiled.check())


def test_compile_sees_through_data_parallel() -> None:
    profile = recorded(mlp(8))
    wrapped = flerm_fx.compile(nn.DataParallel(mlp(16)), profile, method="exact")
    plain = flerm_fx.compile(mlp(16), profile, method="exact")
    assert wrapped.multipliers == plain.multipliers


def _clipped(gradient: Tensor) -> Tensor:
    return gradient.clamp(-1e-3, 1e-3)


def _recorded(_: flerm_fx.BaseProfile) -> Callable[[nn.Module], object]:
    return recorded


def _compiled(emit: Any) -> Callable[[flerm_fx.BaseProfile], Callable[[nn.Module], object]]:
    return lambda profile: lambda model: flerm_fx.compile(model, profile, emit=emit)


@pytest.mark.parametrize("call", [_recorded, *map(_compiled, ("graph", "module", "param_groups"))])
def test_a_hook_that_changes_a_parameters_gradient_is_refused(
    call: Callable[[flerm_fx.BaseProfile], Callable[[nn.Module], object]],
) -> None:
    measure = call(recorded(mlp(8)))
    model = mlp(16)
    weight: Any = model.get_parameter("2.weight")
    weight.register_hook(_clipped)
    before = torch.get_rng_state()
    with pytest.raises(flerm_fx.InputError, match=r"'2\.weight' has a hook .*_clipped.*remove\(\)"):
        measure(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in mlp(16).named_parameters()
    ]


def test_a_hook_on_a_parameter_that_looks_is_not_called() -> None:
    seen: list[Tensor] = []
    model: Any = mlp(8)
    model[2].weight.register_hook(lambda gradient: seen.append(gradient))
    model[2].bias.register_hook(lambda gradient: gradient)
    refuse_gradient_hooks(model)
    assert recorded(model).start == recorded(mlp(8)).start
    assert seen == []
