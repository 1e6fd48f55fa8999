"""Each architecture in a process of its own: a crash or a hang costs one, not the run."""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from zoo.architecture import Architecture
from zoo.registry import architectures
from zoo.stages import STAGES, Result, run

PRELOADED = ["transformers", "zoo.stages", "zoo.warm"]
"""Imported once, in the process that all others are forked from."""


@dataclass
class _Running:
    process: ForkServerProcess
    connection: Connection
    began: float
    stage: str
    results: list[Result]
    log: Path

    def lost(self, reason: str) -> list[Result]:
        """The results so far, and what the end of the process makes of the other stages."""
        said = self.log.read_text(encoding="utf-8", errors="replace").strip()
        reason += f": {said[-400:]}" if said else ""
        names = list(STAGES)
        place = names.index(self.stage)
        failed = Result(self.stage, "failed", reason, time.monotonic() - self.began)
        rest = [Result(name, "not run", reason) for name in names[place + 1 :]]
        return [*self.results, failed, *rest]


def run_all(
    chosen: list[Architecture], jobs: int, timeout: float
) -> Iterator[tuple[Architecture, list[Result]]]:
    """Results of each architecture, as they come in.

    Args:
        chosen: architectures to run.
        jobs: how many at a time, each on one thread.
        timeout: in seconds, for one architecture.
    """
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TRANSFORMERS_VERBOSITY="error")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    waiting = list(reversed(chosen))
    running: dict[str, _Running] = {}
    known = {architecture.name: architecture for architecture in chosen}
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    name = waiting.pop().name
                    running[name] = _start(context, name, Path(folder) / f"{name}.log")
                wait([one.connection for one in running.values()], timeout=1.0)
                for name, one in list(running.items()):
                    results = _progress(one, timeout)
                    if results is not None:
                        one.process.join()
                        del running[name]
                        yield known[name], results
        finally:
            for one in running.values():
                one.process.kill()


def _start(context: ForkServerContext, name: str, log: Path) -> _Running:
    log.touch()
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(name, theirs, log), daemon=True)
    process.start()
    theirs.close()
    return _Running(process, ours, time.monotonic(), next(iter(STAGES)), [], log)


def _progress(one: _Running, timeout: float) -> list[Result] | None:
    """Read what has come; all results if the architecture is done, else None."""
    try:
        while one.connection.poll():
            message = one.connection.recv()
            if message is None:
                return one.results
            if isinstance(message, Result):
                one.results.append(message)
            else:
                one.stage = message
    except EOFError:
        one.process.join()
        return one.lost(f"the process ended with exit code {one.process.exitcode}")
    if time.monotonic() - one.began > timeout:
        one.process.kill()
        return one.lost(f"timed out after {timeout:g} seconds")
    return None


def _work(name: str, connection: Connection, log: Path) -> None:
    """Runs in the process: sends the name of each stage, then its result, and None at the end."""
    import torch

    torch.set_num_threads(1)
    with log.open("w") as output:
        for stream in (sys.stdout, sys.stderr):  # warnings from C++ go there, too
            os.dup2(output.fileno(), stream.fileno())
    for result in run(architectures()[name], connection.send):
        connection.send(result)
    connection.send(None)
    connection.close()
