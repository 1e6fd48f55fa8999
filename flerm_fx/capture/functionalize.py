"""In-place operations of a captured graph as out-of-place ones, so that a probe may run it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx


def is_mutation(node: fx.Node) -> bool:
    """Whether the operation writes to one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def is_functional(graph: fx.Graph) -> bool:
    """Whether no operation writes to an argument that a later one reads."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    return not any(is_mutation(node) and not _is_last_word(node, order) for node in graph.nodes)


def functionalize(graph: fx.Graph) -> bool:
    """Swap in-place operations for their out-of-place twins where nothing else reads the memory.

    ``relu_(linear)`` becomes ``relu(linear)``; an update of a buffer that nothing reads afterwards
    (BatchNorm's counter) is dropped. A write through a view, or to memory that is read again, is
    left alone.

    Returns:
        Whether the graph is free of mutation now.
    """
    _drop_running_statistics(graph)
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not is_mutation(node):
            continue
        if _is_last_word(node, order):
            graph.erase_node(node)
            continue
        twin = _twin(node.target)
        target = node.args[0]
        if twin is None or not isinstance(target, fx.Node):
            return False
        aliases = _aliases(target, until=node, order=order)
        if any(alias.op != "call_function" for alias in aliases):
            return False
        readers = {user for alias in aliases for user in alias.users} - {node} - aliases
        if any(order[reader] > order[node] for reader in readers):
            return False
        node.target = twin
    return True


def _drop_running_statistics(graph: fx.Graph) -> None:
    """Take the running statistics from norms that use the batch's: they write, but do not read."""
    for op in (torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default):
        for node in graph.find_nodes(op="call_function", target=op):
            x, weight, bias, mean, variance, from_batch, *rest = node.args
            if from_batch and not (mean is None and variance is None):
                node.args = (x, weight, bias, None, None, from_batch, *rest)


def _is_last_word(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """An update of a buffer whose result nothing reads, as of BatchNorm's batch counter."""
    target = node.args[0] if node.args else None
    return (
        not node.users
        and isinstance(target, fx.Node)
        and target.op == "get_attr"
        and all(order[user] <= order[node] for user in target.users)
    )


def _twin(target: Any) -> Callable[..., Any] | None:
    """``aten.relu.default`` for ``aten.relu_.default``."""
    name = target._schema.name.split("::")[-1]
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None)


def _may_alias(node: fx.Node) -> bool:
    """Whether the result may share memory with the first argument."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True
    return (
        torch.Tag.maybe_aliasing_or_mutating in node.target.tags  # type: ignore[union-attr]
        or any(result.alias_info is not None for result in schema.returns)
    ) and not is_mutation(node)


def _aliases(target: fx.Node, until: fx.Node, order: dict[fx.Node, int]) -> set[fx.Node]:
    """Nodes before ``until`` that may share memory with ``target``."""
    found: set[fx.Node] = set()
    waiting = [target]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        neighbours: Iterable[fx.Node] = [
            user for user in node.users if user is not until and _may_alias(user)
        ]
        if node.op == "call_function" and _may_alias(node):
            neighbours = [*neighbours, *node.all_input_nodes[:1]]
        waiting.extend(n for n in neighbours if n not in found)
    return found
