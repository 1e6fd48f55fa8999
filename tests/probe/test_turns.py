from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flerm_fx.capture.tracing import capture
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.planner import Method
from flerm_fx.probe.turns import Turn
from tests.rounding import rounding


@pytest.mark.parametrize(
    ("size", "turns", "count"), [(16, 8, 4), (64, 8, 16), (6, 8, 4), (20, 4, 10)]
)
def test_examples_have_as_many_turns_but_for_one(size: int, turns: int, count: int) -> None:
    chosen = [Turn(index, turns).of(torch.arange(size)).tolist() for index in range(turns)]
    assert [len(set(part)) for part in chosen] == [count] * turns
    had = Counter(example for part in chosen for example in part)
    assert len(had) == size
    assert min(had.values()) >= 2
    assert max(had.values()) - min(had.values()) <= 1


def test_all_examples_are_measured_in_one_turn_and_where_there_are_few() -> None:
    batch = {"x": torch.zeros(16, 2), "scale": 2.0}
    assert Turn(0, 1).of(batch) is batch
    few = torch.zeros(4, 2)
    assert Turn(3, 8).of(few) is few
    graph = torch.zeros(9, 2), torch.zeros(2, 12)
    assert Turn(3, 8).of(graph) is graph


def test_every_tensor_of_a_batch_is_divided_alike() -> None:
    part = Turn(1, 8).of({"x": torch.arange(16.0).reshape(16, 1), "y": torch.arange(16), "n": 3})
    assert isinstance(part, dict)
    assert part["x"].flatten().tolist() == part["y"].tolist() == [4, 5, 6, 7]
    assert part["n"] == 3


def _updates(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}


@pytest.mark.parametrize("graph", [True, False])
def test_a_turn_is_measured_on_its_own_examples(graph: bool) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    x = torch.randn(16, 5)
    prober = CaptureProber(capture(model, x, graph=graph))
    weights, updates = dict(model.named_parameters()), _updates(model)
    methods: tuple[Method, ...] = ("exact", "auto", "live")
    for method in methods:
        options: dict[str, Any] = {"method": method, "rtol": 0.9, "samples": 3}
        measured = prober.estimate(weights, updates, x, turn=Turn(2, 8), **options)
        alone = prober.estimate(weights, updates, x[8:12], **options)
        for name, estimate in measured.items():
            assert estimate.value == pytest.approx(alone[name].value, rel=rounding(5 * 7 * 3))


@pytest.mark.parametrize("method", ["exact", "live"])
def test_examples_that_influence_each_other_have_no_turns(method: Method) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    x = torch.randn(16, 5)
    prober = CaptureProber(capture(model, x))
    weights, updates = dict(model.named_parameters()), _updates(model)
    turn = Turn(2, 8)
    measured = prober.estimate(weights, updates, x, method=method, samples=3, turn=turn)
    assert measured == prober.estimate(weights, updates, x, method=method, samples=3)
