r"""Taps on the parameter frontier project function changes by one plain backward pass.

At a frontier node :math:`y = \mathrm{op}(x, \theta)`, with :math:`\bar y = \partial (q \cdot f) /
\partial y`, the projection of the change that parameter l makes there is

.. math:: s_{n,l} = \langle \bar y_n, \, \partial_\theta \mathrm{op}(x, \theta)_n \, u_l \rangle .

Where examples do not influence each other, the backward pass of a batch holds that of each example,
so the one of :math:`\sum_n q_n \cdot f_n` serves all. It costs a forward pass, the backward pass of
the activations, and the tangent of each operation that reads a parameter: as many products as a
training step, without the gradients of weights.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from flerm_fx.boundary.compat import PassResult, depends_on_data, pytree
from flerm_fx.capture.probed_as import attention
from flerm_fx.model.inputs import is_differentiable
from flerm_fx.ops.operation import operation
from flerm_fx.probe.frontier import Entering, ProbeNodes, unit_update_name
from flerm_fx.probe.prefetch import Gather, Prefetch
from flerm_fx.probe.rules import Operation
from flerm_fx.probe.streamed import Streamed, device_of_inputs, streams, to_gather

LONG = 2**15
"""Numbers from which on an inner product is one of its own."""

KEPT = 2**28
"""Bytes of tangents to keep from one draw to the next; others are computed again."""


class TapNodes(ProbeNodes):
    """The pass puts a tap on every frontier node, to hear the cotangents of a backward pass.

    The graph gets a first input ``taps`` (see :class:`Taps`) and computes the model's function.

    Args:
        parameters: the parameters to measure.
    """

    first_input = "taps"

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Insert the taps; let attention use the fused kernels, which have a backward pass."""
        self._by_example = any(map(_has_axis, graph_module.graph.output_node().all_input_nodes))
        result = super().call(graph_module)
        for node in graph_module.graph.nodes:
            if node.target is attention and node.kwargs.get("dropout_mask") is None:
                node.target = torch.ops.aten.scaled_dot_product_attention.default
        graph_module.recompile()
        return result

    def _is_carried(self, node: fx.Node) -> bool:
        """What has no axis for examples is one for all of them, and its tangents go on with it.

        They go on to where examples begin. Where the output has no axis either, as for a sum over
        the batch or inputs that are no batch, there is no such place, and all of it is tapped.
        """
        return self._by_example and bool(_values(node)) and not _has_axis(node)

    def _blank(self, parameter: Tensor) -> Tensor:
        """Zeros without memory: calls bring the unit updates along."""
        return torch.zeros((), dtype=parameter.dtype, device=parameter.device).expand_as(parameter)

    def _insert(self, node: fx.Node, entering: Entering[fx.Node], first: fx.Node) -> None:
        axes = [_batch_axis(value) for value in pytree.tree_leaves(node.meta.get("val"))]
        with node.graph.inserting_after(node):
            tapped = node.graph.call_function(_tap(node.target), (node, first))
        node.replace_all_uses_with(tapped, delete_user_cb=lambda user: user is not tapped)
        arguments: Any = (node, first, node.args, node.kwargs, entering, axes)
        tapped.args, tapped.meta = arguments, {"axes": axes}


def _values(node: fx.Node) -> list[Tensor]:
    return [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]


def _has_axis(node: fx.Node) -> bool:
    """Tell whether a size of what it holds depends on the batch's."""
    return any(isinstance(size, torch.SymInt) for value in _values(node) for size in value.shape)


def no_axis(graph: fx.Graph) -> str:
    """Return why taps cannot tell examples apart; empty if they can."""
    for node in graph.nodes:
        axes = node.meta.get("axes", [0])
        if not axes or None in axes:
            return f"examples have no one axis in the output of {operation(node.args[0])}"
    return ""


