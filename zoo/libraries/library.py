"""What all libraries share."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.depth.stack import Depths, Rule, Stack

ONE = [((1,), (2,)), ((2,), (4,)), ((2,), (3,)), ((3,), (2,))]
"""Pairs of depths where there is one."""

DEEP = [((2,), (4,)), ((2,), (3,)), ((3,), (5,))]
"""Those of which no base has a single block."""

TWO = [((1, 1), (2, 3)), ((1, 2), (2, 3)), ((2, 1), (3, 4)), ((2, 3), (1, 2))]
FOUR = [
    ((1, 1, 1, 1), (1, 2, 3, 1)),
    ((1, 1, 2, 1), (2, 2, 4, 2)),
    ((2, 2, 2, 2), (1, 3, 4, 2)),
]


_operators: list[torch.library.Library] = []


def module(name: str) -> Any:
    """A module of a library, imported when it is needed.

    Some name operators of torchvision, of which no model here calls any; its builds for GPUs do not
    define them on a torch for CPUs.
    """
    if not _operators:
        _operators.append(torch.library.Library("torchvision", "DEF"))  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            _operators[0].define(  # type: ignore[no-untyped-call]
                f"{operator}(Tensor a, Tensor b, float c) -> Tensor"
            )
    return importlib.import_module(name)


def stack(
    name: str,
    library: str,
    build: Callable[[Depths], nn.Module],
    inputs: Callable[[], Any],
    pairs: Sequence[tuple[Depths, Depths]],
    rule: Rule | None = None,
) -> Stack:
    """An architecture of a library."""
    return Stack(name, library, build, inputs, pairs, rule)


def batch(*shape: int) -> Tensor:
    """Random features for a few examples."""
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))


class Picked(nn.Module):
    """A model of which the output is one tensor, and inputs are by position."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, *inputs: Tensor) -> Any:
        """What ``call`` makes of the inputs."""
        return self.call(self.model, *inputs)
