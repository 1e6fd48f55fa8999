"""Benchmarks of sharded models run in several processes, the first of which prints a row."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

Measured = Callable[[str, int], str]
"""From a way of sharding and a number of processes to a row; all processes call it."""


def print_row(measured: Measured, how: str, processes: int) -> None:
    """Measure in so many processes of one thread, which talk by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (measured, how, processes, str(Path(folder) / "store"))
        spawn(_work, arguments, nprocs=processes)  # type: ignore[no-untyped-call]


def _work(rank: int, measured: Measured, how: str, processes: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    row = measured(how, processes)
    if rank == 0:
        print(row, flush=True)
    dist.barrier()
    dist.destroy_process_group()
