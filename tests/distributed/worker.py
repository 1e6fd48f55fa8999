"""What each process of a distributed run does; ``torchrun`` starts it for the tests.

torchrun --nproc-per-node 2 -m tests.distributed.worker fsdp sampled out
"""

import os
import signal
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import flerm_fx
from examples.distributed import process_group
from flerm_fx.model.distributed import whole
from models.resmlp import ResMLP

STEPS, EVERY, EXAMPLES = 6, 2, 16


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
    return ResMLP(6, width, 4, depth=2)


def wrapped(model: nn.Module, how: str) -> nn.Module:
    if how.startswith("ddp"):
        return DistributedDataParallel(model)
    if how.startswith("fsdp"):
        for block in getattr(model, "blocks", []):
            fully_shard(block)
        fully_shard(model)
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, dies: bool = False) -> None:
    """Every rank sees the whole batch, so that gradients are those of one process."""
    x, y = batch()
    for step in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if dies and step == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()


def run(how: str, method: str) -> dict[str, Any]:
    """Record a small model, match a large one."""
    x, y = batch()
    norm = how.endswith("batchnorm")
    options = {"every": EVERY, "method": method}
    small = wrapped(net(8, norm), how)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
    with flerm_fx.record(small, optimizer, x, y, **options) as recorder:
        train(small, optimizer)
    large = wrapped(net(32, norm), how)
    optimizer = torch.optim.AdamW(large.parameters(), lr=1e-2)
    with flerm_fx.match(large, optimizer, recorder.profile, **options) as matcher:
        train(large, optimizer, dies=how.endswith("dies"))
    profile = recorder.profile
    return {
        "start": {n: (e.value, e.stderr) for n, e in profile.start.items()},
        "course": {
            n: [(e.value, e.stderr) for e in es] for n, es in profile.trajectory.fslrs.items()
        },
        "multipliers": dict(matcher.multipliers),
        "state": matcher.state_dict(),
        "weights": {
            name.removeprefix("module."): whole(parameter.detach())
            for name, parameter in large.named_parameters()
        },
    }


def main() -> None:
    how, method, path = sys.argv[1:]
    torch.set_num_threads(1)
    with process_group("gloo"):
        torch.save(run(how, method), f"{path}.{dist.get_rank()}")


if __name__ == "__main__":
    main()
