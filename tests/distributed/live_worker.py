"""What each process does that measures a live model; ``torchrun`` starts it for the tests.

torchrun --nproc-per-node 2 -m tests.distributed.live_worker fsdp out
"""

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import flerm_fx
from examples.distributed import process_group
from flerm_fx.model.distributed import whole
from tests.distributed.worker import die

EXAMPLES, FEATURES, OUTPUTS = 9, 6, 60
"""Two ranks run 5 and 4 of the examples."""

PASSES = 40


class Block(nn.Module):
    """A residual block with a branch on its data, which no graph has."""

    def __init__(self, width: int, checkpointed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.checkpointed = checkpointed

    def residual(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(self.norm(x)))
        if hidden.sum() > 1e9:
            hidden = -hidden
        return self.outer(hidden)

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            branch: Tensor = checkpoint(self.residual, x, use_reentrant=False)
            return x + branch
        return x + self.residual(x)


class Net(nn.Module):
    """Blocks of an odd width, which no two ranks share evenly, and a frozen layer."""

    def __init__(
        self, width: int = 7, checkpointed: bool = False, batch_norm: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.input = nn.Linear(FEATURES, width)
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, checkpointed) for _ in range(2))
        self.output = nn.Linear(width, OUTPUTS)
        self.output.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.input(x))
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.output(x)
        return output


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(EXAMPLES, FEATURES, generator=generator)
    return x, torch.randint(OUTPUTS, (EXAMPLES,), generator=generator)


def net(how: str) -> Net:
    return Net(8 if "tp" in how else 7, "checkpoint" in how, "batchnorm" in how)


def wrapped(model: nn.Module, how: str) -> nn.Module:
    if how.startswith("ddp"):
        return DistributedDataParallel(model)
    size = dist.get_world_size()
    shape, names = ((size,), ("data",))
    if how.startswith("hsdp"):
        shape, names = (2, size // 2), ("replica", "data")
    if how.startswith("fsdp-tp"):
        shape, names = (size // 2, 2), ("data", "tensor")
    if how.startswith("tp"):
        names = ("tensor",)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    if "tp" in how:
        plan = {"blocks.*.inner": ColwiseParallel(), "blocks.*.outer": RowwiseParallel()}
        parallelize_module(model, mesh["tensor"], plan)
    if how.startswith(("fsdp", "hsdp")):
        over = mesh["data"] if how.startswith("fsdp") else mesh
        for block in model.blocks:
            fully_shard(block, mesh=over)
        fully_shard(model, mesh=over)
    return model


def updates_of(model: nn.Module) -> dict[str, Tensor]:
    """Updates that lie as their parameters do."""
    named = dict(model.named_parameters())
    return {name: p.detach().cos() for name, p in named.items() if p.requires_grad}


def exact(how: str) -> dict[str, float]:
    """What one process finds of the whole model, exactly."""
    model = net(how)
    found = flerm_fx.measure(model, updates_of(model), batch()[0], method="exact")
    return {name: estimate.value for name, estimate in found.items()}


def trained(how: str, measures: bool) -> tuple[list[Tensor], dict[str, Any]]:
    """Weights, gradients and states of three steps, with measurements amid the second, or not.

    Gradients accumulate over two batches of a step, and a hook counts each.
    """
    x, y = batch()
    model = wrapped(net(how), how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
    counts: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: counts.append(name))
    found: dict[str, Any] = {}
    for step in range(3):
        optimizer.zero_grad()
        for part in (slice(0, 4), slice(4, 8)):
            torch.nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            if measures and step == 1 and not found:
                if how.endswith("dies") and dist.get_rank() == 1:
                    model.register_forward_hook(lambda *_: die())
                found = measured(model, how, x)
        optimizer.step()
    tensors = [whole(p.detach()) for p in model.parameters()]
    tensors += [whole(p.grad) for p in model.parameters() if p.grad is not None]
    tensors += [
        whole(value)
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    tensors += [*model.buffers(), torch.tensor([len(counts)]), torch.get_rng_state()]
    return tensors, found


def measured(model: nn.Module, how: str, x: Tensor) -> dict[str, Any]:
    """Estimates of the model as it is, in the middle of a step."""
    estimates = flerm_fx.measure(
        model, updates_of(model), x, method="live", samples=PASSES, rtol=0.1
    )
    return {n.removeprefix("module."): (e.value, e.stderr, e.note) for n, e in estimates.items()}


def matched(how: str, method: Any) -> dict[str, Any]:
    """Record a small model and match one as wide again, which no graph is made of."""
    x, y = batch()
    options: dict[str, Any] = {"every": 2, "method": method, "rtol": 0.3}
    profile = None
    for width in (8, 16):
        model = wrapped(Net(width, "checkpoint" in how, False), how)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", flerm_fx.CaptureWarning)
            warnings.simplefilter("ignore", flerm_fx.MatchWarning)
            attached: Any = (
                flerm_fx.record(model, optimizer, x, y, **options)
                if profile is None
                else flerm_fx.match(model, optimizer, profile, **options)
            )
        with attached:
            for _ in range(3):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        profile = attached.profile if profile is None else profile
    return {
        "steps": attached.trajectory.steps,
        "multipliers": dict(attached.multipliers),
        "methods": {e.method for course in profile.trajectory.fslrs.values() for e in course},
    }


def main() -> None:
    how, path = sys.argv[1:]
    torch.set_num_threads(1)
    with process_group("gloo"):
        x = batch()[0]
        model = wrapped(net(how), how)
        found = measured(model, how, x)  # before its first step
        plain, _ = trained(how, measures=False)
        seen, _ = trained(how, measures=True)
        same = [torch.equal(a, b) for a, b in zip(plain, seen, strict=True)]
        course = matched(how, "live" if how == "ddp" else "auto")
        torch.save({"found": found, "same": same, **course}, f"{path}.{dist.get_rank()}")


if __name__ == "__main__":
    main()
