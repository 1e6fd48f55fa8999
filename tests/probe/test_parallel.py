"""A tensor-parallel model is measured as a plain one, if it is the same function."""

from collections.abc import Iterator

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import flerm_fx

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_it_has_the_fslrs_of_the_plain_model(one_process: None, dropout: float) -> None:
    plain, parallel = net(dropout), net(dropout)
    parallelize_module(parallel, init_device_mesh("cpu", (1,)), {"0": ColwiseParallel()})
    updates = {name: torch.randn_like(p) for name, p in plain.named_parameters()}
    for method in ("sampled", "exact"):
        found, expected = (
            flerm_fx.measure(model, updates, X, method=method)  # type: ignore[arg-type]
            for model in (parallel, plain)
        )
        assert found == expected
    assert parallel.training


def test_scale_nodes_on_its_own_weights_are_refused(one_process: None) -> None:
    plain, parallel = net(), net()
    y = torch.arange(6) % 3
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3)
    with flerm_fx.record(plain, adam, X, y, settle=0) as recorder:
        pass
    parallelize_module(parallel, init_device_mesh("cpu", (1,)), {"0": ColwiseParallel()})
    with pytest.raises(
        flerm_fx.InputError, match=r"weights of Sequential are sharded over ranks, and emit='modu"
    ):
        flerm_fx.compile(parallel, recorder.profile, emit="module")
    compiled = flerm_fx.compile(parallel, recorder.profile, emit="param_groups")
    assert compiled.multipliers == pytest.approx(dict.fromkeys(compiled.multipliers, 1.0))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_that_is_another_function_of_whole_weights_is_refused(
    one_process: None, dropout: float
) -> None:
    model = net(dropout)
    distribute_module(
        model[0],
        init_device_mesh("cpu", (1,)),
        output_fn=lambda module, output, mesh: 2 * output.to_local(),
        input_fn=lambda module, inputs, mesh: dist.tensor.DTensor.from_local(inputs[0], mesh),
    )
    before = {name: p.detach().full_tensor() for name, p in model[0].named_parameters()}
    with pytest.raises(
        flerm_fx.InputError,
        match=r"Sequential is tensor parallel, and with whole weights.*is another function",
    ):
        flerm_fx.measure(model, {"3.bias": torch.ones(3)}, X)
    assert model.training
    for name, weight in before.items():
        assert torch.equal(model[0].get_parameter(name).full_tensor(), weight)
