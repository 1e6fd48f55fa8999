"""Arithmetic of operations, against torch's own count."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from flerm_fx.capture.tracing import capture
from flerm_fx.ops.sizes import flops
from flerm_fx.probe.workload import workload


class Op(nn.Module):
    def __init__(self, op: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.op = op
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x, *self.weights)


CASES: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], tuple[int, ...]]] = {
    "linear": (F.linear, ((40, 20), (40,)), (3, 5, 20)),
    "mm": (lambda x, w: x.mm(w), ((20, 40),), (3, 20)),
    "from the left": (lambda x, w: (w @ x.mT).mT, ((40, 20),), (3, 20)),
    "matmul": (lambda x, w: x @ w, ((20, 40),), (3, 2, 20)),
    "bmm": (lambda x, g: (x * g).bmm(x.mT), ((20,),), (3, 4, 20)),
    "addmm": (lambda x, b, w: torch.addmm(b, x, w), ((40,), (20, 40)), (3, 20)),
    "baddbmm": (
        lambda x, b, w: torch.baddbmm(b, x.expand(2, -1, -1), w),
        ((2, 1, 3), (2, 40, 3)),
        (4, 40),
    ),
    "einsum": (lambda x, w: torch.einsum("bti,io->bto", x, w), ((20, 40),), (3, 2, 20)),
    "einsum, the rest": (lambda x, w: torch.einsum("...i,oi->...o", x, w), ((7, 20),), (3, 2, 20)),
    "conv2d": (F.conv2d, ((6, 3, 3, 3), (6,)), (2, 3, 8, 8)),
    "grouped": (lambda x, w: F.conv1d(x, w, groups=3), ((6, 2, 3),), (2, 6, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_products_and_sums_are_those_that_torch_counts(name: str) -> None:
    op, shapes, inputs = CASES[name]
    model, x = Op(op, *shapes), torch.randn(inputs)
    with FlopCounterMode(display=False) as counted:
        model(x)
    graph_module = capture(model, x).probe_module
    assert graph_module is not None
    found = sum(flops(node) for node in graph_module.graph.nodes if node.op == "call_function")
    assert found == counted.get_total_flops()


@pytest.mark.parametrize("head", [nn.Linear(8, 80, bias=False), Op(lambda x, w: x @ w, (8, 80))])
def test_tangents_do_not_pay_for_a_head_with_more_outputs_than_inputs(head: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), head)
    graph_module = capture(model, torch.zeros(2, 8)).probe_module
    assert graph_module is not None
    # The first layer goes through itself alone: far less than the head, which is most of it all.
    assert workload(graph_module.graph, ["0.weight"]).passes < 0.25
