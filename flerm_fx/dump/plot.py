"""Pictures of a run in function space show how each layer's FSLR moves as it trains."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flerm_fx.boundary.files import check, path_of, reason, write_whole
from flerm_fx.errors import InputError, shown
from flerm_fx.profile.profile import BaseProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

MOST_LABELS = 60
"""Rows of a heat map that are named; of more, every so many."""

MOST_KINDS = 20
"""Kinds of layers that have a line of their own: as many as there are colours."""

Values = NDArray[np.float64]


def write_plot(
    profiles: Mapping[str, BaseProfile], path: str | Path, *, per_rate: bool = False
) -> None:
    r"""Draw the trajectories of several profiles, each as a heat map and as lines.

    A line is a kind of layer: parameters whose names agree but for numbers, as the geometric mean
    over them, between the lowest and the highest. The loss of the probe batch, where the profile
    has it, is a dotted line with an axis of its own.

    Args:
        profiles: by the title of each.
        path: of the picture; its ending says in which format (``.png``, ``.svg``, ``.pdf``).
        per_rate: draw FSLRs, per unit of learning rate. Without, times the learning rate of the
            step: the root mean square change of the output that it makes, which can be compared
            between optimizers.

    Raises:
        InputError: a profile without a trajectory, or a path that cannot be written.
    """
    check_picture(path)
    for title, profile in profiles.items():
        if not profile.trajectory.steps:
            raise InputError(
                f"{shown(title)}: the profile has no trajectory; train inside of "
                "flerm_fx.record(...), and save the profile after that"
            )
    figure, content, file = draw(profiles, per_rate=per_rate), io.BytesIO(), path_of(path)
    with _writing(path):
        figure.savefig(content, format=file.suffix[1:], dpi=120)
        write_whole(file, content.getvalue())


def check_picture(path: str | Path) -> None:
    """Find out before long work whether a picture can be written; what is there stays as it is.

    Raises:
        InputError: the path cannot be written, or has no ending to say in which format.
    """
    file = path_of(path)
    if not file.suffix:
        raise InputError(
            f"{shown(path)}: the ending of a picture's path says in which format it is drawn; "
            "name one with .png, .svg or .pdf"
        )
    with _writing(path):
        check(file)


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # a format that there is not is a ValueError
        raise InputError(
            f"{shown(path)}: the picture cannot be written there ({reason(error)})"
        ) from error


def draw(profiles: Mapping[str, BaseProfile], *, per_rate: bool = False) -> "Figure":
    """Return the figure of :func:`write_plot`."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    values = {title: trajectory(profile, per_rate) for title, profile in profiles.items()}
    seen = np.concatenate([v[v > 0] for v in values.values()] or [np.ones(1)])
    if not seen.size:
        seen = np.ones(1)
    # The brightest six decades: what is below them is rounding.
    norm = LogNorm(max(seen.min(), seen.max() * 1e-6), seen.max())
    rows = [min(len(p.parameters), MOST_LABELS) for p in profiles.values()]
    heights = [max(3.5, 0.19 * count + 1.2) for count in rows]
    figure = Figure(figsize=(15, sum(heights)), layout="constrained")
    panels = figure.subplots(
        len(profiles), 2, squeeze=False, height_ratios=heights, width_ratios=(1, 1)
    )
    what = "FSLR" if per_rate else "change of the output by a step"
    for (title, profile), pair in zip(profiles.items(), panels, strict=True):
        _heat_map(pair[0], profile, values[title], norm, title)
        if pair[1] is not panels[0][1]:
            pair[1].sharey(panels[0][1])  # before it has lines, so that the limits hold all of them
        _lines(pair[1], profile, values[title], what)
        _losses(pair[1], profile)
    colours = panels[0][0].collections[0]
    figure.colorbar(colours, ax=panels[:, 0], label=what, pad=0.01, aspect=20 * len(profiles))
    return figure


