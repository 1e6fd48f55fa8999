"""Probe nodes stand at the parameter frontier of a captured graph.

Nodes that depend on parameters but not on data form the *parameter region*; a node that reads data
and at least one value of the region is on the *frontier*. Only there does a parameter's update
enter the data flow, as the tangent of one operation.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from flerm_fx.boundary.compat import PassBase, PassResult, pytree
from flerm_fx.capture.probed_as import CONSTANT
from flerm_fx.errors import FlermError, InputError
from flerm_fx.model.inputs import is_differentiable
from flerm_fx.ops.aliasing import is_functional
from flerm_fx.ops.scale import parameter_nodes
from flerm_fx.probe.derivative import jvp_of

T = TypeVar("T")
Entering = Mapping[str, Mapping[int, T]]
"""What enters an operation: by parameter, the update of each argument that it varies."""


def _is_differentiable(node: fx.Node) -> bool:
    """Tell whether some result is floating, as far as the capture knows."""
    values = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return not values or any(map(is_differentiable, values))


def _jvp_target(node: fx.Node) -> Callable[..., Any]:
    assert callable(node.target)
    return jvp_of(node.target)


def probe(value: Any, tangent: Any, epsilon: Tensor, index: int) -> Any:
    r"""Return the probed value :math:`y + \varepsilon_l \dot y_l`, with :math:`\dot y_l` held
    constant.

    At :math:`\varepsilon = 0` it is ``value``; its derivative in :math:`\varepsilon_l` is the
    tangent that parameter l's unit update gives this operation.

    >>> probe(torch.ones(2), torch.full((2,), 3.0), torch.tensor([0.0, 0.5]), 1)
    tensor([2.5000, 2.5000])
    """

    def one(y: Any, dy: Any) -> Any:
        if not is_differentiable(y):
            return y
        return y + epsilon[index].to(y.dtype) * dy.detach()

    return pytree.tree_map(one, value, tangent)


def data_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return nodes that depend on the graph's inputs, the batch size included."""
    nodes: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(n in nodes for n in node.all_input_nodes):
            nodes.add(node)
    return nodes


def unit_update_name(parameter: str) -> str:
    """Buffer of an instrumented graph that holds a parameter's unit update.

    >>> unit_update_name("blocks.0.weight")
    'unit_update_blocks_0_weight'
    """
    return "unit_update_" + parameter.replace(".", "_")


class ProbeNodes(PassBase):
    r"""Instrument a captured graph with JVP probes at its parameter frontier.

    The graph gets a first input ``epsilon``, one number for each parameter, and computes

    .. math:: f(x; \theta + \textstyle\sum_l \varepsilon_l u_l)

    to first order in :math:`\varepsilon`, so that
    :math:`\partial f / \partial \varepsilon_l = J_l u_l`, the change of the function for the unit
    update of parameter l. The unit updates are buffers of the module (see
    :func:`unit_update_name`), zero until set.

    Args:
        parameters: the parameters to probe, in the order of ``epsilon``.

    Raises:
        InputError: a parameter that the graph does not have.
    """

    first_input = "epsilon"

    def __init__(self, parameters: Sequence[str]) -> None:
        super().__init__()
        self.parameters = {name: index for index, name in enumerate(parameters)}

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Check that the graph mutates nothing and holds every parameter."""
        if not is_functional(graph_module.graph):
            raise FlermError("the graph has in-place operations; probe the functional graph")
        unknown = sorted(self.parameters.keys() - set(parameter_nodes(graph_module.graph)))
        if unknown:
            raise InputError(f"the graph has no parameter {', '.join(map(repr, unknown))}")

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Insert tangents in the parameter region and probes on the frontier; recompile."""
        graph = graph_module.graph
        data = data_nodes(graph)
        nodes = list(graph.nodes)
        with graph.inserting_before(nodes[0]):
            first = graph.placeholder(self.first_input)
        tangents: dict[fx.Node, dict[str, fx.Node]] = {}
        for node in nodes:
            name = node.meta.get("parameter")
            if node.op == "get_attr" and name in self.parameters:
                tangents[node] = {name: self._unit_update(graph_module, node, name)}
                continue
            if node.op != "call_function" or node.target in CONSTANT:
                continue
            if not _is_differentiable(node):
                continue
            entering = _entering(node, tangents)
            if node not in data or self._is_carried(node):
                tangents[node] = {
                    name: self._tangent(node, tangents, name, updates)
                    for name, updates in entering.items()
                }
            elif entering:
                self._insert(node, entering, first)
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        graph_module.recompile()
        return PassResult(graph_module, True)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Check that the graph is well formed."""
        graph_module.graph.lint()

    def _unit_update(self, module: fx.GraphModule, node: fx.Node, name: str) -> fx.Node:
        buffer = unit_update_name(name)
        parameter = module.get_parameter(str(node.target))
        module.register_buffer(buffer, self._blank(parameter.detach()))
        with node.graph.inserting_after(node):
            return node.graph.get_attr(buffer)

    def _is_carried(self, node: fx.Node) -> bool:
        """Tell whether tangents go on with a node that reads data; none do here."""
        return False

    def _blank(self, parameter: Tensor) -> Tensor:
        """Return a unit update that is not set yet."""
        return torch.zeros_like(parameter)

    def _insert(self, node: fx.Node, entering: Entering[fx.Node], first: fx.Node) -> None:
        """Give a node on the frontier its tangents and probes."""
        probed = node
        inserted: set[fx.Node] = set()
        for name, updates in entering.items():
            with node.graph.inserting_after(probed):
                tangent = _tangent_node(node, name, updates)
            with node.graph.inserting_after(tangent):
                probed = node.graph.call_function(
                    probe, (probed, tangent, first, self.parameters[name])
                )
            probed.meta = {"parameter_probed": name}
            inserted |= {tangent, probed}
        node.replace_all_uses_with(probed, delete_user_cb=lambda user: user not in inserted)

    def _tangent(
        self,
        node: fx.Node,
        tangents: Mapping[fx.Node, Mapping[str, fx.Node]],
        name: str,
        updates: Mapping[int, fx.Node],
    ) -> fx.Node:
        with node.graph.inserting_after(node):
            source = node.args[0] if node.args else None
            if node.target is operator.getitem and isinstance(source, fx.Node):
                return node.graph.call_function(
                    operator.getitem, (tangents[source][name], node.args[1])
                )
            return _tangent_node(node, name, updates)


def _entering(
    node: fx.Node, tangents: Mapping[fx.Node, Mapping[str, fx.Node]]
) -> Entering[fx.Node]:
    """Return the tangents of a node's arguments, by parameter and position among the flattened
    ones.
    """
    entering: dict[str, dict[int, fx.Node]] = {}
    for position, leaf in enumerate(pytree.tree_leaves((node.args, dict(node.kwargs)))):
        if isinstance(leaf, fx.Node):
            for name, tangent in tangents.get(leaf, {}).items():
                entering.setdefault(name, {})[position] = tangent
    return entering


def _tangent_node(node: fx.Node, name: str, updates: Mapping[int, fx.Node]) -> fx.Node:
    """Return the node's tangent for one parameter's update, where the graph inserts."""
    keywords: dict[str, Any] = {**node.kwargs, "tangents": dict(updates)}
    tangent = node.graph.call_function(_jvp_target(node), node.args, keywords)
    tangent.meta = {"parameter_probed": name}
    return tangent
