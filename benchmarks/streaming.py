"""What a draw gathers of a sharded model, what it takes beside a training step, and what fetching
ahead spares where gathering takes a while.

python -m benchmarks.streaming                  # FSDP2 and tensor parallelism on 2 processes
python -m benchmarks.streaming --processes 4    # and both at once
"""

import argparse
import copy
import functools
import itertools
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from benchmarks.gathers import Gathers, Slow
from benchmarks.processes import print_row
from benchmarks.timing import once
from flerm_fx.capture.outlined import capture_outline
from flerm_fx.model.distributed import Ranks
from flerm_fx.probe.cotangent import Cotangents
from flerm_fx.probe.prefetch import Gather
from flerm_fx.probe.taps import TapNodes, by_taps
from models.transformer import Transformer

VOCABULARY, CONTEXT, EXAMPLES, REPEATS = 512, 64, 16, 7
LINKS = 0.0, 0.0005, 0.001, 0.002, 0.004
"""Seconds that a tensor is on its way."""

PLAN = {"feed_forward.hidden": ColwiseParallel(), "feed_forward.output": RowwiseParallel()}
CPU = torch.device("cpu")


def transformer() -> Transformer:
    """A transformer of six blocks."""
    torch.manual_seed(0)
    return Transformer(vocab=VOCABULARY, width=128, depth=6, context=CONTEXT)


def sharded(how: str, processes: int) -> nn.Module:
    """It, sharded by block, or its feed-forward layers in parallel."""
    model = transformer()
    along = 2 if how == "FSDP2 × TP" else 1 if how == "FSDP2" else processes
    mesh = init_device_mesh("cpu", (processes // along, along), mesh_dim_names=("data", "tensor"))
    for block in model.blocks:
        if "TP" in how:
            parallelize_module(block, mesh["tensor"], PLAN)
        if "FSDP2" in how:
            fully_shard(block, mesh=mesh["data"])
    if "FSDP2" in how:
        fully_shard(model, mesh=mesh["data"])
    return model


def drawing(model: nn.Module, tokens: Tensor, rows: slice) -> Callable[[Gather], object]:
    """Draws on some rows of a batch."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    captured = capture_outline(model, tokens, device=CPU)
    graph = tapped(captured.probe_module, tuple(captured.parameters))
    updates = {name: weights[name].sin() for name in captured.parameters}
    generator = torch.Generator().manual_seed(1)
    (q,) = Cotangents(EXAMPLES, CONTEXT * VOCABULARY, 1).sets(generator, rows)
    return functools.partial(by_taps, graph, weights, updates, captured.flat(tokens[rows]), q)


def measured(how: str, processes: int) -> str:
    """A row of the table; all ranks call this."""
    model, ranks = sharded(how, processes), Ranks(dist.get_rank(), processes)
    tokens, rows = batch(), ranks.rows_run(EXAMPLES)
    draw, own = drawing(model, tokens, rows), tokens if how == "TP" else tokens[rows]

    def step() -> None:
        logits = model(own)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), own.flatten())
        loss.backward()  # type: ignore[no-untyped-call]

    gathers = Gathers()
    draw(gathers)
    step()
    ratios = []
    for _ in range(REPEATS):
        # As many calls on every rank, since they wait for one another.
        before, taken, after = (
            once(call, CPU)[0] for call in (step, functools.partial(draw, gathers), step)
        )
        ratios.append(2 * taken / (before + after))
    sizes = [w.numel() * w.element_size() for w in model.parameters()]
    total, largest = sum(sizes), max(sizes)
    return (
        f"| {how} | {processes} | {largest / total:.3f} | {gathers.largest / largest:.2f} "
        f"| {gathers.most / largest:.2f} | {gathers.traffic / (1 + REPEATS) / total:.2f} "
        f"| {statistics.median(ratios):.2f} |"
    )


def fetched_ahead(draw: Callable[[Gather], object], seconds: float) -> str:
    """A row of the table of links: a draw that sends for weights ahead, and one that does not."""
    ways = {ahead: Slow(seconds, ahead=ahead) for ahead in (True, False)}
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(1 + REPEATS):
        for ahead, gather in ways.items():
            times[ahead].append(once(functools.partial(draw, gather), CPU)[0])
    medians = {ahead: statistics.median(taken[1:]) for ahead, taken in times.items()}
    return f"| {1000 * seconds:g} ms | {medians[True] / medians[False]:.2f} |"


def batch() -> Tensor:
    """Tokens."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (EXAMPLES, CONTEXT), generator=generator)


def tapped(probe: fx.GraphModule | None, names: tuple[str, ...]) -> fx.GraphModule:
    """The graph that a draw runs."""
    assert probe is not None
    root = fx.GraphModule(probe, copy.deepcopy(probe.graph))
    TapNodes(names)(root)
    return root


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    options = parser.parse_args()
    print(
        "| sharding | ranks | largest tensor / P | largest gather / largest tensor "
        "| gathered at once / largest tensor | traffic of a draw / P | draw / step |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    kinds = ("FSDP2", "TP", "FSDP2 × TP")
    for processes, how in itertools.product(options.processes, kinds):
        if how == "FSDP2 × TP" and processes < 4:
            continue
        print_row(measured, how, processes)
    torch.set_num_threads(1)
    print("| a gather takes | a draw that fetches ahead / one that does not |\n|---|---|")
    draw = drawing(transformer(), batch(), slice(EXAMPLES))
    for seconds in LINKS:
        print(fetched_ahead(draw, seconds), flush=True)


if __name__ == "__main__":
    main()
