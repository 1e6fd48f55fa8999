"""Probe nodes at the parameter frontier of a captured graph.

Nodes that depend on parameters but not on data form the *parameter region*; a node that reads data
and at least one value of the region is on the *frontier*. Only there does a parameter's update
enter the data flow, as the tangent of one operation.
"""

import contextlib
import functools
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.utils import _pytree as pytree

from flerm_fx.boundary.options import checked
from flerm_fx.capture.functionalize import is_functional
from flerm_fx.capture.probed_as import CONSTANT
from flerm_fx.capture.tracing import capture
from flerm_fx.errors import FlermError, InputError
from flerm_fx.model.distributed import unwrapped
from flerm_fx.model.inputs import OutputFn, device_of, is_differentiable, to_device
from flerm_fx.model.randomness import preserved_rng, rng_state, set_rng_state
from flerm_fx.ops.operation import is_opaque, is_random
from flerm_fx.ops.scale import ScaleNodes, parameter_nodes
from flerm_fx.recipe.pool import Pool, probe_batch

T = TypeVar("T")
Entering = Mapping[str, Mapping[int, T]]
"""What enters an operation: by parameter, the update of each argument that it varies."""


def jvp(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tangents: Mapping[int, Tensor],
) -> Any:
    r"""Tangent of one operation, with every other argument held constant.

    .. math:: \dot y = \partial_\theta\, \mathrm{op}(x, \theta) \, \dot\theta

    Args:
        op: the operation.
        args: its positional arguments.
        kwargs: its keyword arguments.
        tangents: tangent of each varying argument, by its position among the flattened arguments.

    Returns:
        The tangent, shaped like the operation's output: by forward-mode differentiation where there
        is a rule, else by reverse mode twice, and by central differences where torch has neither
        or the operation is from outside of torch.

    >>> linear = torch.ops.aten.linear.default
    >>> x, w = torch.ones(1, 2), torch.zeros(3, 2)
    >>> jvp(linear, (x, w), {}, {1: torch.ones(3, 2)})
    tensor([[2., 2., 2.]])
    """
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    positions = sorted(tangents)

    def local(*primals: Tensor) -> Any:
        filled = list(leaves)
        for position, primal in zip(positions, primals, strict=True):
            filled[position] = primal
        filled_args, filled_kwargs = pytree.tree_unflatten(filled, spec)
        return op(*filled_args, **filled_kwargs)

    primals = tuple(_unexpanded(leaves[position]) for position in positions)
    directions = tuple(
        tangents[position].to(primal.dtype)
        for position, primal in zip(positions, primals, strict=True)
    )
    if is_opaque(op):
        return difference(local, primals, directions)
    _load_forward_mode()
    state = rng_state() if is_random(op) else None
    try:
        return torch.func.jvp(local, primals, directions)[1]
    except NotImplementedError:
        if state is not None:
            set_rng_state(state)
        with contextlib.suppress(NotImplementedError):
            return _jvp_by_two_vjps(local, primals, directions)
    return difference(local, primals, directions)


def difference(
    function: Callable[..., Any], primals: tuple[Tensor, ...], directions: tuple[Tensor, ...]
) -> Any:
    r"""The tangent of a function that is only known by its values, by central differences.

    .. math:: \dot y \approx \frac{f(\theta + h \dot\theta) - f(\theta - h \dot\theta)}{2 h}

    The error is :math:`O(h^2)` beside rounding of :math:`O(\epsilon / h)`; h is
    :math:`\epsilon^{1/3}` of the ratio of the two sizes, which for linear functions leaves the
    rounding alone.

    >>> two = torch.tensor([2.0], dtype=torch.float64)
    >>> difference(torch.square, (two,), (torch.ones_like(two),))
    tensor([4.0000], dtype=torch.float64)
    """
    size = max(float(d.abs().max()) for d in directions)
    if size == 0.0:
        return pytree.tree_map(torch.zeros_like, function(*primals))
    epsilon = torch.finfo(primals[0].dtype).eps
    h = epsilon ** (1 / 3) * max(1e-3, *(float(p.abs().max()) for p in primals)) / size
    with preserved_rng():  # so that both draw the same
        above = function(*(p + h * d for p, d in zip(primals, directions, strict=True)))
    below = function(*(p - h * d for p, d in zip(primals, directions, strict=True)))

    def quotient(a: Tensor, b: Tensor) -> Tensor:
        return (a - b) / (2 * h) if is_differentiable(a) else torch.zeros_like(a)

    return pytree.tree_map(quotient, above, below)


@functools.cache
def _load_forward_mode() -> None:
    """Let torch load its forward-mode rules, which it does at the first jvp with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.zeros(1),))


def _unexpanded(primal: Tensor) -> Tensor:
    """The tensor with memory of its own for each element, which dual numbers need."""
    return primal.contiguous() if 0 in primal.stride() else primal


def _is_differentiable(node: fx.Node) -> bool:
    """Whether some result is floating, as far as the capture knows."""
    values = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return not values or any(map(is_differentiable, values))


def _jvp_target(node: fx.Node) -> Callable[..., Any]:
    assert callable(node.target)
    return jvp_of(node.target)


@functools.cache
def jvp_of(op: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`jvp` of one operation, as a function named after it, for a graph to call.

    >>> jvp_of(torch.ops.aten.linear.default).__name__
    'linear_jvp'
    """

    def of_op(*args: Any, tangents: Mapping[int, Tensor], **kwargs: Any) -> Any:
        return jvp(op, args, kwargs, tangents)

    packet = getattr(op, "overloadpacket", op)
    of_op.__name__ = of_op.__qualname__ = f"{packet.__name__}_jvp"
    return of_op