def trajectory(profile: BaseProfile, per_rate: bool) -> Values:
    """FSLRs of shape (parameters, steps); times the learning rates, unless ``per_rate``.

    Those of parameter groups with rates of their own keep the proportion that they began with.
    """
    measured = profile.trajectory
    values = np.array([[e.value for e in measured.fslrs[name]] for name in profile.parameters])
    run = profile.optimizers
    own = np.array([[run.rate(name) / run.learning_rates[0]] for name in profile.parameters])
    return values if per_rate else values * own * np.array(measured.learning_rates)


def kind(name: str) -> str:
    """Return a parameter's name without the numbers in it.

    >>> kind("blocks.3.attention.query.weight")
    'blocks.*.attention.query.weight'
    """
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _heat_map(
    axes: "Axes", profile: BaseProfile, values: Values, norm: "LogNorm", title: str
) -> None:
    above = np.ma.masked_less_equal(values, 0)
    axes.pcolormesh(np.ma.clip(above, norm.vmin, norm.vmax), norm=norm, cmap="viridis")
    axes.set_title(shown(title), parse_math=False)
    axes.set_facecolor("lightgrey")
    axes.invert_yaxis()
    every = math.ceil(len(profile.parameters) / MOST_LABELS)
    labelled = range(0, len(profile.parameters), every)
    axes.set_yticks([row + 0.5 for row in labelled])
    axes.set_yticklabels([_short(profile.parameters[row]) for row in labelled])
    for label in axes.get_yticklabels():
        label.set(fontsize=7, parse_math=False)
    steps = profile.trajectory.steps
    columns = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 10)).round().astype(int))
    axes.set_xticks(columns + 0.5, [str(steps[column]) for column in columns])
    axes.set_xlabel("step")


def _lines(axes: "Axes", profile: BaseProfile, values: Values, what: str) -> None:
    from matplotlib import colormaps

    kinds: dict[str, list[int]] = {}
    for row, name in enumerate(profile.parameters):
        if (values[row] > 0).any():
            kinds.setdefault(kind(name), []).append(row)
    steps = profile.trajectory.steps
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    largest = sorted(kinds, key=lambda each: -float(values[kinds[each]].max()))[:MOST_KINDS]
    for each, colour in zip([k for k in kinds if k in largest], colours, strict=False):
        mean, low, high = _spread(values[kinds[each]])
        count = f" ({len(kinds[each])})" if len(kinds[each]) > 1 else ""
        axes.plot(steps, mean, color=colour, marker=".", label=_short(each) + count)
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    if len(steps) > 2 and steps[-1] - steps[-2] > 2 * (steps[1] - steps[0]):
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=steps[0] - 0.5)
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.minorticks_off()
    axes.set_xlabel("step")
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
    if kinds:
        beside = 1.12 if profile.trajectory.losses else 1.01  # where the axis of losses ends
        legend = axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(beside, 1))
        for text in legend.get_texts():
            text.set_parse_math(False)


def _losses(axes: "Axes", profile: BaseProfile) -> None:
    run = profile.trajectory
    if run.losses:
        beside = axes.twinx()
        beside.plot(run.steps, run.losses, color="black", linestyle=":", marker=".")
        beside.set_ylabel("loss (dotted)")


def _spread(rows: Values) -> tuple[Values, Values, Values]:
    """Geometric mean, lowest and highest of each column, of those above 0; NaN if there is none."""
    above = np.where(rows > 0, rows, np.nan)
    columns: list[Sequence[float]] = []
    for column in above.T:
        positive = column[~np.isnan(column)]
        if not positive.size:
            columns.append((math.nan,) * 3)
        else:
            columns.append((float(np.exp(np.log(positive).mean())), positive.min(), positive.max()))
    mean, low, high = np.array(columns).T
    return mean, low, high


def _short(name: str, most: int = 44) -> str:
    """Return a name that leaves room for the picture: its end says more than its beginning."""
    name = shown(name)
    return name if len(name) <= most else "…" + name[1 - most :]
