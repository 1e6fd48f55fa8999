"""A picture of a law shows multipliers against size, with a line for each role."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flerm_fx.boundary.files import path_of, reason, write_whole
from flerm_fx.dump.plot import check_picture
from flerm_fx.errors import InputError, shown
from flerm_fx.laws.law import ScalingLaw
from flerm_fx.laws.points import named
from flerm_fx.laws.regression import on_axes
from flerm_fx.laws.role_law import RoleLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
"""Panels side by side, at most; and at least 2, which a legend takes."""


def write_picture(law: ScalingLaw, path: str | Path) -> None:
    """Draw each role's line with its interval of 90 % and its points; the largest size is hollow.

    Args:
        law: any.
        path: of the picture; its ending says in which format (``.png``, ``.svg``, ``.pdf``).

    Raises:
        InputError: the path cannot be written.
    """
    check_picture(path)
    file, content = path_of(path), io.BytesIO()
    try:
        draw(law).savefig(content, format=file.suffix[1:], dpi=120)
        write_whole(file, content.getvalue())
    except (OSError, ValueError) as error:  # a format that there is not is a ValueError
        raise InputError(
            f"{shown(path)}: the picture cannot be written there ({reason(error)})"
        ) from error


def draw(law: ScalingLaw) -> "Figure":
    """Return the figure of :func:`write_picture`: a panel for each role and each axis of it."""
    from matplotlib.figure import Figure

    panels = [(of, at) for of in law.roles.values() for at in range(len(of.line.axes))]
    columns = max(2, min(COLUMNS, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(4 * columns, 3 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, (of, at) in zip(axes.flat, panels, strict=False):
        _panel(place, of, at)
    for place in list(axes.flat)[len(panels) :]:
        place.set_axis_off()
    if panels:
        kinds: dict[str, Any] = {}
        for place in axes.flat:
            handles, labels = place.get_legend_handles_labels()
            kinds |= dict(zip(labels, handles, strict=True))
        figure.legend(kinds.values(), kinds, loc="outside upper center", ncols=4)
    for row in axes:
        row[0].set_ylabel("multiplier / share of mass")
    return figure


def _panel(axes: "Axes", of: RoleLaw, at: int) -> None:
    """Draw points that have moved along other axes too less what the law makes of those."""
    line = of.line
    largest = max(point.parameters for point in of.points)
    places = np.array([on_axes(line.axes, point.log_sizes) for point in of.points])
    moved = places[:, at] != 0
    others = np.array(line.exponents) * (np.arange(len(line.axes)) != at)
    y = np.array([point.log_multiplier for point in of.points]) - places @ others
    errors = np.array([point.error for point in of.points])
    for held in (False, True):
        chosen = moved & (np.array([point.parameters == largest for point in of.points]) == held)
        if not chosen.any():
            continue
        low, high = (np.exp(y[chosen] + sign * errors[chosen]) for sign in (-1, 1))
        centre = np.exp(y[chosen])
        axes.errorbar(
            np.exp(places[chosen, at]),
            centre,
            yerr=np.stack([centre - low, high - centre]),
            fmt="o",
            color="black",
            markerfacecolor="white" if held else "black",
            markersize=5,
            linewidth=1,
            label="largest size" if held else "measured",
        )
    x = np.linspace(min(0.0, places[:, at].min()), max(places[:, at].max(), math.log(2)), 50)
    ends = [end - line.exponents[at] for end in line.interval()[at]]
    axes.plot(np.exp(x), np.exp(line.exponents[at] * x), color="tab:blue", label="law")
    if all(map(math.isfinite, ends)):
        low, high = (np.exp((line.exponents[at] + end) * x) for end in ends)
        axes.fill_between(
            np.exp(x), low, high, color="tab:blue", alpha=0.2, linewidth=0, label="interval of 90 %"
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    name = shown(of.role.name)
    axes.set_title(name if len(name) <= 38 else "…" + name[-37:], fontsize=9, parse_math=False)
    what = named(line.axes[at], len(of.role.shape))
    axes.set_xlabel(f"{what}, times the base's", fontsize=8)
    axes.text(0.04, 0.06, f"exponent {line.exponents[at]:+.2f}", transform=axes.transAxes)
    axes.grid(alpha=0.3)
