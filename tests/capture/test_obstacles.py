"""Why a model has no graph: the construct and its line, whatever it is."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.capture.tracing import capture

HERE = Path(__file__)


class Net(nn.Module):
    counter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("counter", torch.zeros(3))


class DrawsInPython(Net):
    def forward(self, x: Tensor) -> Tensor:
        scale = random.random()
        return self.fc(x) * scale


class DrawsInNumpy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.scale()

    def scale(self) -> float:
        return float(np.random.rand())


class ReplacesABuffer(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.counter = self.counter + 1
        return self.fc(x) + self.counter


class DependsOnData(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


class FixesTheBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.fc(row) for row in x])


class LeavesTorch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.from_numpy(np.sin(x.detach().numpy()))


class HasAGraph(Net):
    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(self.fc(x))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


class HasABackwardPass(Net):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Doubled.apply(self.fc(x))  # type: ignore[no-untyped-call]
        return out


class HasABackwardHook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3)

        def doubled(module: nn.Module, inner: object, outer: tuple[Tensor]) -> tuple[Tensor]:
            return (outer[0] * 2,)

        self.last.register_full_backward_hook(doubled)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(x))


@pytest.mark.parametrize(
    ("kind", "construct", "line"),
    [
        (DrawsInPython, "draws from Python's random", "scale = random.random()"),
        (DrawsInNumpy, "draws from numpy.random", "return float(np.random.rand())"),
        (ReplacesABuffer, "in the place of buffer 'counter'", "self.counter = self.counter + 1"),
        (DependsOnData, "data-dependent", "return self.fc(x) if x.sum() > 0 else self.fc(-x)"),
        (LeavesTorch, ".numpy()", "return self.fc(x) + torch.from_numpy(np.sin("),
        (FixesTheBatch, "for a batch of 4 alone", "def forward(self, x: Tensor) -> Tensor:"),
        (HasAGraph, "attribute 'graph'", "class HasAGraph(Net):"),
        (HasABackwardPass, "Doubled is a torch.autograd.Function", "class Doubled(torch."),
        (HasABackwardHook, "a backward hook changes gradients", "def doubled(module:"),
    ],
)
def test_the_construct_is_named_with_its_line(kind: type[Net], construct: str, line: str) -> None:
    torch.manual_seed(0)
    with pytest.warns(flerm_fx.CaptureWarning, match="does not export to a graph"):
        found = capture(kind(), torch.randn(4, 3)).reason
    assert construct in found
    place = re.search(rf"{re.escape(str(HERE))}:(\d+)", found)
    assert place, found
    at = HERE.read_text(encoding="utf-8").splitlines()[int(place[1]) - 1 :]
    assert line in at[0], found


def test_telling_the_line_draws_nothing() -> None:
    random.seed(0)
    np.random.seed(0)
    states = random.getstate(), np.random.get_state()[2]
    for kind in (DrawsInPython, DrawsInNumpy):
        with pytest.warns(flerm_fx.CaptureWarning):
            capture(kind(), torch.randn(4, 3))
    assert (random.getstate(), np.random.get_state()[2]) == states
