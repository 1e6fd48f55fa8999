"""Lowering moves scale nodes to where a scalar costs least."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from flerm_fx.boundary.compat import PassBase, PassResult
from flerm_fx.emit.absorb import (
    ahead,
    behind,
    is_sum,
    multiplier,
    scaled,
    take_ahead,
    take_behind,
)
from flerm_fx.emit.passing import dtype_of, is_view, mutated
from flerm_fx.emit.products import Product, as_product
from flerm_fx.emit.sizes import numel
from flerm_fx.ops.scale import is_scale, parameter_nodes, scale

FACTOR_LIMIT = 2.0**24
"""Largest factor, or inverse of one, that is moved. What lies between lacks it, or several: they
have to fit in the range of float32, 2^127."""

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128)


class LowerScales(PassBase):
    r"""Give a graph with scale nodes its cheapest form, with the same function and gradients.

    A scalar commutes with what is linear in the weight,

    .. math:: (s w) x = w (s x) = s (w x),

    so each scale node goes to the smallest of weight, input and output, for each use of the
    weight, if that makes fewer elements together than the weight has. Where a bias is added to the
    product, moving s to the output divides the bias's own scale by s. Some places take a scalar up:

    - behind an input, the weight and bias of a norm, a small factor of a product, or a number;
    - ahead of an output, a number, the scale of an attention's scores, and a sum, as ``alpha``.
      On the way there it may go through further products and ReLU.

    Scales of 1 vanish. All else keeps its scale node: norms, biases, recurrent networks, products
    in float16, whose range is too small for weights that are not scaled yet, and memory that is
    written in place.

    Sizes are those of the captured batch.

    Example::

        >>> from flerm_fx.capture.tracing import capture
        >>> from flerm_fx.ops.scale import ScaleNodes
        >>> captured = capture(torch.nn.Linear(16, 64, bias=False), torch.zeros(2, 16))
        >>> graph_module = ScaleNodes({"weight": 2.0})(captured.graph_module).graph_module
        >>> graph_module = LowerScales()(graph_module).graph_module
        >>> [(node.name, node.args[0]) for node in graph_module.graph.nodes if is_scale(node)]
        [('scale_1', input_1)]
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Move the nodes and recompile."""
        _Lowering(graph_module.graph).run()
        graph_module.recompile()
        return PassResult(graph_module, True)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Check that the graph is well formed."""
        graph_module.graph.lint()


