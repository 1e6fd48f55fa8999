"""Experiments that are small enough for tests."""

from dataclasses import replace

import torch
from torch import Tensor

from experiments.axes import AXES, LM, Axis, Grid

TINY = replace(
    LM,
    settings={**LM.settings, "width": 16, "depth": 1},
    scales=(1, 2),
    grid=Grid(1e-3, 3, 6.0),
    steps=6,
    batch=4,
)


def tiny(key: str) -> Axis:
    """An axis's models, narrow and of one block, on bytes or on random pictures."""
    axis = AXES[key]
    return replace(axis, settings={"width": 16, "depth": 1}, steps=5, batch=2)


def inputs(axis: Axis) -> Tensor:
    """A batch of what the models take."""
    generator = torch.Generator().manual_seed(0)
    if axis.model == "vit":
        return torch.randn(2, 1, 28, 28, generator=generator)
    return torch.randint(256, (2, 64), generator=generator)
