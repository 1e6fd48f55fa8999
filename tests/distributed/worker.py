"""What each process of a distributed run does; ``torchrun`` starts it for the tests.

torchrun --nproc-per-node 2 -m tests.distributed.worker fsdp sampled out
"""

import copy
import os
import signal
import sys
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import flerm_fx
from benchmarks.gathers import Gathers
from examples.distributed import process_group
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.outlined import capture_outline
from flerm_fx.capture.tracing import capture
from flerm_fx.model.distributed import Ranks, is_sharded, whole
from flerm_fx.probe.cotangent import Cotangents
from flerm_fx.probe.taps import TapNodes, by_taps
from models.resmlp import ResMLP

STEPS, EVERY, EXAMPLES = 6, 2, 14
"""Of 14 examples, 4 ranks measure 4, 4, 3 and 3."""

FEW = 5
"""Examples for 4 ranks, of which two can have 2 of their own."""

PLAN = {
    "input": ColwiseParallel(output_layouts=Replicate()),
    "blocks.*.layers.0": ColwiseParallel(output_layouts=Replicate()),
    "output": RowwiseParallel(input_layouts=Replicate()),
}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(EXAMPLES, 6, generator=generator)
    return x, torch.randint(4, (EXAMPLES,), generator=generator)


def net(width: int, norm: bool = False) -> nn.Module:
    torch.manual_seed(width)
    if norm:
        return nn.Sequential(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4)
        )
    return ResMLP(6, 4, width, depth=2)


def wrapped(model: nn.Module, how: str) -> nn.Module:
    if how.startswith("ddp"):
        return DistributedDataParallel(model)
    if how.startswith("tp"):
        parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), PLAN)
    elif how.startswith("fsdp"):
        shape, names = (dist.get_world_size(),), ("data",)
        if how.startswith("fsdp-tp"):
            shape, names = (dist.get_world_size() // 2, 2), ("data", "tensor")
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        if how.startswith("fsdp-tp"):
            parallelize_module(model, mesh["tensor"], PLAN)
        for block in getattr(model, "blocks", []):
            fully_shard(block, mesh=mesh["data"])
        fully_shard(model, mesh=mesh["data"])
    return model


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    # DTensors of two meshes are no one list to torch.
    return torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, dies: bool = False) -> None:
    """Every rank sees the whole batch, so that gradients are those of one process."""
    x, y = batch()
    for step in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if dies and step == 3 and dist.get_rank() == 1:
            die()
        optimizer.step()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(how: str, method: str) -> dict[str, Any]:
    """Record a small model, match a large one; measure a batch that is small for the ranks."""
    x, y = batch()
    norm = how.endswith("batchnorm")
    options = {"every": EVERY, "method": method}
    small = wrapped(net(8, norm), how)
    optimizer = adamw(small)
    with flerm_fx.record(small, optimizer, x, y, **options) as recorder:
        train(small, optimizer)
    large = wrapped(net(32, norm), how)
    streamed = streams(large, how) if is_sharded(large) else {}
    optimizer = adamw(large)
    with flerm_fx.match(large, optimizer, recorder.profile, **options) as matcher:
        train(large, optimizer, dies=how.endswith("dies"))
    profile = recorder.profile
    few = {}
    if not dist.is_initialized() or dist.get_world_size() == 4:
        _, updates = weights_and_updates(large)
        few = flerm_fx.measure(large, updates, x[:FEW], method=method)
    return {
        "start": {n: (e.value, e.stderr) for n, e in profile.start.items()},
        "course": {
            n: [(e.value, e.stderr) for e in es] for n, es in profile.trajectory.fslrs.items()
        },
        "few": {n.removeprefix("module."): (e.value, e.stderr) for n, e in few.items()},
        "multipliers": dict(matcher.multipliers),
        "state": matcher.state_dict(),
        "weights": {
            name.removeprefix("module."): whole(parameter.detach())
            for name, parameter in large.named_parameters()
        },
        "streamed": streamed,
    }


def streams(model: nn.Module, how: str) -> dict[str, Any]:
    """Passes over this rank's rows, with weights gathered, a first one and one that sends for them
    ahead, and with all of them at hand.
    """
    x, plain = batch()[0], net(32)
    ahead = Dying() if how.endswith("gathers") and dist.get_rank() == 1 else Gathers()
    first = Gathers()
    mine = x[Ranks.of(model).rows_run(EXAMPLES)]
    (q,) = Cotangents(EXAMPLES, 4, 1).sets(
        torch.Generator().manual_seed(0), Ranks.of(model).rows_run(EXAMPLES)
    )
    captured = capture_outline(model, x, device=x.device)
    graph, (weights, updates) = tapped(captured), weights_and_updates(model)
    products = [
        by_taps(graph, weights, updates, captured.flat(mine), q, gathers)
        for gathers in (first, ahead)
    ]
    captured = capture(plain, x)
    expected = by_taps(tapped(captured), *weights_and_updates(plain), captured.flat(mine), q)
    return {
        "same": all(torch.equal(expected, found) for found in products),
        "largest": max(first.largest, ahead.largest),
        "alive": first.alive + ahead.alive,
        "most": first.most,
        "most_ahead": ahead.most,
        "begun": ahead.begun,
        "traffic": max(first.traffic, ahead.traffic),
        "sizes": [4 * p.numel() for p in plain.parameters()],
    }


def weights_and_updates(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return weights, {name: weight.sin() for name, weight in sorted(weights.items())}


def tapped(captured: Capture) -> fx.GraphModule:
    assert captured.probe_module is not None
    root = fx.GraphModule(captured.probe_module, copy.deepcopy(captured.probe_module.graph))
    TapNodes(sorted(captured.parameters))(root)
    return root


class Dying(Gathers):
    """The end of a process amid what it gathers with the others, with more on its way."""

    def finish(self, tensor: Tensor, device: torch.device) -> Tensor:
        if self.count == 5:
            die()
        return super().finish(tensor, device)


def main() -> None:
    how, method, path = sys.argv[1:]
    torch.set_num_threads(1)
    with process_group("gloo"):
        torch.save(run(how, method), f"{path}.{dist.get_rank()}")


if __name__ == "__main__":
    main()