def tangent_by_autograd(
    function: Callable[[Tensor], Tensor], primal: Tensor, direction: Tensor
) -> Tensor:
    """The tangent by backward passes alone, differentiated once more.

    It takes a custom autograd function at its own backward pass.

    Raises:
        RuntimeError: something in the function cannot be differentiated twice.

    >>> two = torch.tensor([2.0])
    >>> tangent_by_autograd(torch.square, two, torch.ones(1))
    tensor([4.])
    """
    with torch.enable_grad():
        leaf = primal.detach().requires_grad_()
        output = function(leaf)
        if not output.requires_grad:
            return torch.zeros_like(output)
        cotangent = torch.zeros_like(output, requires_grad=True)
        (pulled,) = torch.autograd.grad(output, leaf, cotangent, create_graph=True)
        return torch.autograd.grad(pulled, cotangent, direction.to(pulled))[0]


def _jvp_by_two_vjps(
    function: Callable[..., Any],
    primals: tuple[Tensor, ...],
    directions: tuple[Tensor, ...],
) -> Any:
    """The tangent where there is no forward-mode rule: v ↦ vᵀJ is linear, and its adjoint is J."""
    others: list[Any] = []

    def differentiable(*values: Tensor) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(function(*values))
        others[:] = [spec, [None if is_differentiable(leaf) else leaf for leaf in leaves]]
        return [leaf for leaf in leaves if is_differentiable(leaf)]

    pair: Any = torch.func.vjp(differentiable, *primals)
    output, pullback = pair
    pair = torch.func.vjp(pullback, [torch.zeros_like(leaf) for leaf in output])
    tangents = iter(pair[1](directions)[0])
    spec, kept = others
    return pytree.tree_unflatten(
        [next(tangents) if leaf is None else torch.zeros_like(leaf) for leaf in kept], spec
    )


def probe(value: Any, tangent: Any, epsilon: Tensor, index: int) -> Any:
    r"""The probed value :math:`y + \varepsilon_l \dot y_l`, with :math:`\dot y_l` held constant.

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
    """Nodes that depend on the graph's inputs, the batch size included."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


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
        """The graph mutates nothing and holds every parameter."""
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
        """The graph is well formed."""
        graph_module.graph.lint()

    def _unit_update(self, module: fx.GraphModule, node: fx.Node, name: str) -> fx.Node:
        buffer = unit_update_name(name)
        parameter = module.get_parameter(str(node.target))
        module.register_buffer(buffer, self._blank(parameter.detach()))
        with node.graph.inserting_after(node):
            return node.graph.get_attr(buffer)

    def _is_carried(self, node: fx.Node) -> bool:
        """Whether tangents go on with a node that reads data; none do here."""
        return False

    def _blank(self, parameter: Tensor) -> Tensor:
        """A unit update that is not set yet."""
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
    """The tangents of a node's arguments, by parameter and position among the flattened ones."""
    found: dict[str, dict[int, fx.Node]] = {}
    for position, leaf in enumerate(pytree.tree_leaves((node.args, dict(node.kwargs)))):
        if isinstance(leaf, fx.Node):
            for name, tangent in tangents.get(leaf, {}).items():
                found.setdefault(name, {})[position] = tangent
    return found


def _tangent_node(node: fx.Node, name: str, updates: Mapping[int, fx.Node]) -> fx.Node:
    """The node's tangent for one parameter's update, where the graph inserts."""
    keywords: dict[str, Any] = {**node.kwargs, "tangents": dict(updates)}
    tangent = node.graph.call_function(_jvp_target(node), node.args, keywords)
    tangent.meta = {"parameter_probed": name}
    return tangent


def instrument(
    model: torch.nn.Module, inputs: Pool, output_fn: OutputFn | None = None
) -> fx.GraphModule:
    r"""The model's graph with a scale node and a JVP probe for every trainable parameter.

    The graph module takes ``epsilon`` (one number for each parameter) before the model's flattened
    inputs and returns the one output tensor that is measured. Its code is meant to be read:
    ``print(instrument(model, inputs).code)``. Unit updates are the buffers
    ``unit_update_<parameter>``.

    Args:
        model: any module that exports.
        inputs: as for :func:`flerm_fx.measure`.
        output_fn: picks the output tensor.

    Raises:
        InputError: unusable inputs.
        FlermError: the model does not export to a graph.

    Example::

        >>> model = torch.nn.Linear(2, 1)
        >>> gm = instrument(model, torch.zeros(3, 2))
        >>> _ = gm.unit_update_weight.fill_(1.0)
        >>> x, zero = torch.ones(3, 2), torch.zeros(2)
        >>> weight_only = torch.tensor([1.0, 0.0])
        >>> torch.func.jvp(lambda e: gm(e, x), (zero,), (weight_only,))[1].T
        tensor([[2., 2., 2.]])
    """
    model = checked("model", model)
    batch = to_device(probe_batch(unwrapped(model), inputs), device_of(model))
    captured = capture(model, batch, checked("output_fn", output_fn))
    if captured.probe_module is None:
        raise FlermError(f"the model has no graph to instrument: {captured.reason}")
    ScaleNodes()(captured.probe_module)
    ProbeNodes(tuple(captured.parameters))(captured.probe_module)
    return captured.probe_module
