"""``python -m experiments``: run sweeps, and report what they found."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from experiments.axes import AXES
from experiments.methods import MAIN, METHODS, QUICK
from experiments.report import show, write
from experiments.runner import run
from experiments.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    unknown = sorted({*options.axes} - {*AXES}) + sorted({*(options.methods or ())} - {*METHODS})
    if unknown:
        print(
            f"there is no axis or method {', '.join(unknown)}; axes: {', '.join(AXES)}; "
            f"methods: {', '.join(METHODS)}",
            file=sys.stderr,
        )
        return 2
    chosen = [AXES[key] for key in options.axes or AXES]
    axes = [axis.part(options.scales, options.every) for axis in chosen]
    methods = [METHODS[key] for key in options.methods or (QUICK if options.quick else MAIN)]
    if options.quick:
        options.seeds, axes = 1, [axis for each in chosen if (axis := each.quick())]
        methods = [replace(method, seeds=1) for method in methods]
    console = Console(width=None if sys.stdout.isatty() else 160)
    store = Store(options.out)
    if not options.report:
        for part in [axes] if options.quick else [[axis] for axis in axes]:
            run(
                part,
                methods,
                options.seeds,
                store,
                console,
                options.jobs,
                at_best=options.at_best,
            )
    show(axes, store, console)
    write(axes, store, options.markdown)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Train every scale of every axis at every rate, by every method; what the "
        "folder has is not run again.",
    )
    parser.add_argument("axes", nargs="*", help=f"of {', '.join(AXES)}; all if none is named")
    parser.add_argument("--methods", nargs="+", help=f"of {', '.join(METHODS)}")
    parser.add_argument(
        "--seeds", type=int, default=3, help="of each run; reports are of all there are"
    )
    parser.add_argument("--jobs", type=int, help="processes; as many as cores by default")
    parser.add_argument("--out", type=Path, default=Path("results-out"), help="folder of results")
    parser.add_argument("--scales", type=float, nargs="+", help="beside 1; all by default")
    parser.add_argument("--every", type=int, default=1, help="of so many rates of the grid one")
    parser.add_argument(
        "--at-best",
        action="store_true",
        help="train what is larger at the base's best rate alone",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one larger scale, some of the rates, one seed, one base; standard and compile",
    )
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--markdown", type=Path, help="also write tables and pictures of them here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