def lowered(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Return a lowered copy of a graph with scale nodes, on the same parameters and buffers.

    >>> from flerm_fx.capture.tracing import capture
    >>> from flerm_fx.ops.scale import ScaleNodes
    >>> captured = capture(torch.nn.Linear(3, 2), torch.zeros(4, 3))
    >>> graph_module = ScaleNodes()(captured.graph_module).graph_module
    >>> twin = lowered(graph_module)
    >>> twin.weight is graph_module.weight, "scale" in graph_module.code, "scale" in twin.code
    (True, True, False)
    """
    twin = on_the_same_weights(graph_module)
    LowerScales()(twin)
    return twin


def on_the_same_weights(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a graph, on the same parameters and buffers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, for a graph
        graph = copy.deepcopy(graph_module.graph)
    twin = fx.GraphModule(graph_module, graph, class_name=type(graph_module).__name__)
    twin.train(graph_module.training)
    return twin


@dataclass(frozen=True)
class _Move:
    """A move takes a scalar off one factor of a product, and counts the elements that passes
    touch.
    """

    cost: float
    apply: Callable[[], None]


class _Lowering:
    """A ``_Lowering`` lowers one graph."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.written = mutated(graph)
        self.bare: dict[fx.Node, fx.Node] = {}  # scaled weights and their views, without the scale

    def run(self) -> None:
        for nodes in parameter_nodes(self.graph).values():
            for parameter in nodes:
                for node in [user for user in parameter.users if is_scale(user)]:
                    self._lower(node, parameter)
        for node in self._scales():
            self._merge(node)
        for node in self._scales():
            if not node.users:
                self.graph.erase_node(node)

    def _scales(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if is_scale(node)]

    def _lower(self, node: fx.Node, weight: fx.Node) -> None:
        if weight in self.written:
            return
        if multiplier(node) == 1.0:
            node.replace_all_uses_with(weight)
            return
        moves = self._moves(node)
        if moves is None or sum(move.cost for move in moves) >= 2 * numel(weight):
            return
        for move in moves:
            move.apply()
        _erase_unread(node)

    def _moves(self, node: fx.Node) -> list[_Move] | None:
        """Return the cheapest move for each use of a scaled weight, or None if some use has
        none.
        """
        factor = multiplier(node)
        if not 1 / FACTOR_LIMIT <= factor <= FACTOR_LIMIT:
            return None
        moves: list[_Move] = []
        pending = [node]
        while pending:
            operand = pending.pop()
            for reader in operand.users:
                if is_view(reader):
                    pending.append(reader)
                elif move := self._cheapest(reader, operand, factor):
                    moves.append(move)
                else:
                    return None
        return moves

    def _cheapest(self, reader: fx.Node, operand: fx.Node, factor: float) -> _Move | None:
        product = as_product(reader)
        if product is None or operand not in product.factors or dtype_of(reader) not in _DTYPES:
            return None
        others = [other for other in product.factors if other is not operand]
        if any(_origin(other) is _origin(operand) for other in others):  # as in w @ w.T
            return None
        moves = []
        if product.bias not in self.written:
            moves.append(self._to_output(product, operand, factor))
        if others and others[0] not in self.written:
            moves.append(self._to_input(product, operand, others[0], factor))
        return min(moves, key=lambda move: move.cost, default=None)

    def _to_input(self, product: Product, operand: fx.Node, other: fx.Node, factor: float) -> _Move:
        def apply() -> None:
            product.node.replace_input_with(operand, self._bare(operand))
            product.node.replace_input_with(other, scaled(other, factor))

        shared = any(is_scale(user) and multiplier(user) == factor for user in other.users)
        merges = is_scale(other) and len(other.users) == 1
        absorbed = behind(other, self.written) is not None and all(
            _scales_by(user, other, factor) for user in other.users
        )
        free = shared or merges or absorbed
        return _Move(0.0 if free else 2 * numel(other), apply)

    def _to_output(self, product: Product, operand: fx.Node, factor: float) -> _Move:
        def apply() -> None:
            product.node.replace_input_with(operand, self._bare(operand))
            if product.bias is not None:
                product.node.replace_input_with(product.bias, scaled(product.bias, 1 / factor))
            reader = self._ahead(product.node)
            if reader is not None:
                take_ahead(reader, product.node, factor)
            else:
                self._multiply(product.node, factor)

        cost = 0.0 if product.bias is None else 2 * numel(product.bias)
        return _Move(cost + self._output_cost(product.node), apply)

    def _ahead(self, output: fx.Node) -> fx.Node | None:
        """Return what takes up a scalar ahead, if that is cheaper than a multiplication."""
        reader = ahead(output, self.written)
        if reader is not None and is_sum(reader) and numel(reader) >= 2 * numel(output):
            return None
        return reader

    def _output_cost(self, output: fx.Node) -> float:
        reader = self._ahead(output)
        if reader is None:
            return 2 * numel(output)
        return numel(reader) if is_sum(reader) else 0.0

    def _multiply(self, value: fx.Node, factor: float) -> None:
        """Let all readers of a value read ``factor`` times as much."""
        readers = list(value.users)
        with self.graph.inserting_after(value):
            node = self.graph.call_function(scale, (value, factor))
        node.meta = {"val": value.meta["val"]}
        for reader in readers:
            reader.replace_input_with(value, node)
        if value in self.written:  # in its place now
            self.written.add(node)

    def _bare(self, operand: fx.Node) -> fx.Node:
        """Return the weight, or the view of it, that a scaled one was made from."""
        source = operand.args[0]
        assert isinstance(source, fx.Node)
        if is_scale(operand):
            return source
        if operand not in self.bare:
            bare = self._bare(source)
            with self.graph.inserting_before(operand):
                self.bare[operand] = self.graph.node_copy(
                    operand, lambda node: bare if node is source else node
                )
        return self.bare[operand]

    def _merge(self, node: fx.Node) -> None:
        """Merge a scale node with one that it reads, or into what can take it up there, unless
        others read that.
        """
        value, factor = node.args[0], multiplier(node)
        assert isinstance(value, fx.Node)
        if list(value.users) != [node] or {value, node} & self.written:
            return
        if is_scale(value):
            node.args = (value.args[0], multiplier(value) * factor)
            return
        taker = behind(value, self.written)
        if taker is not None:
            take_behind(taker, factor)
            node.replace_all_uses_with(value)


def _origin(operand: fx.Node) -> fx.Node:
    """Return the node that an operand is a view of."""
    while is_view(operand):
        (operand, *_) = operand.all_input_nodes
    return operand


def _scales_by(reader: fx.Node, value: fx.Node, factor: float) -> bool:
    """Tell whether a reader of a value reads ``factor`` times it, or will when its weight is
    lowered.
    """
    if is_scale(reader):
        return multiplier(reader) == factor
    product = as_product(reader)
    if product is None or value not in product.factors:
        return False
    origins = [_origin(other) for other in product.factors if other is not value]
    return any(is_scale(origin) and multiplier(origin) == factor for origin in origins)


def _erase_unread(node: fx.Node) -> None:
    """Erase a scale node with the views of it that nothing reads any more."""
    for user in list(node.users):
        if is_view(user):
            _erase_unread(user)
    if not node.users:
        node.graph.erase_node(node)
