"""Recurrent networks of several layers become one operation a layer."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from flerm_fx.ops.table import facts


def layer_by_layer(graph: fx.Graph) -> None:
    """Replace each fused recurrent network that has dropout between its layers.

    The fused operation draws its masks within, and the one for its tangent would draw others.

    >>> from flerm_fx.capture.tracing import capture
    >>> gru = torch.nn.GRU(3, 4, num_layers=2, dropout=0.5, batch_first=True)
    >>> captured = capture(gru, torch.zeros(5, 2, 3))
    >>> names = [node.name for node in captured.probe_module.graph.nodes]
    >>> [name for name in names if name.startswith(("gru", "dropout"))]
    ['gru_input', 'dropout_mask', 'dropout_default', 'gru_input_1']
    """
    for node in list(graph.nodes):
        if facts(node.target).kind != "recurrent":
            continue
        x, state, weights, biases, layers, p, train, bidirectional, batch_first = node.args
        if layers > 1 and p and train:
            with graph.inserting_before(node):
                options = (biases, 1, 0.0, train, bidirectional, False)
                outputs = _layers(node, x, state, weights, layers, p, options, batch_first)
            for item in list(node.users):
                item.replace_all_uses_with(outputs[item.args[1]])
                graph.erase_node(item)
            graph.erase_node(node)


def _layers(
    fused: fx.Node,
    x: fx.Node,
    state: fx.Node | list[fx.Node],
    weights: list[fx.Node],
    layers: int,
    p: float,
    options: tuple[Any, ...],
    batch_first: bool,
) -> list[fx.Node]:
    """Return the output and the final states, computed by one layer after the other."""
    aten = torch.ops.aten
    call = fused.graph.call_function
    assert callable(fused.target)
    op: Callable[..., Any] = fused.target
    states = state if isinstance(state, list | tuple) else [state]
    directions = 2 if options[4] else 1
    each = len(weights) // layers
    if batch_first:  # the fused operation draws its masks time first
        x = call(aten.transpose.int, (x, 0, 1))
    final: list[list[fx.Node]] = [[] for _ in states]
    for layer in range(layers):
        if layer:
            x = call(aten.dropout.default, (x, p, True))
        rows = (0, layer * directions, (layer + 1) * directions)
        own = [call(aten.slice.Tensor, (h, *rows)) for h in states]
        given = own if isinstance(state, list | tuple) else own[0]
        result = call(op, (x, given, weights[layer * each : (layer + 1) * each], *options))
        x = call(operator.getitem, (result, 0))
        for place, last in enumerate(final, 1):
            last.append(call(operator.getitem, (result, place)))
    if batch_first:
        x = call(aten.transpose.int, (x, 0, 1))
    return [x, *(call(aten.cat.default, (last, 0)) for last in final)]
