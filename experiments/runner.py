"""Run what is missing, side by side: bases, profiles, laws, multipliers, and then all others."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from heapq import heappop, heappush
from itertools import chain, count
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from experiments.axes import OF_RUN, Axis
from experiments.measures import complete, seed_mean
from experiments.methods import METHODS, Method
from experiments.rules_by_hand import PLACES
from experiments.store import Result, Run, Store
from experiments.work import Compiling, Fitting, Recording, Training, Work, start_process
from flerm_fx.errors import FlermError

Stage = tuple[str, Iterable[Work]]
"""A name, and work that may be done side by side."""


def run(
    axes: Sequence[Axis],
    methods: Sequence[Method],
    seeds: int,
    store: Store,
    console: Console,
    jobs: int | None = None,
    *,
    at_best: bool = False,
) -> None:
    """Run every method on every axis, but for what the store has.

    First the bases of an axis, then its profiles, laws, multipliers, and all other runs.

    Args:
        axes: whose work is shared out together.
        methods: of each; muP and CompleteP are left out where they do not apply.
        seeds: of the runs, counted from 0.
        store: where results go.
        console: shows progress.
        jobs: processes, of one thread each; as many as cores if None.
        at_best: whether all but the base is trained at the base's best rate alone.
    """
    title = axes[0].title if len(axes) == 1 else f"{len(axes)} axes"
    chains = [_stages(axis, methods, seeds, store, title, at_best=at_best) for axis in axes]
    _do(chains, store, console, jobs)


def _stages(
    axis: Axis,
    methods: Sequence[Method],
    seeds: int,
    store: Store,
    title: str,
    *,
    at_best: bool,
) -> Iterator[Stage]:
    """What one axis lacks; what a stage is follows from what those before it left in the store."""
    chosen = [method for method in methods if applies(method, axis)]
    yield f"{title}: base", _trainings(axis, METHODS["standard"], [1], seeds, store)
    best = best_rate(axis, store)
    axis = axis.at(best) if at_best else axis
    yield f"{title}: profiles", recordings(axis, chosen, best, seeds, store)
    yield f"{title}: laws", fittings(axis, chosen, seeds, store)
    yield f"{title}: multipliers", compilings(axis, chosen, seeds, store)
    yield (
        f"{title}: runs",
        chain.from_iterable(
            _trainings(axis, method, scales_of(axis, method), seeds, store) for method in chosen
        ),
    )


def applies(method: Method, axis: Axis) -> bool:
    """Whether an axis has runs of a method: whether a rule says anything of what it scales.

    muP has widths, Adam (by ``MuAdam``), and readouts that it is to shrink itself; its rates go
    with a recipe as well. CompleteP has widths and depths of foreign models. Laws are fitted to
    widths, depths and both. What changes of the run alone is standard training's. An earlier
    version's methods are not run here.
    """
    if method.kind == "released":
        return False
    if axis.scaled in OF_RUN:
        return method.kind == "standard"
    wide = any(axis.width(scale) != 1 for scale in axis.scales)
    deep = any(axis.depth(scale) != 1 for scale in axis.scales)
    if method.kind == "completep":
        return axis.recipe is not None and axis.model in PLACES and (wide or deep)
    if method.kind == "law":
        return wide or deep
    if method.kind in ("mup", "mup-rates"):
        rates_alone = method.kind == "mup-rates" and axis.recipe is not None
        by_adam = axis.optimizer == "adam" or rates_alone
        return wide and by_adam and not axis.settings.get("small_readout")
    return True


def in_processes(
    name: str, work: Iterable[Work], store: Store, console: Console, jobs: int | None = None
) -> None:
    """Do some work side by side, and keep what it comes to."""
    _do([iter([(name, work)])], store, console, jobs)


def _do(
    chains: Sequence[Iterator[Stage]], store: Store, console: Console, jobs: int | None
) -> None:
    """Do chains of stages in processes, and show how far they are.

    A stage begins when the one before it in its chain is done. Of all work that may begin, the
    longest does: one chain that waits for a long piece of work leaves no process idle.
    """
    jobs = jobs or os.cpu_count() or 1
    waiting: list[tuple[tuple[int, float], int, int, str, Work]] = []  # a heap
    running: dict[Future[Result | None], tuple[int, str]] = {}
    left = [0] * len(chains)
    arrivals = count()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with (
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        ProcessPoolExecutor(
            jobs, mp_context=multiprocessing.get_context("spawn"), initializer=start_process
        ) as executor,
    ):
        bars: dict[str, TaskID] = {}
        totals: Counter[str] = Counter()

        def begin_next_stage(index: int) -> None:
            for name, work in chains[index]:
                for item in work:
                    heappush(waiting, (_order(item), next(arrivals), index, name, item))
                    left[index] += 1
                if left[index]:
                    totals[name] += left[index]
                    if name not in bars:
                        bars[name] = progress.add_task(name)
                    progress.update(bars[name], total=totals[name])
                    return

        try:
            for index in range(len(chains)):
                begin_next_stage(index)
            while waiting or running:
                while waiting and len(running) < jobs:
                    *_, index, name, item = heappop(waiting)
                    running[executor.submit(item)] = index, name
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index, name = running.pop(future)
                    result = future.result()
                    if isinstance(result, Result):
                        store.add(result)
                    progress.advance(bars[name])
                    left[index] -= 1
                    if not left[index]:
                        begin_next_stage(index)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


RECORDED = 3
"""Seeds of the base that say at which rate it is recorded, so that more seeds leave it there."""


def best_rate(axis: Axis, store: Store) -> float:
    """The base's best rate on the grid, by the mean over the seeds that the store has, at most
    three: also where fewer are asked for, so that all runs at the base's best rate have one.
    """
    results = store.of(axis, "standard")
    seeds = complete(results, 1, axis.grid.rates)[:RECORDED]
    losses = seed_mean(results, 1, axis.grid.rates, seeds)
    if not np.isfinite(losses).any():
        raise FlermError(f"{axis.key}: the base model diverged at every rate of the grid")
    return axis.grid.rates[int(np.argmin(losses))]


def scales_of(axis: Axis, method: Method) -> tuple[float, ...]:
    """The scales that a method trains: the base is standard training's, unless masses are other.

    A law has those that are above two that it is fitted to, and one of courses above one.
    """
    if method.kind == "standard" or method.own_base:
        return axis.scales
    if method.kind == "law":
        least = 1 if method.course else 2
        return tuple(s for s in axis.scales[1:] if sum(f < s for f in method.fitted) >= least)
    return axis.scales[1:]


def missing(axis: Axis, method: Method, scale: float, seed: int, store: Store) -> list[Run]:
    """What the store lacks of one curve."""
    runs = [Run(axis.named(scale), method.key, scale, seed, rate) for rate in axis.grid.rates]
    return [each for each in runs if each not in store]


def _trainings(
    axis: Axis, method: Method, scales: Sequence[float], seeds: int, store: Store
) -> Iterable[Training]:
    for scale in scales:
        for seed in range(seeds):
            profile, multipliers = _needs(axis, method, scale, seed, store)
            for found in missing(axis, method, scale, seed, store):
                yield Training(axis, method, found, profile, multipliers)


def _needs(
    axis: Axis, method: Method, scale: float, seed: int, store: Store
) -> tuple[Path | None, Path | None]:
    if method.kind == "match":
        return store.profile(axis.named(1), method.recorded), None
    if method.kind in ("compile", "law"):
        return None, store.multipliers(axis.key, method.key, scale, seed)
    return None, None


def recordings(
    axis: Axis, methods: Sequence[Method], rate: float, seeds: int, store: Store
) -> Iterable[Recording]:
    """Of the profiles that multipliers or runs which the store lacks need."""
    paths: dict[Path, Method] = {}
    for method in methods:
        needing: Iterable[Work] = ()
        if method.kind in ("compile", "law"):
            needing = compilings(axis, [method], seeds, store)
        elif method.kind == "match":
            needing = _trainings(axis, method, scales_of(axis, method), seeds, store)
        if any(True for _ in needing):
            paths.setdefault(store.profile(axis.named(1), method.recorded), method)
    for path, method in paths.items():
        if not path.exists():
            yield Recording(axis, method, rate * method.off_rate, path)


def fittings(axis: Axis, methods: Sequence[Method], seeds: int, store: Store) -> Iterable[Fitting]:
    """Of the laws that multipliers which the store lacks need."""
    for method in methods:
        if method.kind != "law":
            continue
        needing = {work.scale: work.source for work in compilings(axis, [method], seeds, store)}
        for scale, path in needing.items():
            if not path.exists():
                profile = store.profile(axis.named(1), method.recorded)
                yield Fitting(axis, method, scale, profile, path)


def compilings(
    axis: Axis, methods: Sequence[Method], seeds: int, store: Store
) -> Iterable[Compiling]:
    """Of the multipliers that runs which the store lacks need."""
    for method in methods:
        if method.kind not in ("compile", "law"):
            continue
        profile = store.profile(axis.named(1), method.recorded)
        for scale in scales_of(axis, method):
            law = store.law(axis.key, method.key, scale)
            source = law if method.kind == "law" else profile
            for seed in range(seeds):
                path = store.multipliers(axis.key, method.key, scale, seed)
                if not path.exists() and missing(axis, method, scale, seed, store):
                    yield Compiling(axis, method, scale, seed, source, path)


def _order(work: Work) -> tuple[int, float]:
    """Long work first, so that no process is left alone with it at the end."""
    languages = ("adapted-llama", "llama", "olmo2", "neox", "gpt2")
    longest = ("smollm2", *languages, "vit", "transformer", "resmlp")
    model = longest.index(work.axis.model)
    if isinstance(work, Training):
        return model, -work.run.scale
    return model, 0.0 if isinstance(work, Recording) else -work.scale
