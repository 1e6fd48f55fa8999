"""The results become one HTML file that needs nothing else."""

import math
from collections.abc import Sequence
from html import escape

from flerm_fx.commands.demo.figure import COLOURS, to_svg
from flerm_fx.commands.demo.optimum import Curve, find_optimum

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
       background: Canvas; color: CanvasText; }
svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem; text-align: right; border-bottom: 1px solid #8886; }
th { vertical-align: bottom; }
.best { font-weight: bold; text-decoration: underline; }
""".strip()


def to_page(curves: Sequence[Curve], title: str, verdict: str, settings: str) -> str:
    """Return a page with the verdict, the picture (inline SVG) and the table, for dark and
    light.
    """
    header = "".join(
        f'<th scope="col" style="border-bottom: 3px solid {colour}">{escape(curve.name)}</th>'
        for curve, colour in zip(curves, COLOURS, strict=True)
    )
    rows = "\n".join(
        f'<tr><th scope="row">{rate:.3g}</th>{"".join(_cell(curve, i) for curve in curves)}</tr>'
        for i, rate in enumerate(curves[0].rates)
    )
    optima = "".join(f"<td>{_optimum(curve)}</td>" for curve in curves)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(verdict)}</p>
<figure role="img" aria-label="Loss against learning rate for the three models">
{to_svg(curves, title)}
</figure>
<div class="scroll">
<table>
<caption>Validation loss in nats per byte; the lowest of each column in bold</caption>
<thead><tr><th scope="col">learning rate</th>{header}</tr></thead>
<tbody>
{rows}
<tr><th scope="row">optimum</th>{optima}</tr>
</tbody>
</table>
</div>
<p>{escape(settings)}</p>
</body>
</html>
"""


def _cell(curve: Curve, i: int) -> str:
    text = "diverged" if math.isnan(curve.losses[i]) else f"{curve.losses[i]:.3f}"
    return f'<td class="best">{text}</td>' if i == curve.best else f"<td>{text}</td>"


def _optimum(curve: Curve) -> str:
    optimum = find_optimum(curve)
    if math.isnan(optimum.loss):
        return "none"
    return f"{optimum.loss:.3f} at {2**optimum.log2_rate:.3g}"
