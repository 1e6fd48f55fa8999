"""Several processes: record and match under DDP or FSDP2.

torchrun --nproc-per-node 2 -m examples.distributed --how ddp     # gloo, or NCCL with GPUs
torchrun --nproc-per-node 2 -m examples.distributed --how fsdp
"""

import argparse
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import flerm_fx
from examples.corpus import batches, corpus
from flerm_fx.commands.demo.language_model import build_language_model

EVERY = 10


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """A process group, at whose end the process ends too.

    The meshes of FSDP2 keep their groups alive, so that threads of gloo outlive
    ``destroy_process_group``. One that drops a tensor while Python finalizes aborts the process:
    it ends without that.
    """
    dist.init_process_group(backend)
    status = 1
    try:
        yield
        dist.barrier()
        dist.destroy_process_group()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Run in each process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--how", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    with process_group("nccl" if torch.cuda.is_available() else "gloo"):
        run(options.how, options.steps)


def run(how: str, steps: int) -> None:
    """Record a small model, match a large one."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    text = corpus()
    # One pool for all: each rank measures its share of the first batch.
    pool = list(batches(text, 21, seed=1_000_000))

    def built(width: int) -> nn.Module:
        model = build_language_model(width, depth=2, context=64, norm="pre", seed=width).to(device)
        if how == "ddp":
            return DistributedDataParallel(model)
        fully_shard(model)
        return model

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        loss = torch.tensor(0.0)
        for tokens, following in batches(text, steps, seed=dist.get_rank()):
            optimizer.zero_grad()
            logits = model(tokens.to(device))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), following.to(device).flatten())
            torch.autograd.backward(loss)
            optimizer.step()
        return float(loss)

    small = built(32)
    optimizer = torch.optim.AdamW(small.parameters(), lr=5e-3)
    with flerm_fx.record(small, optimizer, pool, every=EVERY) as recorder:
        train(small, optimizer)
    large = built(128)
    optimizer = torch.optim.AdamW(large.parameters(), lr=5e-3)
    with flerm_fx.match(large, optimizer, recorder.profile, every=EVERY) as matcher:
        loss = train(large, optimizer)
    spread = matcher.multipliers.values()
    print(
        f"rank {dist.get_rank()}: loss {loss:.3f}, "
        f"multipliers {min(spread):.6g} to {max(spread):.6g}"
    )


if __name__ == "__main__":
    main()
