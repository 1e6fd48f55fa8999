"""``python -m experiments.dynamics``: FSLRs over training, by optimizer and architecture.

The paper's first application (section 4): each architecture is trained under each optimizer at its
best rate, and every parameter's FSLR is recorded at steps 0, 1, 2, 4, 8 and so on.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments.axes import AXES, GRIDS, Axis, under
from experiments.methods import METHODS
from experiments.report import line, put
from experiments.runner import best_rate, in_processes, run
from experiments.store import Store
from experiments.work import Recording
from flerm_fx import BaseProfile
from flerm_fx.dump.plot import trajectory, write_plot

ARCHITECTURES = ("mlp-width", "pre-width", "post-width", "residual-width")
"""Axes whose base models are trained."""

METHOD = replace(METHODS["match-log"], seeds=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.dynamics", description=__doc__)
    parser.add_argument("--optimizers", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(ARCHITECTURES))
    parser.add_argument("--every", type=int, default=2, help="of so many rates of the grid one")
    parser.add_argument("--jobs", type=int, help="processes; as many as cores by default")
    parser.add_argument("--out", type=Path, default=Path("results-out"), help="folder of results")
    parser.add_argument("--markdown", type=Path, help="page to write the tables to")
    options = parser.parse_args(arguments)
    store, console = Store(options.out), Console()
    folder = store.folder if options.markdown is None else options.markdown.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    text: list[str] = []
    for key in options.axes:
        axes = [_base(AXES[key], name, options.every) for name in options.optimizers]
        run(axes, [METHODS["standard"]], 1, store, console, options.jobs)
        missing = [
            Recording(axis, METHOD, best_rate(axis, store), path)
            for axis in axes
            if not (path := store.profile(axis.key, METHOD.recorded)).exists()
        ]
        in_processes("trajectories", missing, store, console, options.jobs)
        profiles = {
            axis.optimizer: BaseProfile.load(store.profile(axis.key, METHOD.recorded))
            for axis in axes
        }
        title = AXES[key].title.removesuffix(", width")
        picture = folder / f"dynamics-{key}.png"
        write_plot({f"{title}, {name}": each for name, each in profiles.items()}, picture)
        found = [line(COLUMNS), line(["---"] * len(COLUMNS))]
        found += [line(row) for name, each in profiles.items() for row in rows(name, each)]
        text += [f"### {title}", "", f"![{title}]({folder.name}/{picture.name})", "", *found, ""]
    console.print("\n".join(text))
    if options.markdown is not None:
        put(options.markdown, "dynamics", text)
    return 0


def _base(axis: Axis, optimizer: str, every: int) -> Axis:
    """The base model alone, under an optimizer."""
    return under(axis, optimizer).part(scales=(), every=every)


COLUMNS = ("optimizer", "step", "rate", "change", "of step 0", "first", "blocks", "last")


def rows(optimizer: str, profile: BaseProfile) -> Iterable[tuple[str, ...]]:
    r"""What the parts of a model contribute to the change of its output, over training.

    A column ``change`` is the sum over parameters of rate times FSLR, what a step changes if all
    parameters pull together; ``first``, ``blocks`` and ``last`` are the shares in it of what comes
    before the blocks, of them, and of what comes behind.
    """
    values, steps = trajectory(profile, per_rate=False), profile.trajectory.steps
    sites = [site_of(profile.parameters, row) for row in range(len(profile.parameters))]
    changes = values.sum(axis=0)
    for column, step in enumerate(steps):
        if step not in (0, 1, 8, 64) and column != len(steps) - 1:
            continue
        shares = [
            sum(values[row, column] for row, site in enumerate(sites) if site == wanted)
            / changes[column]
            for wanted in ("first", "blocks", "last")
        ]
        yield (
            optimizer,
            str(step),
            f"{profile.trajectory.learning_rates[column]:.2g}",
            f"{changes[column]:.3g}",
            f"{changes[column] / changes[0]:.2f}",
            *(f"{100 * share:.0f} %" for share in shares),
        )


def site_of(names: Sequence[str], row: int) -> str:
    """Return ``"first"``, ``"blocks"`` or ``"last"``: where in the model a parameter is."""
    inside = np.array([name.startswith("blocks.") for name in names])
    if inside[row]:
        return "blocks"
    return "first" if inside[row:].any() else "last"


if __name__ == "__main__":
    sys.exit(main())
