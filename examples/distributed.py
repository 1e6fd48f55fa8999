"""Several processes: record and match under DDP or FSDP2.

torchrun --nproc-per-node 2 -m examples.distributed --how ddp     # gloo, or NCCL with GPUs
torchrun --nproc-per-node 2 -m examples.distributed --how fsdp
"""

import argparse
import os

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import flerm_fx
from examples.corpus import batches, corpus
from flerm_fx.demo.language_model import build_language_model

EVERY = 10


def main() -> None:
    """Run in each process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--how", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    text = corpus()
    # The probe batch is one for all: each rank measures its share of it.
    probe = next(iter(batches(text, 1, seed=1_000_000)))

    def built(width: int) -> nn.Module:
        model = build_language_model(width, depth=2, context=64, norm="pre", seed=width).to(device)
        if options.how == "ddp":
            return DistributedDataParallel(model)
        fully_shard(model)
        return model

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        loss = torch.tensor(0.0)
        for tokens, following in batches(text, options.steps, seed=dist.get_rank()):
            optimizer.zero_grad()
            logits = model(tokens.to(device))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), following.to(device).flatten())
            torch.autograd.backward(loss)
            optimizer.step()
        return float(loss)

    small = built(32)
    optimizer = torch.optim.AdamW(small.parameters(), lr=5e-3)
    with flerm_fx.record(small, optimizer, *probe, every=EVERY) as recorder:
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
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
