"""The picture: error against cost."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.results import EstimatorResult, MethodResult

# Told apart by colour-blind readers (Okabe and Ito), and by their markers.
STYLES = {
    "sampled": ("#0072b2", "o"),
    "full_cov": ("#e69f00", "s"),
    "iid": ("#999999", "^"),
    "kronecker": ("#d55e00", "D"),
}
EXACT = "#009e73"
COLUMNS = 3

ROUNDING = 1e-4
"""An error below this is none, and has no place on a logarithmic axis."""


def write(cases: Sequence[EstimatorResult], path: Path) -> None:
    """One panel for each case, as PNG on white."""
    columns = min(COLUMNS, len(cases))
    rows = math.ceil(len(cases) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.6 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, case in zip(grid.flat, cases, strict=False):
        _panel(axes, case)
    for axes in list(grid.flat)[len(cases) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("RMS log error")
    for axes in grid.flat:
        axes.set_xlabel("cost in training steps")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=6, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white")


def _panel(axes: Axes, case: EstimatorResult) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for method, (colour, marker) in STYLES.items():
        found = sorted(
            (m for m in case.methods if m.method == method and m.error > ROUNDING),
            key=lambda m: m.samples or 0,
        )
        axes.plot(
            [m.steps.median for m in found],
            [m.error for m in found],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.3,
        )
        for one in (found[0], found[-1]) if len(found) > 1 else found:
            _label(axes, one, colour)
    exact = next(m for m in case.methods if m.method == "exact")
    axes.axvline(exact.steps.median, color=EXACT, linewidth=1.5)
    _choice(axes, case)
    axes.set_title(f"{case.title}; L = {case.tensors}", fontsize=9)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    axes.margins(x=0.12, y=0.12)
    axes.grid(True, color="#808080", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _label(axes: Axes, method: MethodResult, colour: str) -> None:
    axes.annotate(
        str(method.samples),
        (method.steps.median, method.error),
        xytext=(4, 4),
        textcoords="offset points",
        color=colour,
        fontsize=8,
    )


def _choice(axes: Axes, case: EstimatorResult) -> None:
    """A ring where the planner's choice lies; at the foot of the panel if it has no error."""
    auto = next(m for m in case.methods if m.method == "auto")
    ring = {"marker": "o", "markersize": 11, "fillstyle": "none", "color": "black"}
    if auto.error > ROUNDING:
        axes.plot(auto.steps.median, auto.error, **ring)  # type: ignore[arg-type]
    else:
        transform = axes.get_xaxis_transform()
        axes.plot(auto.steps.median, 0.04, transform=transform, clip_on=False, **ring)  # type: ignore[arg-type]


def _legend() -> list[Line2D]:
    entries = [
        Line2D([], [], color=colour, marker=marker, markersize=5, label=_name(method))
        for method, (colour, marker) in STYLES.items()
    ]
    entries.append(Line2D([], [], color=EXACT, label="exact (no error)"))
    ring = Line2D([], [], color="black", marker="o", markersize=10, fillstyle="none", linestyle="")
    ring.set_label("auto, rtol 5 %")
    return [*entries, ring]


def _name(method: str) -> str:
    return "sampled (draws)" if method == "sampled" else f"paper's {method} (passes)"
