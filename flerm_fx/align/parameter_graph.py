"""The parameter graph: a captured graph contracted to its parameters and the flow between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from flerm_fx.capture.captured import Capture
from flerm_fx.capture.probed_as import CONSTANT
from flerm_fx.compat import schema_of
from flerm_fx.errors import ProfileError
from flerm_fx.ops.operation import argument, operation
from flerm_fx.ops.table import RECURRENT, SHAPED_AS, SHAPED_LIKE, TURNING

if TYPE_CHECKING:
    import networkx as nx

TURNED = "^T"
"""What the slot of an edge ends in if axes are exchanged on the way."""

_UNUSED = {"op": "", "slot": "", "rank": 0, "kind": "", "order": 0, "uses": 0, "path": ""}
_JUNCTION = {"op": "", "data": True}


def parameter_graph(graph: fx.Graph) -> nx.DiGraph:
    r"""Contract a captured graph to its parameters and the places where values meet.

    A *parameter* node, keyed by its canonical name, has the attributes

    - ``op``, ``slot``: the first operation that reads it together with data, and the argument of
      that operation at which it arrives, such as ``"aten.linear"`` and ``"weight"``;
    - ``rank``: number of dimensions (sizes are left out, so that other widths give equal graphs);
    - ``kind``: class of the innermost module around that operation, ``path``: that module's name;
    - ``order``: position in execution order, ``uses``: how many operations on data read it.

    A *junction* node, keyed ``"%"`` and the name of the captured node, has ``junction=True``,
    ``op``, and ``data``, which tells whether it depends on data. Junctions are the operations on
    data that read a parameter, and those in which several values meet (a residual addition,
    attention) or several parameters (the two factors of a weight norm). An edge ``u -> v`` with
    attribute ``slot`` says that v reads u in that argument; it ends in ``"^T"`` if axes are
    exchanged on the way (unless they are for all of several readers), which tells mixing over
    tokens from mixing over channels. All else is
    contracted: activations, reshapes, casts, scale nodes, frozen weights, integers such as sizes
    and indices, and tensors of which only the shape or the type is read (``zeros_like``), which
    carry no function-space flow. A recurrent network that is one operation (``nn.LSTM``) has a
    junction for each of its layers. Each edge of the captured graph gives at most one here, so a
    residual stream of depth L has O(L) edges. Nodes are in execution order and every edge leads
    forward. A parameter that the output does not depend on has ``op=""`` and ``uses=0``.

    Args:
        graph: its ``get_attr`` nodes of trainable parameters carry ``meta["parameter"]``.

    Returns:
        The graph, with the graph attribute ``complete=True``. O(nodes + edges) time.

    Example::

        >>> from torch import nn, zeros
        >>> from flerm_fx.capture.tracing import capture
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
        >>> pg = parameter_graph(capture(model, zeros(5, 3)).probe_module.graph)
        >>> list(pg)
        ['0.weight', '0.bias', '%linear', '2.weight', '%linear_1']
        >>> pg.nodes["2.weight"]["op"], pg.nodes["2.weight"]["slot"]
        ('aten.linear', 'weight')
        >>> list(pg.predecessors("%linear_1"))
        ['%linear', '2.weight']
    """
    contraction = _Contraction()
    live = _live(graph)
    for node in graph.nodes:
        if node.op == "placeholder" or node.op == "get_attr" or node in live:
            contraction.visit(node)
    return contraction.finish()


class _Contraction:
    """One pass over a captured graph; ``origin`` maps a value to the node it is a function of."""

    def __init__(self) -> None:
        import networkx as nx

        self.result: nx.DiGraph = nx.DiGraph(complete=True)
        self.data: set[fx.Node] = set()
        self.origin: dict[fx.Node, str] = {}
        self.parameters: dict[str, fx.Node] = {}
        self.turned: set[fx.Node] = set()  # values on data with axes exchanged since their origin
        # Junctions of parameters alone, until the operation that reads them with data: a model may
        # compute them long before, and execution order is the order of use.
        self.waiting: dict[str, tuple[fx.Node, dict[str, str]]] = {}

    def visit(self, node: fx.Node) -> None:
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
        if not operands or not _flows(node):
            return
        key = f"%{node.name}"
        if node in self.data and (bare or len(values) > 1):
            if operation(node) in RECURRENT:
                self._add_layers(node, operands)
            else:
                self.origin[node] = key
                self._add_junction(node, operands, site=node)
        elif len(operands) > 1:
            self.origin[node] = key
            self.waiting[key] = node, operands
        else:
            self.origin[node] = next(iter(operands))
            if node in self.data:
                turned = operation(node) in TURNING
                if turned != any(operand in self.turned for operand in values):
                    self.turned.add(node)

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
                kind, path = _module(site)
                self._add_parameter(operand, op=operation(site), kind=kind, path=path)
        key = key or f"%{node.name}"
        self.result.add_node(key, junction=True, op=operation(node), data=node in self.data)
        for operand, slot in operands.items():
            self.result.add_edge(operand, key, slot=slot)

    def _add_parameter(self, name: str, **attributes: str) -> None:
        rank = _rank(self.parameters[name])
        self.result.add_node(name, **{**_UNUSED, "rank": rank, **attributes})

    def finish(self) -> nx.DiGraph:
        """Add the unused parameters, and what is known only at the end."""
        for name in self.parameters:
            if name not in self.result:
                self._add_parameter(name)
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


def parameters(pg: nx.DiGraph) -> list[str]:
    """The parameters of a parameter graph, in execution order."""
    return [node for node, junction in pg.nodes(data="junction") if not junction]


def sites(pg: nx.DiGraph, name: str) -> dict[str, str]:
    """The junctions on data that read a parameter, each with the slot at which it arrives."""
    reached: dict[str, str] = {}
    pending = [name]
    seen = {name}
    while pending:
        node = pending.pop()
        for junction, attributes in pg.adj[node].items():
            if pg.nodes[junction].get("data", True):
                reached.setdefault(junction, attributes.get("slot", ""))
            elif junction not in seen:
                seen.add(junction)
                pending.append(junction)
    if len(reached) < 2:
        return reached
    return {node: reached[node] for node in pg if node in reached}


def capture_graph(captured: Capture) -> nx.DiGraph:
    """The parameter graph of a captured model; on the eager path, the :func:`chain` of its modules.

    Example::

        >>> from torch import nn, zeros
        >>> from flerm_fx.capture.tracing import capture
        >>> parameters(capture_graph(capture(nn.Linear(3, 2), zeros(4, 3))))
        ['weight', 'bias']
    """
    if captured.probe_module is not None:
        return parameter_graph(captured.probe_module.graph)
    return chain(
        (name, kind, name.rpartition(".")[2], captured.parameters[name].dim())
        for name, kind in _in_reach(captured)
    )


def _in_reach(captured: Capture) -> list[tuple[str, str]]:
    """Parameters with the classes of their modules, in the order in which a run enters these.

    A module that the run does not enter, as where the data decide, has the place that it was
    registered at.
    """
    kinds = {path: type(module).__name__ for path, module in captured.model.named_modules()}
    found = [(name, kind) for name, kind in captured.modules.items() if name in captured.parameters]
    position = {name: place for place, (name, _) in enumerate(found)}
    last = -1
    placed: list[tuple[int, str, str]] = []
    for name, _ in captured.model.named_parameters():
        if name in captured.parameters:
            last = position.get(name, last)
            placed.append((last, name, kinds[name.rpartition(".")[0]]))
    return [(name, kind) for _, name, kind in sorted(placed, key=lambda entry: entry[0])]


def chain(entries: Iterable[tuple[str, str, str, int]]) -> nx.DiGraph:
    """The parameter graph of a model whose data flow is not known.

    The parameters of one module feed one junction, whose ``op`` is the module's kind, and the
    junctions form a chain in execution order. The nesting of modules stands for the data flow: a
    module made of unlike parts is given a residual connection, which is what marks a block's
    bounds in a captured graph; a list of like parts is not.

    Args:
        entries: ``(name, kind, slot, rank)`` in execution order: the parameter's name, the class
            of the module that holds it, its attribute's name there, its number of dimensions.

    Returns:
        The graph, with the graph attribute ``complete=False``; a parameter's ``op`` is its kind.

    Example::

        >>> pg = chain([("0.weight", "Linear", "weight", 2), ("1.weight", "Linear", "weight", 2)])
        >>> list(pg.edges)
        [('0.weight', '%0'), ('%0', '%1'), ('1.weight', '%1')]
    """
    import networkx as nx

    graph: nx.DiGraph = nx.DiGraph(complete=False)
    modules: list[list[tuple[str, str, str, int]]] = []
    for entry in entries:
        if not modules or _path(modules[-1][0][0]) != _path(entry[0]):
            modules.append([])
        modules[-1].append(entry)
    starts: dict[int, list[int]] = {}
    for start, end in _blocks([(_path(m[0][0]), m[0][1]) for m in modules]):
        starts.setdefault(start, []).append(end)
    stream = ""
    if 0 in starts:
        stream = "%input"
        graph.add_node(stream, junction=True, op="input", data=True)
    order = 0
    opened: list[tuple[int, str]] = []
    for position, members in enumerate(modules):
        opened += [(end, stream) for end in sorted(starts.get(position, ()), reverse=True)]
        site = f"%{position}"
        for name, kind, slot, rank in members:
            path = ".".join(_path(name))
            attributes = {"op": kind, "slot": slot, "rank": rank, "kind": kind, "path": path}
            graph.add_node(name, **{**_UNUSED, **attributes, "order": order, "uses": 1})
            order += 1
        graph.add_node(site, junction=True, op=members[0][1], data=True)
        if stream:
            graph.add_edge(stream, site, slot="input")
        for name, _, slot, _ in members:
            graph.add_edge(name, site, slot=slot)
        stream = site
        while opened and opened[-1][0] == position + 1:
            _, shortcut = opened.pop()
            closing = f"%{position}.{len(opened)}"
            graph.add_node(closing, junction=True, op="block", data=True)
            graph.add_edge(shortcut, closing, slot="shortcut")
            graph.add_edge(stream, closing, slot="branch")
            stream = closing
    return graph


def as_chain(pg: nx.DiGraph) -> nx.DiGraph:
    """The :func:`chain` of a graph's used parameters, for where its data flow is not to be used."""
    used = [(name, pg.nodes[name]) for name in parameters(pg) if pg.nodes[name]["op"]]
    return chain((name, a["kind"], a["slot"], a["rank"]) for name, a in used)