@functools.cache
def _tap(op: Any) -> Callable[..., Any]:
    """Return what hands on an operation's output, whose cotangents ``taps`` will hear."""

    def of_op(
        value: Any,
        taps: "Taps",
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        entering: Entering[Tensor],
        axes: Sequence[int | None],
    ) -> Any:
        return taps.on(value, Operation(op, args, kwargs, entering), axes)

    packet = getattr(op, "overloadpacket", op)
    of_op.__name__ = of_op.__qualname__ = f"{packet.__name__}_tap"
    return of_op


def _batch_axis(value: Any) -> int | None:
    """Return the dimension of a captured tensor that holds the examples; None if there is not just
    one.

    A size that depends on the data, such as the number of tokens that an expert got, is of none.
    """
    sizes: Sequence[Any] = value.shape if isinstance(value, Tensor) else ()
    axes = [axis for axis, size in enumerate(sizes) if isinstance(size, torch.SymInt)]
    return axes[0] if len(axes) == 1 and not depends_on_data(sizes[axes[0]]) else None


class Taps:
    """A ``Taps`` gathers projections while backward passes go by.

    Args:
        names: the parameters, in the order of the columns of :meth:`totals`.
        examples: N; 1 if they are not to be told apart.
        keep: bytes of tangents to keep for another backward pass.
    """

    def __init__(self, names: Sequence[str], examples: int, keep: int = 0) -> None:
        self.columns: dict[str, list[Tensor]] = {name: [] for name in names}
        self.examples = examples
        self.leaves: list[Tensor] = []
        self._keep = keep
        self._kept: dict[tuple[int, str], list[Tensor]] = {}

    def on(self, value: Any, operation: Operation, axes: Sequence[int | None]) -> Any:
        """Hear the cotangents of an operation's output, which is returned."""
        leaves, spec = pytree.tree_flatten(value)
        for position, leaf in enumerate(leaves):
            if is_differentiable(leaf):
                if not leaf.requires_grad:
                    leaves[position] = leaf.detach().requires_grad_()
                    self.leaves.append(leaves[position])
                axis = axes[position] if self.examples > 1 else None
                hear = functools.partial(self._hear, operation, position, axis)
                leaves[position].register_hook(hear)
        return pytree.tree_unflatten(leaves, spec)

    def totals(self) -> Tensor:
        """Return the projections since the last call, of shape (examples, parameters)."""
        some = next(products[0] for products in self.columns.values() if products)
        zero = some.new_zeros(self.examples)
        totals = torch.stack([sum(products, zero) for products in self.columns.values()], 1)
        for products in self.columns.values():
            products.clear()
        return totals

    def _hear(
        self, operation: Operation, position: int, axis: int | None, cotangent: Tensor
    ) -> None:
        for name in operation.entering:
            moved = self._tangents(operation, name)[position]
            self.columns[name].append(products(cotangent, moved, axis, self.examples))

    def _tangents(self, operation: Operation, name: str) -> list[Tensor]:
        key = id(operation), name
        if key in self._kept:
            return self._kept[key]
        tangents = operation.tangents(name)
        size = sum(leaf.numel() * leaf.element_size() for leaf in tangents)
        if size <= self._keep:
            self._keep -= size
            self._kept[key] = tangents
        return tangents


