"""Run what is missing, side by side: bases first, then profiles, multipliers, and all others."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.axes import Axis
from experiments.measures import seed_mean
from experiments.methods import METHODS, Method
from experiments.store import Result, Run, Store
from experiments.work import Compiling, Recording, Training, Work, start_process
from flerm_fx.errors import FlermError


def run(
    axes: Sequence[Axis],
    methods: Sequence[Method],
    seeds: int,
    store: Store,
    console: Console,
    jobs: int | None = None,
) -> None:
    """Run every method on every axis, but for what the store has.

    First the bases of all axes, then their profiles, multipliers, and all other runs.

    Args:
        axes: whose work is shared out together.
        methods: of each; muP is left out where it does not apply.
        seeds: of the runs, counted from 0.
        store: where results go.
        console: shows progress.
        jobs: processes, of one thread each; as many as cores if None.
    """
    with _processes(jobs, console) as do:
        title = axes[0].title if len(axes) == 1 else f"{len(axes)} axes"
        chosen = {a.key: [m for m in methods if m.kind != "mup" or mup_applies(a)] for a in axes}

        def all_of(work: Callable[[Axis], Iterable[Work]]) -> list[Work]:
            return [item for axis in axes for item in work(axis)]

        def bases(axis: Axis) -> Iterable[Work]:
            return _trainings(axis, METHODS["standard"], [1], seeds, store)

        def profiles(axis: Axis) -> Iterable[Work]:
            return _recordings(axis, chosen[axis.key], best_rate(axis, store, seeds), store)

        def multipliers(axis: Axis) -> Iterable[Work]:
            return _compilings(axis, chosen[axis.key], seeds, store)

        def runs(axis: Axis) -> Iterable[Work]:
            for method in chosen[axis.key]:
                yield from _trainings(axis, method, scales_of(axis, method), seeds, store)

        do(f"{title}: base", all_of(bases), store)
        do(f"{title}: profiles", all_of(profiles), store)
        do(f"{title}: multipliers", all_of(multipliers), store)
        do(f"{title}: runs", all_of(runs), store)


def mup_applies(axis: Axis) -> bool:
    """Whether it does: widths, Adam (by ``MuAdam``), and readouts that it is to shrink itself."""
    wide = axis.scaled == "width_multiplier" and axis.optimizer == "adam"
    return wide and not axis.settings.get("small_readout")


def in_processes(
    name: str, work: Iterable[Work], store: Store, console: Console, jobs: int | None = None
) -> None:
    """Do some work side by side, and keep what it comes to."""
    with _processes(jobs, console) as do:
        do(name, work, store)


@contextmanager
def _processes(
    jobs: int | None, console: Console
) -> Iterator[Callable[[str, Iterable[Work], Store], None]]:
    """What does work in processes, and shows how far it is."""
    with (
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        ) as progress,
        ProcessPoolExecutor(
            jobs or os.cpu_count(),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=start_process,
        ) as executor,
    ):

        def do(name: str, work: Iterable[Work], store: Store) -> None:
            missing = sorted(work, key=_cost, reverse=True)
            if not missing:
                return
            bar = progress.add_task(name, total=len(missing))
            futures = [executor.submit(item) for item in missing]
            try:
                for future in as_completed(futures):
                    result = future.result()
                    if isinstance(result, Result):
                        store.add(result)
                    progress.advance(bar)
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise

        yield do


def best_rate(axis: Axis, store: Store, seeds: int) -> float:
    """The base's best rate on the grid, by the mean over seeds."""
    losses = seed_mean(store.results(axis.key, "standard"), 1, axis.grid.rates, range(seeds))
    if not np.isfinite(losses).any():
        raise FlermError(f"{axis.key}: the base model diverged at every rate of the grid")
    return axis.grid.rates[int(np.argmin(losses))]


def scales_of(axis: Axis, method: Method) -> tuple[float, ...]:
    """The scales that a method trains: the base is standard training's, unless masses are other."""
    if method.kind == "standard" or method.own_base:
        return axis.scales
    return axis.scales[1:]


def _trainings(
    axis: Axis, method: Method, scales: Sequence[float], seeds: int, store: Store
) -> Iterable[Training]:
    for scale in scales:
        for seed in range(seeds):
            for rate in axis.grid.rates:
                found = Run(axis.key, method.key, scale, seed, rate)
                if found not in store:
                    profile, multipliers = _needs(axis, method, scale, seed, store)
                    yield Training(axis, method, found, profile, multipliers)


def _needs(
    axis: Axis, method: Method, scale: float, seed: int, store: Store
) -> tuple[Path | None, Path | None]:
    if method.kind == "match":
        return store.profile(axis.key, method.recorded), None
    if method.kind == "compile":
        return None, store.multipliers(axis.key, method.key, scale, seed)
    return None, None


def _recordings(
    axis: Axis, methods: Sequence[Method], rate: float, store: Store
) -> Iterable[Recording]:
    paths: dict[Path, Method] = {}
    for method in methods:
        if method.kind in ("compile", "match"):
            paths.setdefault(store.profile(axis.key, method.recorded), method)
    for path, method in paths.items():
        if not path.exists():
            yield Recording(axis, method, rate, path)


def _compilings(
    axis: Axis, methods: Sequence[Method], seeds: int, store: Store
) -> Iterable[Compiling]:
    for method in methods:
        if method.kind != "compile":
            continue
        profile = store.profile(axis.key, method.recorded)
        for scale in scales_of(axis, method):
            for seed in range(seeds):
                path = store.multipliers(axis.key, method.key, scale, seed)
                if not path.exists():
                    yield Compiling(axis, method, scale, seed, profile, path)


def _cost(work: Work) -> tuple[int, float]:
    """Long runs first, so that no process is left alone with one at the end."""
    model = ("resmlp", "transformer", "smollm2").index(work.axis.model)
    if isinstance(work, Training):
        return model, work.run.scale
    return model, work.scale if isinstance(work, Compiling) else 0.0
