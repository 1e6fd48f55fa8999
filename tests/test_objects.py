"""What objects of the interface say of themselves: a line, and in a notebook a table behind it."""

import copy
from html import escape
from operator import methodcaller
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.align.aligning import Match
from flerm_fx.align.doubts import Doubt

in_a_notebook = methodcaller("_repr_html_")
"""What IPython asks an object for."""

X, Y = torch.linspace(-1, 1, 64).reshape(16, 4), torch.arange(16) % 3


class Net(nn.Sequential):
    """Two layers."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(width)
        super().__init__(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


def one_line(found: Any) -> str:
    """The line, which a notebook shows too, with each parameter behind it."""
    line = repr(found)
    assert "\n" not in line
    page = in_a_notebook(found)
    assert f"<code>{escape(line)}</code>" in page
    assert "2.weight" in page
    return line


@pytest.fixture(scope="module")
def recorder() -> flerm_fx.Recorder:
    model = Net(8)
    optimizer = adam(model)
    with flerm_fx.record(model, optimizer, [(X, Y)] * 3, settle=4, every=2) as recorder:
        assert "step 0, not measured yet)" in one_line(recorder)
        train(model, optimizer, 3)
    return recorder


def test_a_recorder_and_its_profile(recorder: flerm_fx.Recorder) -> None:
    assert one_line(recorder) == (
        "Recorder(Net, 4 parameters, settled at 0.01; step 3, measured at 2 steps from 0 to 2)"
    )
    assert one_line(recorder.profile).startswith("BaseProfile(4 parameters, torch.optim.Adam at lr")


def test_a_compiled_model(recorder: flerm_fx.Recorder) -> None:
    compiled = flerm_fx.compile(Net(32), recorder.profile, method="exact")
    found = sorted(compiled.multipliers.values())
    expected = (
        f"CompiledModel(Net, 4 parameters: 4 matched; multipliers {found[0]:.2g} to "
        f"{found[-1]:.2g}; settled at 0.01)"
    )
    assert one_line(compiled) == one_line(copy.deepcopy(compiled)) == expected


def test_a_matcher(recorder: flerm_fx.Recorder) -> None:
    model = Net(32)
    optimizer = adam(model)
    with flerm_fx.match(model, optimizer, recorder.profile, every=2, method="exact") as matcher:
        assert one_line(matcher) == (
            "Matcher(4 parameters; multipliers 1 to 1; step 0, not measured yet)"
        )
        train(model, optimizer, 1)
    found = matcher.multipliers.values()
    assert one_line(matcher) == (
        f"Matcher(4 parameters; multipliers {min(found):.2g} to {max(found):.2g}; step 1, "
        "measured at step 0)"
    )


def test_a_law(recorder: flerm_fx.Recorder) -> None:
    models = [flerm_fx.compile(Net(width), recorder.profile) for width in (16, 32)]
    line = one_line(flerm_fx.ScalingLaw.fit(models))
    assert line.startswith("ScalingLaw(4 roles, fitted to 2 models; exponents ")
    assert line.endswith("findings)")


def test_a_match() -> None:
    doubt = Doubt("a", ("b",), "names differ")
    assert repr(Match("a", (("b", 1.0),), doubt)) == "Match('a' answers to 'b', in doubt)"
    assert repr(Match("a", (("b", 0.5), ("c", 0.25)))) == (
        "Match('a' answers to 'b' ×0.5, 'c' ×0.25)"
    )
    assert repr(Match("a", ())) == "Match('a' answers to nothing)"
