"""The results become JSON."""

from collections.abc import Sequence
from dataclasses import asdict

from flerm_fx.boundary.text import json_text
from flerm_fx.commands.demo.optimum import Curve, find_optimum, measure_transfer
from flerm_fx.commands.demo.settings import Settings


def to_results(curves: Sequence[Curve], verdict: str, settings: Settings, seconds: float) -> str:
    """Return settings, curves, optima and transfer (octaves, nats per byte); what is not finite is
    null.

    ``curves`` are the small model's, standard training's and the compiled one's, in this order.
    """
    small, standard, compiled = curves
    document = {
        "format": "flerm_fx.demo",
        "version": 1,
        "verdict": verdict,
        "settings": asdict(settings) | {"out": str(settings.out)},
        "seconds": round(seconds, 1),
        "curves": [asdict(curve) | {"optimum": asdict(find_optimum(curve))} for curve in curves],
        "transfer": {
            "standard": asdict(measure_transfer(small, standard)),
            "compiled": asdict(measure_transfer(small, compiled)),
        },
    }
    return json_text(document) + "\n"
