"""The picture shows loss against learning rate."""

import io
import math
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from flerm_fx.commands.demo.optimum import Curve, find_optimum

# Two hues and a grey, told apart by colour-blind readers and on black and on white.
COLOURS = ("#808080", "#d9534f", "#2f8fd0")
_MARKERS = ("s", "o", "D")
# A colour that nothing else has, to be replaced by the page's own.
_INK = "#010203"


def draw(curves: Sequence[Curve], title: str, ink: str = "black") -> Figure:
    """Draw loss against learning rate, with the optimum of each curve marked by a star.

    A run that diverged is a cross at the top edge.
    """
    with rc_context(
        {
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
        }
    ):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        optima = [find_optimum(curve) for curve in curves]
        heights = [loss for curve in curves for loss in curve.losses]
        heights += [optimum.loss for optimum in optima]
        finite = [height for height in heights if math.isfinite(height)]
        bottom, top = (min(finite), max(finite)) if finite else (0.0, math.log(256))
        margin = 0.06 * (top - bottom) or 0.1
        axes.set_ylim(bottom - margin, top + 2 * margin)
        for curve, optimum, colour, marker in zip(curves, optima, COLOURS, _MARKERS, strict=True):
            axes.plot(
                curve.rates,
                curve.losses,
                color=colour,
                marker=marker,
                markersize=4.5,
                label=curve.name,
            )
            diverged = [
                r for r, loss in zip(curve.rates, curve.losses, strict=True) if math.isnan(loss)
            ]
            axes.plot(diverged, [top + margin] * len(diverged), "x", color=colour)
            for rate in diverged[:1]:
                axes.annotate(
                    "diverged ",
                    (rate, top + margin),
                    color=colour,
                    fontsize=9,
                    horizontalalignment="right",
                    verticalalignment="center",
                )
            if math.isfinite(optimum.loss):
                axes.plot(2.0**optimum.log2_rate, optimum.loss, "*", color=colour, markersize=15)
                axes.axvline(2.0**optimum.log2_rate, color=colour, linestyle=":", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("learning rate (Adam)")
        axes.set_ylabel("validation loss (nats per byte)")
        axes.set_title(title, fontsize=11)
        axes.grid(True, color="#808080", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, labelcolor=ink)
    return figure


def to_png(curves: Sequence[Curve], title: str) -> bytes:
    """Return the picture as PNG, on white."""
    content = io.BytesIO()
    draw(curves, title).savefig(content, format="png", dpi=160, facecolor="white")
    return content.getvalue()


def to_svg(curves: Sequence[Curve], title: str) -> str:
    """Return the picture as an ``<svg>`` element without background, in the colour of the text
    around.
    """
    text = io.StringIO()
    # The salt makes the element ids, and with them the file, the same every time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "flerm_fx"}):
        draw(curves, title, ink=_INK).savefig(
            text, format="svg", transparent=True, metadata={"Date": None}
        )
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
