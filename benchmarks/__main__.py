"""``python -m benchmarks``: measure, print, and write what was found."""

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import (
    again,
    cases,
    compiling,
    emitters,
    estimators,
    following,
    holding,
    matching,
    multipliers,
    picture,
    precision,
    scaling,
)
from benchmarks import results as data
from benchmarks.machine import machine
from benchmarks.report import show, write_markdown
from benchmarks.results import Results
from benchmarks.settings import Progress, Settings
from benchmarks.tables import details, summary
from benchmarks.warm import warm_up

PARTS = (
    "estimators",
    "again",
    "compiling",
    "following",
    "multipliers",
    "holding",
    "scaling",
    "precision",
    "matching",
    "emitters",
)

Save = Callable[[Results], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_intermixed_args(arguments)
    unknown = sorted({*options.names} - {*PARTS, *cases.KEYS})
    if unknown:
        print(f"there is no part or case {', '.join(unknown)}; see --help", file=sys.stderr)
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = Settings(torch.device(options.device), options.quick)
    console = Console(width=None if sys.stdout.isatty() else 200)
    results = _earlier(options, settings)
    with console.status("warming up") as status:

        def progress(what: str) -> None:
            status.update(what)

        def save(found: Results) -> None:
            """After every part and case, since a whole run takes long."""
            new = [table for table in details(found) if table not in list(details(shown[-1]))]
            shown.append(found)
            show(console, new)
            _write(options, found)

        shown = [results]
        warm_up()
        measure(results, _chosen(options.names), settings, progress, save)
    if shown[-1].estimators:
        show(console, [summary(shown[-1].estimators)])
    _write(options, shown[-1])
    return 0


def measure(
    results: Results,
    chosen: dict[str, tuple[str, ...]],
    settings: Settings,
    progress: Progress,
    save: Save,
) -> None:
    """Run parts, each on the cases chosen for it; ``save`` is given all results so far."""

    def keep(**found: object) -> None:
        nonlocal results
        results = dataclasses.replace(results, **found)  # type: ignore[arg-type]
        save(results)

    for estimated in estimators.run(chosen.get("estimators", ()), settings, progress):
        others = {r.case: r for r in results.estimators} | {estimated.case: estimated}
        keep(estimators=[others[key] for key in cases.KEYS if key in others])
    for repeated in again.run(chosen.get("again", ()), settings, progress):
        keep(again=[*(r for r in results.again if r.title != repeated.title), repeated])
    for followed in following.run(chosen.get("following", ()), settings, progress):
        keep(following=[*(r for r in results.following if r.title != followed.title), followed])
    for compiled in compiling.run(chosen.get("compiling", ()), settings, progress):
        kept = [r for r in results.compiling if _setting(r) != _setting(compiled)]
        keep(compiling=[*kept, compiled])
    if "multipliers" in chosen:
        keep(multipliers=multipliers.run(settings, progress))
    if "holding" in chosen:
        keep(holding=holding.run(settings, progress))
    if "scaling" in chosen:
        keep(scaling=scaling.run(settings, progress))
    if "precision" in chosen:
        keep(precision=precision.run(settings, progress))
    if "matching" in chosen:
        keep(matching=matching.run(settings, progress))
    if "emitters" in chosen:
        progress("emitters")
        keep(emitters=emitters.run(settings.quick))


def _setting(result: data.CompileResult) -> tuple[str, int]:
    return result.title, result.settle


def _chosen(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parts to run, each with its cases: all of them where no case is named.

    Cases without a part mean the estimators.
    """
    keys = tuple(key for key in cases.KEYS if key in names) or cases.KEYS
    parts = [part for part in PARTS if part in names]
    if not parts:
        parts = list(PARTS) if not names else ["estimators"]
    return dict.fromkeys(parts, keys)


def _earlier(options: argparse.Namespace, settings: Settings) -> Results:
    """The results to add to: those of an earlier run on the same machine with ``--keep``."""
    here = machine(settings)
    path = _json(options)
    if options.keep and path.exists():
        earlier = data.read(path)
        if earlier.machine == here:
            return earlier
        print(f"{path} is from another machine or setting; it is not kept", file=sys.stderr)
    return Results(here)


def _write(options: argparse.Namespace, results: Results) -> None:
    data.write(results, _json(options))
    drawing = options.out / "error-cost.png"
    if results.estimators:
        picture.write(results.estimators, drawing)
    if options.markdown is not None:
        beside = options.markdown.parent / drawing.name
        if results.estimators and beside.resolve() != drawing.resolve():
            beside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(drawing, beside)
        write_markdown(options.markdown, results, drawing.name if results.estimators else None)


def _json(options: argparse.Namespace) -> Path:
    path: Path = options.out / "bench.json"
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"parts: {', '.join(PARTS)}; cases: {', '.join(cases.KEYS)}",
    )
    parser.add_argument("names", nargs="*", help="parts or cases, see below; all if none")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--threads", type=int, default=0, help="of torch; its own choice if 0")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that all runs")
    parser.add_argument("--keep", action="store_true", help="add to the results in --out")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--markdown", type=Path, help="page to write the tables to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
