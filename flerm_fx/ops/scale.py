"""A scale node holds the effective weight of a trainable parameter, as a node of the graph."""

from collections.abc import Mapping

from torch import Tensor, fx

from flerm_fx.boundary.compat import PassBase, PassResult
from flerm_fx.errors import FlermError, InputError


def scale(parameter: Tensor, multiplier: float) -> Tensor:
    r"""Return the effective weight :math:`\theta_l = s_l w_l` of a stored weight :math:`w_l`.

    An optimizer's step on :math:`w_l` then moves :math:`\theta_l` by :math:`s_l` times as much.

    >>> import torch
    >>> scale(torch.tensor([1.0, 2.0]), 0.5)
    tensor([0.5000, 1.0000])
    """
    return parameter * multiplier


def parameter_nodes(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Return the ``get_attr`` nodes of every trainable parameter, by its canonical name."""
    nodes: dict[str, list[fx.Node]] = {}
    for node in graph.find_nodes(op="get_attr"):
        if "parameter" in node.meta:
            nodes.setdefault(node.meta["parameter"], []).append(node)
    return nodes


def is_scale(node: fx.Node) -> bool:
    """Tell whether ``node`` is a scale node."""
    return node.op == "call_function" and node.target is scale


class ScaleNodes(PassBase):
    r"""Give every trainable parameter of a captured graph a scale node.

    Each ``get_attr`` of a trainable parameter gets one user, ``scale(parameter, s)``, that all
    former users read in its place. ``s`` is 1 for parameters that ``scales`` leaves out.

    Args:
        scales: the factor :math:`s_l` for each parameter name.

    Raises:
        InputError: ``scales`` names a parameter that the graph does not have.

    Example::

        >>> import torch
        >>> from flerm_fx.capture.tracing import capture
        >>> captured = capture(torch.nn.Linear(3, 2), torch.zeros(4, 3))
        >>> result = ScaleNodes({"weight": 2.0})(captured.graph_module)
        >>> print([n.name for n in result.graph_module.graph.nodes if is_scale(n)])
        ['scale', 'scale_1']
    """

    def __init__(self, scales: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.scales = dict(scales or {})

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Check that the graph has no scale nodes yet, and holds every parameter that ``scales``
        names.
        """
        if any(is_scale(node) for node in graph_module.graph.nodes):
            raise FlermError("the graph has scale nodes already; run ScaleNodes on a fresh capture")
        unknown = sorted(set(self.scales) - set(parameter_nodes(graph_module.graph)))
        if unknown:
            raise InputError(
                f"scales name {', '.join(map(repr, unknown))}, which the graph does not have"
            )

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Insert the nodes and recompile."""
        graph = graph_module.graph
        for name, nodes in parameter_nodes(graph).items():
            for parameter in nodes:
                with graph.inserting_after(parameter):
                    scaled = graph.call_function(scale, (parameter, self.scales.get(name, 1.0)))
                for user in list(parameter.users):
                    if user is not scaled:
                        user.replace_input_with(parameter, scaled)
                scaled.meta = {
                    **parameter.meta,
                    "multiplier": self.scales.get(name, 1.0),
                    "shape": tuple(parameter.meta["val"].shape),
                }
        graph_module.recompile()
        return PassResult(graph_module, True)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Check that every trainable parameter is read by its scale node and by nothing else."""
        for name, nodes in parameter_nodes(graph_module.graph).items():
            for node in nodes:
                if [is_scale(user) for user in node.users] != [True]:
                    raise FlermError(f"parameter {name!r} is read without its scale node")
