"""Many models train side by side, in processes of one thread each."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
from torch import nn

import flerm_fx
from flerm_fx.boundary.interrupts import deaf_children
from flerm_fx.commands.demo.corpus import Corpus
from flerm_fx.commands.demo.language_model import build_language_model
from flerm_fx.commands.demo.optimum import Curve
from flerm_fx.commands.demo.settings import Settings
from flerm_fx.commands.demo.train import train
from flerm_fx.errors import FlermError

# Steps between two words to the progress bars: some ten a second.
_STEPS_PER_REPORT = 5

Progress = Callable[[str, int], None]
"""Takes the name of a curve and how many more of its steps are done."""


@dataclass(frozen=True)
class Arm:
    """An ``Arm`` is one curve of the comparison.

    Attributes:
        name: for the legend.
        width: of the model.
        profile: a base profile to compile the model with; ``None`` for standard training.
    """

    name: str
    width: int
    profile: Path | None = None


def build(arm: Arm, settings: Settings) -> nn.Module:
    """Return the arm's model before training. Equal seeds give equal weights for equal widths."""
    task = settings.task
    model = build_language_model(
        arm.width, settings.depth, task.context, settings.norm, seed=task.seed
    )
    if arm.profile is None:
        return model
    profile = flerm_fx.BaseProfile.load(arm.profile)
    return flerm_fx.compile(model, profile, progress=False)  # the demo has bars of its own


def sweep(
    arms: Sequence[Arm],
    settings: Settings,
    corpus: Corpus,
    progress: Progress = lambda name, steps: None,
) -> list[Curve]:
    """Train every arm at every rate.

    Every run has one thread to itself, so its numbers do not depend on ``settings.workers``.

    Raises:
        FlermError: what compiling a model raised, or a process that was killed.
        KeyboardInterrupt: once the processes have stopped, which takes them one training step.
    """
    # The widest first, so that no process is left alone with a long run at the end.
    runs = sorted(
        ((arm, rate) for arm in arms for rate in settings.rates), key=lambda run: -run[0].width
    )
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    reports: SimpleQueue[_Report] = context.SimpleQueue()
    stop = context.Event()
    with ProcessPoolExecutor(
        min(settings.workers, len(runs)),
        mp_context=context,
        initializer=_start_worker,
        initargs=(settings, corpus, reports, stop),
    ) as executor:
        try:
            with deaf_children():  # the parent alone answers Ctrl-C, through `stop`
                futures = {executor.submit(_run, arm, rate): (arm.name, rate) for arm, rate in runs}
            losses = _collect(futures, reports, settings.task.steps, progress)
        except BrokenProcessPool as error:
            raise FlermError(
                "a training process was killed, most likely for want of memory; try --workers 1, "
                "or a smaller --width, --batch or --context"
            ) from error
        except BaseException:
            stop.set()
            executor.shutdown(wait=True, cancel_futures=True)
            raise
    return [
        Curve(arm.name, settings.rates, tuple(losses[arm.name, rate] for rate in settings.rates))
        for arm in arms
    ]


def _collect(
    futures: dict[Future[float], tuple[str, float]],
    reports: "SimpleQueue[_Report]",
    steps: int,
    progress: Progress,
) -> dict[tuple[str, float], float]:
    """Wait for all runs, pass their steps on to ``progress``, and return the losses by name and
    rate.
    """
    missing = dict.fromkeys(futures.values(), steps)
    losses: dict[tuple[str, float], float] = {}
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
        while not reports.empty():
            name, rate, count = reports.get()
            count = min(count, missing[name, rate])
            missing[name, rate] -= count
            progress(name, count)
        for future in done:
            name, rate = futures[future]
            losses[name, rate] = future.result()
            progress(name, missing[name, rate])  # a run that diverged skipped its last steps
            missing[name, rate] = 0
    return losses


_Report = tuple[str, float, int]
"""Name of the arm, rate, steps done since the last report."""


class _StoppedError(Exception):
    """It is raised where the parent was interrupted."""


@dataclass(frozen=True)
class _Worker:
    """A ``_Worker`` holds what a worker process is told once."""

    settings: Settings
    corpus: Corpus
    reports: "SimpleQueue[_Report]"
    stop: Event


_worker: _Worker | None = None


def _start_worker(
    settings: Settings, corpus: Corpus, reports: "SimpleQueue[_Report]", stop: Event
) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where deaf_children has done nothing
    torch.set_num_threads(1)
    _worker = _Worker(settings, corpus, reports, stop)


def _run(arm: Arm, rate: float) -> float:
    assert _worker is not None
    worker, done = _worker, 0

    def on_step() -> None:
        nonlocal done
        done += 1
        if done % _STEPS_PER_REPORT == 0:
            worker.reports.put((arm.name, rate, _STEPS_PER_REPORT))
        if worker.stop.is_set():
            raise _StoppedError

    model = build(arm, worker.settings)
    return train(model, rate, worker.corpus, worker.settings.task, on_step)