def _path(name: str) -> tuple[str, ...]:
    return tuple(name.split(".")[:-1])


def _blocks(modules: list[tuple[tuple[str, ...], str]]) -> list[tuple[int, int]]:
    """Bounds of the modules made of unlike parts, from module paths and kinds in order."""
    blocks: list[tuple[int, int]] = []
    pending = [(0, len(modules), 0)]
    while pending:
        start, end, depth = pending.pop()
        parts: list[list[int]] = []
        for position in range(start, end):
            within = modules[position][0][: depth + 1]
            if parts and within == modules[parts[-1][0]][0][: depth + 1] and len(within) > depth:
                parts[-1].append(position)
            else:
                parts.append([position])
        composite = [part for part in parts if len(part) > 1]
        kinds = {"" if len(part) > 1 else modules[part[0]][1] for part in parts}
        if len(parts) > 1 and len(kinds) > 1 and end - start < len(modules):
            blocks.append((start, end))
        pending += [(part[0], part[-1] + 1, depth + 1) for part in composite]
    return blocks


def to_json(pg: nx.DiGraph) -> dict[str, Any]:
    """A parameter graph as plain lists and dicts: ``complete``, ``nodes`` and ``edges``.

    Edges name their nodes by position. A node without attributes is an unused parameter.

    >>> to_json(chain([("weight", "Linear", "weight", 2)]))["edges"]
    [[0, 1, 'weight']]
    """
    position = {node: index for index, node in enumerate(pg)}
    nodes = []
    for name, attributes in pg.nodes(data=True):
        defaults = _JUNCTION if attributes.get("junction") else _UNUSED
        nodes.append({"name": name, **defaults, **attributes})
    edges = [[position[u], position[v], slot] for u, v, slot in pg.edges(data="slot", default="")]
    return {"complete": bool(pg.graph.get("complete", True)), "nodes": nodes, "edges": edges}


