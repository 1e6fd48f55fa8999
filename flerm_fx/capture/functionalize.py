"""This pass makes in-place operations of a captured graph out-of-place, so that a probe may run
it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from flerm_fx.boundary.compat import schema_of
from flerm_fx.ops.aliasing import is_last_word, is_mutation, may_alias
from flerm_fx.ops.operation import argument, position_of
from flerm_fx.ops.table import facts


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
        if is_last_word(node, order):
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
    for node in graph.nodes:
        by_batch = facts(node.target).by_batch
        if by_batch and argument(node, by_batch):
            for name in ("running_mean", "running_var"):
                if argument(node, name) is not None:
                    node.update_arg(position_of(node.target, name), None)


def _twin(target: Any) -> Callable[..., Any] | None:
    """Return the out-of-place twin of an operation, which takes arguments of the same types.

    It is ``aten.relu.default`` for ``aten.relu_.default``, and ``aten.pow.Tensor_Scalar`` for
    ``aten.pow_.Scalar``.
    """
    schema = schema_of(target)
    name = schema.name.split("::")[-1]
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    overloads = [getattr(packet, each) for each in packet.overloads()] if packet else []
    # The overload of the same name first, of those that take the same.
    overloads.sort(key=lambda each: schema_of(each).overload_name != schema.overload_name)
    return next((each for each in overloads if _types(each) == _types(target)), None)


def _types(target: Any) -> list[str]:
    """Return the types of an operation's arguments."""
    return [str(argument.type) for argument in schema_of(target).arguments]


def _aliases(target: fx.Node, until: fx.Node, order: dict[fx.Node, int]) -> set[fx.Node]:
    """Return nodes before ``until`` that may share memory with ``target``."""
    aliases: set[fx.Node] = set()
    waiting = [target]
    while waiting:
        node = waiting.pop()
        if node in aliases:
            continue
        aliases.add(node)
        neighbours: Iterable[fx.Node] = [
            user
            for user in node.users
            if user is not until and may_alias(user) and not is_mutation(user)
        ]
        if node.op == "call_function" and may_alias(node) and not is_mutation(node):
            neighbours = [*neighbours, *node.all_input_nodes[:1]]
        waiting.extend(n for n in neighbours if n not in aliases)
    return aliases
