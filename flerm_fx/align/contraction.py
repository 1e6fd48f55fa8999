"""Contraction leaves of a captured graph its parameters and the flow between them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from flerm_fx.align.nodes import TURNED, UNUSED, parameters, sites
from flerm_fx.boundary.compat import schema_of
from flerm_fx.capture.probed_as import CONSTANT
from flerm_fx.ops.operation import argument, operation
from flerm_fx.ops.table import (
    ONE_BY_ONE,
    RECURRENT,
    SHAPED_AS,
    SHAPED_LIKE,
    SIDE_BY_SIDE,
    TURNING,
    is_nonlinear,
)

if TYPE_CHECKING:
    import networkx as nx

_MEETINGS = ONE_BY_ONE | SIDE_BY_SIDE
"""The operations in which an input may meet what layers give."""


class Contraction:
    """A ``Contraction`` passes once over a graph; ``origin`` maps a value to the node that it is a
    function of.

    Args:
        met: nodes at which an input meets what layers make of it, as :func:`input_met` finds them.
    """

    def __init__(self, met: Collection[fx.Node] = ()) -> None:
        import networkx as nx

        self.result: nx.DiGraph = nx.DiGraph(complete=True)
        self.met = met
        self.data: set[fx.Node] = set()
        self.origin: dict[fx.Node, str] = {}
        self.parameters: dict[str, fx.Node] = {}
        self.turned: set[fx.Node] = set()  # values on data with axes exchanged since their origin
        self.bent: dict[fx.Node, str] = {}  # the first nonlinearity since the origin
        self.read: dict[str, set[str]] = defaultdict(set)  # those with which origins are read
        # Junctions of parameters alone, until the operation that reads them with data: a model may
        # compute them long before, and execution order is the order of use.
        self.waiting: dict[str, tuple[fx.Node, dict[str, str]]] = {}

    def visit(self, node: fx.Node) -> None:
        """Take in the next node."""
        if node.op == "placeholder":
            self.data.add(node)
        elif node.op == "get_attr":
            if "parameter" in node.meta:
                self.origin[node] = node.meta["parameter"]
                self.parameters.setdefault(self.origin[node], node)
        else:
            self._compute(node)

    def _compute(self, node: fx.Node) -> None:
        bare = {n for n in node.all_input_nodes if n in self.origin and n not in self.data}
        is_output = node.op == "output"
        operands: dict[str, str] = {}
        values = set()
        for slot, operand in _operands(node):
            if operand in self.origin and (operand in bare or not is_output):
                key = self.origin[operand]
                slot += TURNED * (operand in self.turned)
                operands[key] = f"{operands[key]},{slot}" if key in operands else slot
                values.add(operand)
        if is_output or (not _is_shape(node) and any(n in self.data for _, n in _operands(node))):
            self.data.add(node)
        if is_output:
            self._note_reads(n for _, n in _operands(node))
        if not operands or not _flows(node):
            return
        key = f"%{node.name}"
        if node in self.data and (bare or len(values) > 1 or node in self.met):
            self._note_reads(n for _, n in _operands(node))
            if operation(node) in RECURRENT:
                self._add_layers(node, operands)
            else:
                self.origin[node] = key
                self._add_junction(node, operands, site=node)
        elif len(operands) > 1:
            self._note_reads(n for _, n in _operands(node))
            self.origin[node] = key
            self.waiting[key] = node, operands
        else:
            self.origin[node] = next(iter(operands))
            self._note_bend(node)
            if node in self.data:
                turned = operation(node) in TURNING
                if turned != any(operand in self.turned for operand in values):
                    self.turned.add(node)

    def _note_bend(self, node: fx.Node) -> None:
        """Note the first nonlinearity on the way to a value, which may be that an input meets it
        there.
        """
        operands = [n for _, n in _operands(node)]
        bent = next((self.bent[n] for n in operands if n in self.bent), "")
        met = any(n in self.data and n not in self.origin and _flows(n) for n in operands)
        if bent or met or is_nonlinear(node.target):
            self.bent[node] = bent or operation(node)

    def _note_reads(self, operands: Iterable[fx.Node]) -> None:
        """Note through which nonlinearities the origins of some values are read."""
        for operand in operands:
            if operand in self.origin:
                self.read[self.origin[operand]].add(self.bent.get(operand, ""))

    def _add_layers(self, node: fx.Node, operands: dict[str, str]) -> None:
        """Add a junction for each layer of a recurrent network that is one operation."""
        layers = int(argument(node, "num_layers"))
        weights = len(argument(node, "params")) // layers
        members: list[dict[str, str]] = [{} for _ in range(layers)]
        for operand, slot in operands.items():
            indices = [int(index) for index in re.findall(r"params\[(\d+)\]", slot)]
            for index in indices:
                members[index // weights][operand] = f"params[{index % weights}]"
            if not indices:
                members[0][operand] = slot
        for layer, own in enumerate(members):
            if layer:
                own = {self.origin[node]: "input", **own}
            self.origin[node] = f"%{node.name}.{layer}"
            self._add_junction(node, own, site=node, key=self.origin[node])

    def _add_junction(
        self, node: fx.Node, operands: dict[str, str], site: fx.Node, key: str = ""
    ) -> None:
        """Add a junction behind what it reads, its first operand first."""
        for operand in operands:
            if operand in self.result:
                continue
            if operand in self.waiting:
                self._add_junction(*self.waiting[operand], site=site)
            else:
                kind, path = _module(node)
                self._add_parameter(operand, op=operation(site), kind=kind, path=path)
        key = key or f"%{node.name}"
        self.result.add_node(key, junction=True, op=operation(node), data=node in self.data)
        for operand, slot in operands.items():
            self.result.add_edge(operand, key, slot=slot)

    def _add_parameter(self, name: str, **attributes: str) -> None:
        rank = _rank(self.parameters[name])
        self.result.add_node(name, **{**UNUSED, "rank": rank, **attributes})

    def finish(self) -> nx.DiGraph:
        """Add the unused parameters, and what is known only at the end."""
        for name in self.parameters:
            if name not in self.result:
                self._add_parameter(name)
        for node, attributes in self.result.nodes(data=True):
            if attributes.get("junction"):
                attributes["through"] = ",".join(sorted(self.read[node]))
        for node in self.result:
            _straighten([attributes for *_, attributes in self.result.out_edges(node, data=True)])
        for order, name in enumerate(parameters(self.result)):
            reached = sites(self.result, name)
            slot = next(iter(reached.values()), "")
            self.result.nodes[name].update(order=order, uses=len(reached), slot=slot)
        return self.result


def _straighten(edges: list[dict[str, str]]) -> None:
    """Take what several read with axes exchanged for a value that has them so.

    A first block behind a convolution reads its input as the next blocks do, but turned.
    """
    slots = [slot for attributes in edges for slot in attributes["slot"].split(",")]
    if len(edges) > 1 and all(slot.endswith(TURNED) for slot in slots):
        for attributes in edges:
            attributes["slot"] = attributes["slot"].replace(TURNED, "")


def input_met(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes at which an input that a layer reads meets what layers give, before others.

    There it has gone past layers, as in ``x + layer(x)`` right on the input, or ``cat([h, x])``.
    """
    inputs: dict[fx.Node, set[fx.Node]] = {}  # that a value without parameters depends on
    alone: set[fx.Node] = set()  # parameters, and what is computed of these alone
    learned: set[fx.Node] = set()  # what depends on parameters
    read: set[fx.Node] = set()
    meetings: dict[fx.Node, set[fx.Node]] = {}
    behind: dict[fx.Node, set[fx.Node]] = {}  # the meetings that lead to a value
    followed: set[fx.Node] = set()
    for node in nodes:
        operands = [] if _is_shape(node) else [n for _, n in _operands(node)]
        given = set().union(*(inputs.get(n, ()) for n in operands))
        behind[node] = set().union(*(behind[n] for n in operands))
        if node.op == "placeholder" and _flows(node):
            given = {node}
        if (node.op == "get_attr" and "parameter" in node.meta) or (
            operands and alone.issuperset(operands)
        ):
            alone.add(node)
        elif not alone.isdisjoint(operands):
            read |= given
            followed |= behind[node]
        elif given and not learned.isdisjoint(operands) and operation(node) in _MEETINGS:
            meetings[node] = given
            behind[node].add(node)
        if node in alone or not learned.isdisjoint(operands):
            learned.add(node)
        else:
            inputs[node] = given if _flows(node) else set()
    return {node for node in followed if not meetings[node].isdisjoint(read)}