def from_json(packed: Any) -> nx.DiGraph:
    """The parameter graph that :func:`to_json` packed.

    Raises:
        ProfileError: it is malformed; the message names the node or edge.

    >>> pg = chain([("weight", "Linear", "weight", 2)])
    >>> import networkx as nx
    >>> nx.utils.graphs_equal(from_json(to_json(pg)), pg)
    True
    """
    packed = _checked("the graph", packed, {"complete": bool, "nodes": list, "edges": list})
    import networkx as nx

    pg: nx.DiGraph = nx.DiGraph(complete=packed["complete"])
    for index, node in enumerate(packed["nodes"]):
        junction = isinstance(node, Mapping) and node.get("junction", False)
        expected = _JUNCTION if junction else _UNUSED
        types: dict[str, type] = {"name": str, **{key: type(v) for key, v in expected.items()}}
        if junction:
            types["junction"] = bool
        attributes = dict(_checked(f"node {index}", node, types))
        name = attributes.pop("name")
        if name in pg:
            raise ProfileError(f"the parameter graph has node {name!r} twice; {_RECORD_AGAIN}")
        for key in ("rank", "order", "uses"):
            if not junction and attributes[key] < 0:
                raise ProfileError(
                    f"the parameter graph's node {name!r} has {key} {attributes[key]}; expected "
                    f"at least 0; {_RECORD_AGAIN}"
                )
        pg.add_node(name, **attributes)
    names = list(pg)
    for index, edge in enumerate(packed["edges"]):
        whole = isinstance(edge, list | tuple) and [type(part) for part in edge] == [int, int, str]
        if not whole or not 0 <= edge[0] < edge[1] < len(names):
            raise ProfileError(
                f"the parameter graph's edge {index} is {edge!r}; expected [from, to, slot], with "
                f"positions of {len(names)} nodes in ascending order; {_RECORD_AGAIN}"
            )
        slot = {"slot": edge[2]} if edge[2] else {}
        pg.add_edge(names[edge[0]], names[edge[1]], **slot)
    return pg


