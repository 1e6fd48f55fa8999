"""Cleaning gives an exported graph the model's own names, and removes what export puts around
it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from flerm_fx.boundary.compat import (
    GUARDS,
    NO_GRAD_REGION,
    input_spec,
    pytree,
    rename,
    return_first_alone,
)
from flerm_fx.capture.captured import attribute
from flerm_fx.capture.probed_as import AT_ANY_STRIDES, PROBED_AS
from flerm_fx.ops.table import facts


def clean(exported: fx.GraphModule, model: nn.Module, names: dict[int, str]) -> fx.GraphModule:
    """Return a plain graph module with the model's own attribute names and annotated parameters."""
    graph = exported.graph
    _inline_no_grad(exported)
    root: dict[str, Any] = {}
    first: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if "nn_module_stack" in node.meta:
            node.meta["nn_module_stack"] = _own_stack(node.meta["nn_module_stack"])
        if facts(node.target).kind == "assertion" or (
            node.op == "call_module" and node.target == GUARDS
        ):
            graph.erase_node(node)
        elif node.target in AT_ANY_STRIDES:
            node.target = AT_ANY_STRIDES[node.target]
        elif node.op in ("get_attr", "call_module"):
            value = attribute(exported, node.target)
            node.target = node.target.removeprefix("model.")
            if isinstance(value, nn.Parameter) and id(value) in names:
                name = names[id(value)]
                if name in first:  # a tied parameter's other name
                    node.replace_all_uses_with(first[name])
                    graph.erase_node(node)
                    continue
                node.target = name
                node.meta = {
                    **node.meta,
                    "parameter": name,
                    "shape": tuple(value.shape),
                }
                first[name] = node
            elif not node.users:
                graph.erase_node(node)
                continue
            rename(node, node.target.replace(".", "_"))
            root[node.target] = value
    clean = fx.GraphModule(root, graph, class_name=type(model).__name__)
    clean.train(model.training)
    return clean


def _own_stack(stack: Mapping[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """Return the module stack without the wrapper around the model."""
    return {
        key: (path.removeprefix("model").removeprefix("."), kind)
        for key, (path, kind) in stack.items()
        if path
    }


def _inline_no_grad(graph_module: fx.GraphModule) -> None:
    """Replace ``wrap_with_set_grad_enabled(flag, submodule, …)`` by the submodule's nodes."""
    graph = graph_module.graph
    wrapped = NO_GRAD_REGION
    while regions := list(graph.find_nodes(op="call_function", target=wrapped)):
        for region in regions:
            enabled, submodule, *operands = region.args
            body = attribute(graph_module, submodule.target).graph
            with graph.inserting_before(region):
                if not enabled:
                    operands = [_detached(o) if isinstance(o, fx.Node) else o for o in operands]
                values = dict(zip(body.find_nodes(op="placeholder"), operands, strict=True))
                outputs: Any = graph.graph_copy(body, values)
                if not enabled:
                    outputs = pytree.tree_map_only(fx.Node, _detached, outputs)
            for item in list(region.users):
                item.replace_all_uses_with(outputs[item.args[1]])
                graph.erase_node(item)
            graph.erase_node(region)
            if not submodule.users:
                graph.erase_node(submodule)


def _detached(node: fx.Node) -> fx.Node:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return node
    detached = node.graph.call_function(torch.ops.aten.detach.default, (node,))
    detached.meta = {**node.meta, "no_grad": True}
    return detached


def _returned(output: fx.Node) -> tuple[Any, ...]:
    (returned,) = output.args
    assert isinstance(returned, tuple)
    return returned


def output_only(full: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of the graph that returns the selected output tensor alone."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in full.graph.nodes:
        if node.op == "output":
            *_, selected = _returned(node)
            graph.output(copies[selected])
        else:
            if node.meta.get("no_grad"):  # it stops gradients, not the change of the function
                copies[node] = copies[node.all_input_nodes[0]]
                continue
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].target = PROBED_AS.get(node.target, node.target)
    return fx.GraphModule(full, graph, class_name="Probe")


def without_selected_output(full: fx.GraphModule) -> pytree.TreeSpec:
    """Let the graph return what the model returns, and give back its input specification."""
    output = full.graph.output_node()
    output.args = (tuple(_returned(output)[:-1]),)
    return_first_alone(full.graph)
    return input_spec(full.graph)


def graph_order(graph: fx.Graph) -> list[str]:
    """Return canonical names of the used parameters, in order of first use."""
    return [
        argument.meta["parameter"]
        for node in graph.nodes
        if node.op != "get_attr"
        for argument in node.all_input_nodes
        if "parameter" in argument.meta
    ]