def products(cotangent: Tensor, tangent: Tensor, axis: int | None, examples: int) -> Tensor:
    """Inner products of cotangents and a tangent that broadcasts to them, for each example.

    Args:
        cotangent: of any shape.
        tangent: of a shape that broadcasts to it.
        axis: dimension of the cotangent that holds the examples, one after another, each with
            any number of entries; None for one product of all.
        examples: N.

    >>> products(torch.ones(4, 3), torch.tensor([0.0, 1.0, 2.0]), 0, 2)
    tensor([6., 6.])
    """
    if cotangent.is_complex():  # dL = Re(conj(cotangent) dy)
        cotangent = torch.view_as_real(cotangent.resolve_conj())
        tangent = torch.view_as_real(tangent.to(torch.complex128).resolve_conj())
    precise = torch.promote_types(cotangent.dtype, torch.float32)
    cotangent, tangent = cotangent.to(precise), tangent.to(precise)
    if axis is None:
        summed = cotangent.sum_to_size(tangent.shape)
        return torch.dot(summed.reshape(-1), tangent.reshape(-1)).unsqueeze(0)
    if axis:
        cotangent = cotangent.movedim(axis, 0)
    missing = cotangent.dim() - tangent.dim()
    tangent = tangent.reshape(*[1] * missing, *tangent.shape) if missing else tangent
    if axis:
        tangent = tangent.movedim(axis, 0)
    by_example = cotangent.reshape(examples, -1, *cotangent.shape[1:])
    if len(tangent) == 1:
        return by_example.sum_to_size(examples, *tangent.shape).flatten(1) @ tangent.flatten()
    moved = tangent.expand(cotangent.shape).reshape(examples, -1)
    return _dots(by_example.flatten(1), moved)


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of rows. Of long ones ``vecdot`` would write all products to memory."""
    if left.shape[1] >= LONG and left.device.type == "cpu":
        return torch.stack([torch.dot(x, y) for x, y in zip(left, right, strict=True)])
    dots: Tensor = torch.linalg.vecdot(left, right)
    return dots


def by_taps(
    tapped: fx.GraphModule,
    parameters: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    flat_inputs: Sequence[Any],
    cotangents: Tensor,
    gather: Gather | None = None,
) -> Tensor:
    r"""Return the projections :math:`s_{n,i,l} = q_{n,i} \cdot \Delta_l f_n` on given cotangents.

    Parameters and updates that are sharded over ranks, or on another device than the inputs, are
    gathered where they are read (:mod:`flerm_fx.probe.streamed`).

    Args:
        tapped: the probe graph with :class:`TapNodes` for the parameters of ``updates``.
        parameters: values of the trainable parameters, without gradients; of those that are not
            trained, too, where they are elsewhere.
        updates: unit update of each parameter.
        flat_inputs: the probe graph's.
        cotangents: rows q of shape (examples, rows, coordinates); one example has the coordinates
            of the whole batch, if its examples are not to be told apart.
        gather: brings a tensor to the device of the inputs.

    Returns:
        A tensor of shape (examples, rows, parameters).
    """
    taps = Taps(tuple(updates), cotangents.shape[0], KEPT if cotangents.shape[1] > 1 else 0)
    if not streams(tapped, parameters, updates):
        as_weights = {unit_update_name(n): u.detach().to(parameters[n]) for n, u in updates.items()}
        with torch.enable_grad():
            output = torch.func.functional_call(
                tapped, {**parameters, **as_weights}, (taps, *flat_inputs)
            )
        return _projections(output, taps, cotangents)
    device = device_of_inputs(flat_inputs)
    as_weights = {unit_update_name(n): u.to(parameters[n].dtype) for n, u in updates.items()}
    held = {**parameters, **as_weights}
    with Prefetch(tapped, held, device, gather or Gather()) as prefetch:
        streamed = Streamed(tapped, to_gather(held, device, prefetch.take), device)
        return _projections(streamed.differentiable(taps, *flat_inputs), taps, cotangents)


def _projections(output: Tensor, taps: Taps, cotangents: Tensor) -> Tensor:
    """Return what taps hear in a backward pass for each row of cotangents."""
    rows = cotangents.shape[1]
    if not output.requires_grad:  # no parameter is used
        precise = torch.promote_types(output.dtype, torch.float32)
        return torch.zeros(*cotangents.shape[:2], len(taps.columns), dtype=precise)
    columns = []
    for row in range(rows):
        cotangent = cotangents[:, row].reshape(output.shape).to(output)
        torch.autograd.grad(
            output, taps.leaves, cotangent, retain_graph=row < rows - 1, allow_unused=True
        )
        columns.append(taps.totals())
    taps.leaves.clear()  # which hold hooks that hold the taps, and with them all that they keep
    return torch.stack(columns, 1)
