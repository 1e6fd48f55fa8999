"""The parameter graph is a captured graph contracted to its parameters and the flow between
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import fx

from flerm_fx.align.contraction import Contraction, input_met, live
from flerm_fx.align.nodes import JUNCTION, UNKNOWN, UNUSED, on_data, parameters, sites
from flerm_fx.capture.captured import Capture
from flerm_fx.errors import ProfileError

if TYPE_CHECKING:
    import networkx as nx

__all__ = [
    "as_chain",
    "capture_graph",
    "chain",
    "from_json",
    "on_data",
    "parameter_graph",
    "parameters",
    "sites",
    "to_json",
]


def parameter_graph(graph: fx.Graph) -> nx.DiGraph:
    r"""Contract a captured graph to its parameters and the places where values meet.

    A *parameter* node, keyed by its canonical name, has the attributes

    - ``op``, ``slot``: the first operation that reads it together with data, and the argument of
      that operation at which it arrives, such as ``"aten.linear"`` and ``"weight"``;
    - ``rank``: number of dimensions (sizes are left out, so that other widths give equal graphs);
    - ``kind``: class of the innermost module around that operation, ``path``: that module's name;
    - ``order``: position in execution order, ``uses``: how many operations on data read it.

    A *junction* node, keyed ``"%"`` and the name of the captured node, has ``junction=True``,
    ``op``, ``data``, which tells whether it depends on data, and ``through``, the nonlinearities
    that its value first passes on the way to what reads it. Junctions are the operations on
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
    used = live(graph)
    nodes = [n for n in graph.nodes if n.op in ("placeholder", "get_attr") or n in used]
    contraction = Contraction(input_met(nodes))
    for node in nodes:
        contraction.visit(node)
    return contraction.finish()


def capture_graph(captured: Capture) -> nx.DiGraph:
    """Return the parameter graph of a captured model; without a graph, the :func:`chain` of its
    modules.

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
    """Return parameters with the classes of their modules, in the order in which a run enters
    these.

    A module that the run does not enter, as where the data decide, has the place that it was
    registered at.
    """
    kinds = {path: type(module).__name__ for path, module in captured.model.named_modules()}
    entered = [
        (name, kind) for name, kind in captured.modules.items() if name in captured.parameters
    ]
    position = {name: place for place, (name, _) in enumerate(entered)}
    last = -1
    placed: list[tuple[int, str, str]] = []
    for name, _ in captured.model.named_parameters():
        if name in captured.parameters:
            last = position.get(name, last)
            placed.append((last, name, kinds[name.rpartition(".")[0]]))
    return [(name, kind) for _, name, kind in sorted(placed, key=lambda entry: entry[0])]


def chain(entries: Iterable[tuple[str, str, str, int]]) -> nx.DiGraph:
    """Return the parameter graph of a model whose data flow is not known.

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
        graph.add_node(stream, junction=True, **{**JUNCTION, "op": "input"})
    order = 0
    opened: list[tuple[int, str]] = []
    for position, members in enumerate(modules):
        opened += [(end, stream) for end in sorted(starts.get(position, ()), reverse=True)]
        site = f"%{position}"
        for name, kind, slot, rank in members:
            path = ".".join(_path(name))
            attributes = {"op": kind, "slot": slot, "rank": rank, "kind": kind, "path": path}
            graph.add_node(name, **{**UNUSED, **attributes, "order": order, "uses": 1})
            order += 1
        graph.add_node(site, junction=True, **{**JUNCTION, "op": members[0][1]})
        if stream:
            graph.add_edge(stream, site, slot="input")
        for name, _, slot, _ in members:
            graph.add_edge(name, site, slot=slot)
        stream = site
        while opened and opened[-1][0] == position + 1:
            _, shortcut = opened.pop()
            closing = f"%{position}.{len(opened)}"
            graph.add_node(closing, junction=True, **{**JUNCTION, "op": "block"})
            graph.add_edge(shortcut, closing, slot="shortcut")
            graph.add_edge(stream, closing, slot="branch")
            stream = closing
    return graph


def as_chain(pg: nx.DiGraph) -> nx.DiGraph:
    """Return the :func:`chain` of a graph's used parameters, for where its data flow is not to be
    used.
    """
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
    """Return a parameter graph as plain lists and dicts: ``complete``, ``nodes`` and ``edges``.

    Edges name their nodes by position. A node without attributes is an unused parameter.

    >>> to_json(chain([("weight", "Linear", "weight", 2)]))["edges"]
    [[0, 1, 'weight']]
    """
    position = {node: index for index, node in enumerate(pg)}
    nodes = []
    for name, attributes in pg.nodes(data=True):
        defaults = JUNCTION if attributes.get("junction") else UNUSED
        nodes.append({"name": name, **defaults, **attributes})
    edges = [[position[u], position[v], slot] for u, v, slot in pg.edges(data="slot", default="")]
    return {"complete": bool(pg.graph.get("complete", True)), "nodes": nodes, "edges": edges}


def from_json(packed: Any) -> nx.DiGraph:
    """Return the parameter graph that :func:`to_json` packed.

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
        expected = JUNCTION if junction else UNUSED
        types: dict[str, type] = {"name": str, **{key: type(v) for key, v in expected.items()}}
        if junction:
            types["junction"] = bool
            node = {"through": UNKNOWN, **node}  # which files of before do not say
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
    """Return ``packed`` if it is a dict with exactly these keys and types."""
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
