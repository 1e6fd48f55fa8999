"""Pictures as in the paper: loss against rate, a line for each scale, the optimum marked."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.axes import Axis
from experiments.measures import complete, optimum, seed_mean
from experiments.methods import METHODS, Method
from experiments.runner import scales_of
from experiments.store import Result, Store

COLUMNS = 4


def draw(axis: Axis, store: Store, path: Path) -> None:
    """A panel for each method that has a whole curve."""
    methods = [METHODS[key] for key in METHODS if _has_curve(axis, METHODS[key], store)]
    rows, columns = -(-len(methods) // COLUMNS), min(len(methods), COLUMNS)
    figure = Figure(figsize=(1 + 3.2 * columns, 0.6 + 3 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    standard = store.of(axis, "standard")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(axis.scales)))
    seen = []
    for panel, method in zip(panels, methods, strict=False):
        results = store.of(axis, method.key)
        own = scales_of(axis, method)
        for scale, colour in zip(sorted(axis.scales), colours, strict=True):
            of = results if scale in own else standard
            losses = _line(panel, axis, of, scale, colour)
            seen.append(losses[np.isfinite(losses)])
        panel.set_xscale("log")
        if axis.grid.rates[-1] < 10 * axis.grid.rates[0]:  # a power of ten at most to label
            panel.set_xticks(axis.grid.rates, [f"{rate:.2g}" for rate in axis.grid.rates])
            panel.set_xticks([], minor=True)
        panel.set_title(method.title, fontsize="medium")
        panel.set_xlabel("learning rate")
        panel.tick_params(labelbottom=True)
    for unused in panels[len(methods) :]:
        unused.set_axis_off()
    for row in range(rows):
        panels[row * columns].set_ylabel("validation loss, nats")
    finite = np.concatenate(seen)
    if finite.size:
        lowest = finite.min()
        above = 2 * (np.median(finite) - lowest)  # what is higher has long gone wrong
        panels[0].set_ylim(lowest - 0.1 * above, lowest + above)
    lines = {scale: line for panel in panels for scale, line in _lines(panel)}
    title = axis.scaled.replace("_", " ")
    scales = [f"×{scale:g}" for scale in sorted(axis.scales) if f"×{scale:g}" in lines]
    handles = [lines[scale] for scale in scales]
    figure.legend(handles, scales, title=title, fontsize="small", loc="outside right upper")
    figure.suptitle(axis.title)
    figure.savefig(path, dpi=120)


def _lines(panel: Axes) -> Iterator[tuple[str, Artist]]:
    """What a panel's legend names, and by what."""
    handles, labels = panel.get_legend_handles_labels()
    return zip(labels, handles, strict=True)


def _has_curve(axis: Axis, method: Method, store: Store) -> bool:
    results = store.of(axis, method.key)
    return any(complete(results, scale, axis.grid.rates) for scale in scales_of(axis, method))


def _line(
    panel: Axes,
    axis: Axis,
    results: Sequence[Result],
    scale: float,
    colour: "np.ndarray[tuple[int], np.dtype[np.float64]]",
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    rates = axis.grid.rates
    seeds = complete(results, scale, rates)
    if not seeds:
        return np.array([])
    losses = seed_mean(results, scale, rates, seeds)
    panel.plot(rates, losses, color=colour, marker=".", label=f"×{scale:g}")
    best = optimum(rates, losses)
    if np.isfinite(best.loss):
        height = np.interp(best.log2_rate, np.log2(rates), losses)
        panel.plot(2**best.log2_rate, height, "*", color=colour, markersize=11)
    return losses