_RECORD_AGAIN = "record the base model again with flerm_fx.record"


def _checked(what: str, packed: Any, types: Mapping[str, type]) -> Mapping[str, Any]:
    """``packed`` if it is a dict with exactly these keys and types."""
    if not isinstance(packed, Mapping) or set(packed) != set(types):
        came = sorted(map(str, packed)) if isinstance(packed, Mapping) else type(packed).__name__
        raise ProfileError(
            f"the parameter graph is malformed: {what} has {came}; expected a dict with "
            f"{sorted(types)}; {_RECORD_AGAIN}"
        )
    for key, expected in types.items():
        if type(packed[key]) is not expected:
            raise ProfileError(
                f"the parameter graph is malformed: {what} has {key} {packed[key]!r}, expected "
                f"{expected.__name__}; {_RECORD_AGAIN}"
            )
    return packed


def _live(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that the output depends on."""
    pending = [graph.output_node()]
    live = set(pending)
    while pending:
        fresh = [n for n in pending.pop().all_input_nodes if n not in live]
        live.update(fresh)
        pending += fresh
    return live


def _operands(node: fx.Node) -> Iterator[tuple[str, fx.Node]]:
    """The operands that flow into a node, each with its argument; ``tensors[1]`` in a list."""
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
    """Whether nothing but the shape and type of what a node reads has a part in its value."""
    integer = isinstance(node.meta.get("val"), int | torch.SymInt)
    return integer or node.target in CONSTANT or operation(node) in SHAPED_LIKE


def _flows(node: fx.Node) -> bool:
    """Whether the value is, or holds, a tensor of numbers that can carry a tangent."""
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
