"""What each form of multipliers goes together with, as the table of docs/which.md says."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import flerm_fx
from tests.cases import features
from tests.rounding import assert_close

X = features(12, 6)
Y = torch.arange(12) % 3
FORMS = ("graph", "module", "param_groups", "match")


def net(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))


@functools.cache
def profile() -> flerm_fx.BaseProfile:
    small = net(8)
    adam = torch.optim.Adam(small.parameters(), lr=1e-2)
    with flerm_fx.record(small, adam, X, Y, every=1, settle=0, method="exact") as recorder:
        step(small, adam)
    return recorder.profile


def step(model: Any, optimizer: Any) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()


def trained(form: str, wrap: Callable[[nn.Module], Any] = lambda model: model) -> nn.Module:
    """A plain model with the weights that a form has after two steps, inside of a wrapper."""
    large = net(32)
    if form == "match":
        model = wrap(large)
        adam = torch.optim.Adam(model.parameters(), lr=1e-2)
        with flerm_fx.match(model, adam, profile(), every=1, method="exact"):
            step(model, adam)
            step(model, adam)
        return large
    compiled = flerm_fx.compile(large, profile(), emit=form, method="exact")  # type: ignore[arg-type]
    model = wrap(compiled if form == "graph" else large)
    groups = compiled.param_groups(1e-2) if form == "param_groups" else model.parameters()
    adam = torch.optim.Adam(groups, lr=1e-2)
    step(model, adam)
    step(model, adam)
    return compiled.fold()


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


def prepared(model: nn.Module) -> Any:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)  # what another test has left there
    return accelerate.Accelerator(cpu=True).prepare_model(model)


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.compile": functools.partial(torch.compile, backend="aot_eager"),
    "DistributedDataParallel": DistributedDataParallel,
    "fully_shard": sharded,
    "Accelerate": prepared,
}
"""Rows of the table whose cells are training steps."""


def table() -> dict[str, list[str]]:
    page = (Path(__file__).parents[2] / "docs" / "which.md").read_text(encoding="utf-8")
    lines = page.split("## What goes with what")[1].split("\n\n")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][1:] == ["`graph`", "`module`", "`param_groups`", "`match`"]
    return {row[0].strip("`"): row[1:] for row in cells[2:]}


@pytest.mark.slow
@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_form_trains_in_a_wrapper_as_it_does_without(wrapper: str, form: str) -> None:
    assert table()[wrapper][FORMS.index(form)] != "no"
    expected = trained(form)
    found = trained(form, WRAPPERS[wrapper])
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        whole = ours.full_tensor() if isinstance(ours, DTensor) else ours
        assert_close(whole.detach(), theirs.detach(), 100)
