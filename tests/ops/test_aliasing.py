"""Memory that operations share, against where their results lie."""

from typing import Any

import pytest
import torch
from torch import fx

from flerm_fx.emit.passing import mutated
from flerm_fx.ops.aliasing import is_functional, is_mutation, may_alias

aten = torch.ops.aten

SHARING: dict[Any, tuple[Any, ...]] = {
    aten.alpha_dropout.default: (0.5, False),
    aten.contiguous.default: (),
    aten.dropout.default: (0.5, False),
    aten.feature_dropout.default: (0.5, False),
    aten.flatten.using_ints: (0,),
    aten.reshape.default: ([-1],),
    aten.t.default: (),
    aten.to.dtype: (torch.float32,),
    aten.view.default: ([-1],),
}
"""Operations whose result is in the memory of their argument, called so."""

APART: dict[Any, tuple[Any, ...]] = {
    aten.batch_norm.default: (None, None, None, None, True, 0.1, 1e-5, False),
    aten.instance_norm.default: (None, None, None, None, True, 0.1, 1e-5, False),
    aten.clone.default: (),
    aten.mm.default: (torch.zeros(4, 4),),
    aten.neg.default: (),
}


def calls(op: Any, rest: tuple[Any, ...]) -> tuple[fx.Graph, fx.Node]:
    graph = fx.Graph()
    return graph, graph.call_function(op, (graph.placeholder("x"), *rest))


@pytest.mark.parametrize("op", SHARING, ids=str)
def test_what_returns_its_argument_may_share_it(op: Any) -> None:
    x = torch.zeros(4, 4)
    assert op(x, *SHARING[op]).data_ptr() == x.data_ptr()
    graph, y = calls(op, SHARING[op])
    assert may_alias(y)
    graph.call_function(aten.relu_.default, (y,))
    assert {"x", y.name} <= {node.name for node in mutated(graph)}


@pytest.mark.parametrize("op", APART, ids=str)
def test_new_memory_is_no_alias(op: Any) -> None:
    x = torch.zeros(4, 4) if op is aten.mm.default else torch.zeros(2, 2, 4)
    assert op(x, *APART[op]).data_ptr() != x.data_ptr()
    graph, y = calls(op, APART[op])
    assert not may_alias(y)
    graph.call_function(aten.relu_.default, (y,))
    assert "x" not in {node.name for node in mutated(graph)}


def test_a_graph_with_a_write_that_is_read_is_not_functional() -> None:
    graph, y = calls(aten.relu_.default, ())
    assert is_mutation(y)
    assert not is_functional(graph)
