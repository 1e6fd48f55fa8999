"""What is made larger, and what it is trained on: the axes of the study."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from experiments.data import Name as DataName
from models import ResMLP, Transformer

FACTOR = 1.85
"""Between neighbouring learning rates, as in the paper: 0.89 octaves."""

Scaled = Literal["width_multiplier", "depth_multiplier", "init_scale"]


@dataclass(frozen=True)
class Grid:
    """``count`` rates from ``lowest``, each ``factor`` times the one before.

    >>> Grid(1.0, 3).rates
    (1.0, 1.85, 3.4225000000000003)
    """

    lowest: float
    count: int = 16
    factor: float = FACTOR

    @property
    def rates(self) -> tuple[float, ...]:
        """All of them, increasing."""
        return tuple(self.lowest * self.factor**k for k in range(self.count))

    def coarse(self) -> "Grid":
        """Every other rate."""
        return replace(self, count=-(-self.count // 2), factor=self.factor**2)


@dataclass(frozen=True)
class Axis:
    """One family of models, from the base to the largest.

    Attributes:
        key: names it on the command line and in files.
        title: names it in tables.
        data: what it is trained on.
        model: the architecture.
        settings: of the base model.
        scaled: which argument of the architecture changes.
        scales: its values; the base is 1.
        grid: learning rates.
        steps, batch: of every run.
        optimizer: see :data:`experiments.training.OPTIMIZERS`.
    """

    key: str
    title: str
    data: DataName
    model: Literal["resmlp", "transformer"]
    settings: Mapping[str, Any]
    scaled: Scaled
    scales: tuple[float, ...]
    grid: Grid = field(default=Grid(1e-5))
    steps: int = 300
    batch: int = 128
    optimizer: str = "adam"

    def quick(self) -> "Axis":
        """One larger scale, every other rate, half the steps."""
        larger = self.scales[min(2, len(self.scales) - 1)]
        steps, grid = self.steps // 2, self.grid.coarse()
        return replace(self, scales=(1, larger), grid=grid, steps=steps)

    def build(self, scale: float) -> nn.Module:
        """The model, with torch's random state as it is."""
        value = scale if self.scaled == "init_scale" else int(scale)
        settings = {**self.settings, self.scaled: value}
        return ResMLP(**settings) if self.model == "resmlp" else Transformer(**settings)


MLP = Axis(
    "mlp-width",
    "ResMLP, width",
    "images",
    "resmlp",
    {"in_features": 784, "out_features": 10, "width": 32, "depth": 4},
    "width_multiplier",
    (1, 2, 4, 8, 16),
)
LM = Axis(
    "pre-width",
    "transformer, pre-norm, width",
    "bytes",
    "transformer",
    {"width": 32, "depth": 2, "context": 64, "norm": "pre"},
    "width_multiplier",
    (1, 2, 4, 8),
    steps=200,
    batch=16,
)

_INIT_SCALES = (1, 0.125, 0.25, 0.5, 2, 4, 8)


def _transformers() -> list[Axis]:
    found = []
    for norm, name in (("pre", "pre"), ("post", "post"), ("post-pre-residual", "residual")):
        wide = replace(
            LM,
            key=f"{name}-width",
            title=f"transformer, {norm}-norm, width",
            settings={**LM.settings, "norm": norm},
        )
        deep = replace(
            wide,
            key=f"{name}-depth",
            title=f"transformer, {norm}-norm, depth",
            scaled="depth_multiplier",
        )
        found += [wide, deep]
    found.append(
        replace(
            LM,
            key="pre-init",
            title="transformer, pre-norm, initialisation",
            settings={**LM.settings, "qk_norm": True},
            scaled="init_scale",
            scales=_INIT_SCALES,
        )
    )
    return found


def _optimizers() -> list[Axis]:
    """The widths of the ResMLP under every other optimizer."""
    grids = {
        "adamw": Grid(1e-5),
        "sgd": Grid(1e-4),
        "sign": Grid(1e-6),
        "adagrad": Grid(1e-4),
        "adamax": Grid(1e-5),
        "muon": Grid(1e-4),
    }
    return [
        replace(MLP, key=f"mlp-width-{name}", title=f"{MLP.title}, {name}", optimizer=name, grid=g)
        for name, g in grids.items()
    ]


AXES: dict[str, Axis] = {
    axis.key: axis
    for axis in (
        MLP,
        replace(
            MLP,
            key="mlp-depth",
            title="ResMLP, depth",
            scaled="depth_multiplier",
        ),
        replace(
            MLP,
            key="mlp-init",
            title="ResMLP, initialisation",
            scaled="init_scale",
            scales=_INIT_SCALES,
        ),
        *_transformers(),
        *_optimizers(),
    )
}
"""All axes, by key."""
