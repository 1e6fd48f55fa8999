"""What a pass of a live model takes beside a training step, and how many samples it gives.

python -m benchmarks.live                  # one process, and two
python -m benchmarks.live --processes 4    # and FSDP2 with tensor parallelism
"""

import argparse
import itertools
import statistics

import torch
from torch import distributed as dist
from torch import nn

import flerm_fx
from benchmarks.processes import print_row
from benchmarks.streaming import CONTEXT, CPU, EXAMPLES, REPEATS, VOCABULARY, sharded
from benchmarks.timing import once
from flerm_fx.model.distributed import Ranks
from models.transformer import Transformer

KINDS = ("plain", "FSDP2", "TP", "FSDP2 × TP")
LOOSE = 0.7
"""A tolerance that a single sample reaches, so that no rank's rows are split."""


def built(how: str, processes: int) -> nn.Module:
    """The model of :mod:`benchmarks.streaming`, in one way."""
    if how != "plain":
        return sharded(how, processes)
    torch.manual_seed(0)
    return Transformer(vocab=VOCABULARY, width=128, depth=6, context=CONTEXT)


def measured(how: str, processes: int) -> str:
    """A row of the table; all ranks call this."""
    model = built(how, processes)
    rows = {"FSDP2": processes, "FSDP2 × TP": processes // 2}.get(how, 1)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (EXAMPLES, CONTEXT), generator=generator)
    updates = {name: p.detach().sin() for name, p in model.named_parameters()}
    place = (dist.get_rank() if dist.is_initialized() else 0) * rows // processes
    own = tokens[Ranks(place, rows).rows(EXAMPLES)]
    prober = flerm_fx.Prober(model, tokens)

    def step() -> None:
        logits = model(own)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), own.flatten())
        loss.backward()  # type: ignore[no-untyped-call]

    def passes(count: int) -> None:
        prober.measure(updates, method="live", samples=count, rtol=LOOSE)

    step()
    passes(1)
    ratios, calls = [], []
    for _ in range(REPEATS):
        # As many calls on every rank, since they wait for one another.
        before = once(step, CPU)[0]
        few, many = once(lambda: passes(1), CPU)[0], once(lambda: passes(5), CPU)[0]
        beside = (before + once(step, CPU)[0]) / 2
        ratios.append((many - few) / 4 / beside)
        calls.append(few / beside)
    return (
        f"| {how} | {processes} | {rows} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {statistics.median(calls):.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print("| sharding | ranks | samples of a pass | pass / step | a call of one pass / step |")
    print("|---|---|---|---|---|", flush=True)
    for processes, how in itertools.product(options.processes, KINDS):
        if (how == "plain") != (processes == 1) or (how == "FSDP2 × TP" and processes < 4):
            continue
        print_row(measured, how, processes)


if __name__ == "__main__":
    main()