def live(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the output depends on."""
    pending = [graph.output_node()]
    live = set(pending)
    while pending:
        fresh = [n for n in pending.pop().all_input_nodes if n not in live]
        live.update(fresh)
        pending += fresh
    return live


def _operands(node: fx.Node) -> Iterator[tuple[str, fx.Node]]:
    """Return the operands that flow into a node, each with its argument; ``tensors[1]`` in a
    list.
    """
    schema = schema_of(node.target)
    names = [known.name for known in schema.arguments] if schema is not None else []
    slots = [*names, *(f"arg{index}" for index in range(len(names), len(node.args)))]
    for slot, operand in [*zip(slots, node.args, strict=False), *node.kwargs.items()]:
        if slot == "other" and operation(node) in SHAPED_AS:
            continue
        pending: list[tuple[str, Any]] = [(slot, operand)]
        while pending:
            where, value = pending.pop()
            if isinstance(value, fx.Node):
                yield where, value
            elif isinstance(value, list | tuple):
                pending += reversed([(f"{where}[{i}]", item) for i, item in enumerate(value)])
            elif isinstance(value, Mapping):
                pending += reversed([(f"{where}.{key}", item) for key, item in value.items()])


def _is_shape(node: fx.Node) -> bool:
    """Tell whether nothing but the shape and type of what a node reads has a part in its value."""
    integer = isinstance(node.meta.get("val"), int | torch.SymInt)
    return integer or node.target in CONSTANT or operation(node) in SHAPED_LIKE


def _flows(node: fx.Node) -> bool:
    """Tell whether the value is, or holds, a tensor of numbers that can carry a tangent."""
    if _is_shape(node):
        return False
    if "val" not in node.meta:
        return True
    value = node.meta["val"]
    leaves = value if isinstance(value, list | tuple) else [value]
    return any(
        isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        for leaf in leaves
    )


def _module(node: fx.Node) -> tuple[str, str]:
    """Class and path of the innermost module around a node; empty if unknown."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    if "empty_nn_module_stack" in path:
        return "", ""
    return kind.rpartition(".")[2], path.partition("@")[0]


def _rank(node: fx.Node) -> int:
    value: Any = node.meta.get("val")
    if value is None:
        value = node.graph.owning_module
        for attribute in str(node.target).split("."):
            value = getattr(value, attribute)
    return int(value.dim())
