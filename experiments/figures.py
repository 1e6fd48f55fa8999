"""Pictures as in the paper: loss against rate, a line for each scale, the optimum marked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.axes import Axis
from experiments.measures import optimum, seed_mean
from experiments.methods import METHODS
from experiments.runner import scales_of
from experiments.store import Result, Store


def draw(axis: Axis, store: Store, seeds: int, path: Path) -> None:
    """A panel for each method that has results."""
    methods = [METHODS[key] for key in METHODS if key in store.methods(axis.key)]
    figure = Figure(figsize=(1 + 3.2 * len(methods), 3.6), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    standard = store.results(axis.key, "standard")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(axis.scales)))
    lowest = np.inf
    guess = 0.0
    for panel, method in zip(panels, methods, strict=True):
        results = store.results(axis.key, method.key)
        own = scales_of(axis, method)
        for scale, colour in zip(sorted(axis.scales), colours, strict=True):
            of = results if scale in own else standard
            losses = _line(panel, axis, of, scale, range(seeds), colour)
            finite = losses[np.isfinite(losses)]
            if finite.size:
                lowest = min(lowest, finite.min())
                guess = max(guess, finite.max())
        panel.set_xscale("log")
        panel.set_title(method.title, fontsize="medium")
        panel.set_xlabel("learning rate")
    panels[0].set_ylabel("validation loss, nats")
    if np.isfinite(lowest):
        margin = 0.05 * (guess - lowest)
        panels[0].set_ylim(lowest - margin, lowest + 0.6 * (guess - lowest))
    panels[-1].legend(title=axis.scaled.replace("_", " "), fontsize="small")
    figure.suptitle(axis.title)
    figure.savefig(path, dpi=120)


def _line(
    panel: Axes,
    axis: Axis,
    results: Sequence[Result],
    scale: float,
    seeds: Sequence[int],
    colour: "np.ndarray[tuple[int], np.dtype[np.float64]]",
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    rates = axis.grid.rates
    losses = seed_mean(results, scale, rates, seeds)
    panel.plot(rates, losses, color=colour, marker=".", label=f"×{scale:g}")
    best = optimum(rates, losses)
    if np.isfinite(best.loss):
        panel.plot(2**best.log2_rate, best.loss, "*", color=colour, markersize=11)
    return losses
