"""One forward pass linearises a graph."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from flerm_fx.boundary.compat import pytree
from flerm_fx.capture.captured import cloned_buffers
from flerm_fx.capture.probed_as import CONSTANT
from flerm_fx.model.inputs import is_differentiable
from flerm_fx.model.randomness import rng_state
from flerm_fx.ops.operation import argument_name, argument_of_call, is_random
from flerm_fx.ops.table import facts
from flerm_fx.probe.by_element import Combination, Factor, diagonal
from flerm_fx.probe.frontier import data_nodes
from flerm_fx.probe.linear_maps import linear_map
from flerm_fx.probe.rules import Operation, argument_at
from flerm_fx.probe.stacks import LinearMap
from flerm_fx.probe.steps import Leaf, TangentStep

NOTHING = Operation(lambda: None, (), {}, {})
"""Where no parameter enters, no argument need be kept."""


class Forward:
    """A ``Forward`` runs the operations of a graph, and makes steps of them as it goes."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
    ) -> None:
        self.module = graph_module
        self.updates = updates
        self.steps: list[TangentStep] = []
        self._state = {
            **dict(graph_module.named_parameters(remove_duplicate=False)),
            **cloned_buffers(graph_module),
            **parameters,
        }
        self._values: dict[fx.Node, Any] = {}
        # Tangents of values that depend on parameters alone.
        self._tangents: dict[fx.Node, dict[str, list[Tensor]]] = {}
        # Values that have tangents by what they read; by steps, or as a factor of another's.
        self._stepped: set[Leaf] = set()
        self._factors: dict[Leaf, tuple[Leaf, Factor]] = {}

    def run(self, flat_inputs: Sequence[Any]) -> Leaf:
        """Run the graph, and return where the output's tangents will be."""
        inputs = iter(flat_inputs)
        data = data_nodes(self.module.graph)
        unread = {node: len(node.users) for node in self.module.graph.nodes}
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = next(inputs)
            elif node.op == "get_attr":
                self._values[node] = value = self._attribute(str(node.target))
                name = node.meta.get("parameter")
                if name in self.updates:
                    self._tangents[node] = {name: [self.updates[name].to(value)]}
            elif node.op == "output":
                (result,) = node.args
                assert isinstance(result, fx.Node)
                return self._materialized((result, 0), self._values[result])
            else:
                self._call(node, node in data)
            for source in node.all_input_nodes:
                unread[source] -= 1
                if not unread[source]:
                    self._values.pop(source)
                    self._tangents.pop(source, None)
        raise AssertionError("a graph ends in its output node")

    def _attribute(self, target: str) -> Any:
        if target in self._state:
            return self._state[target]
        value: Any = self.module
        for part in target.split("."):
            value = getattr(value, part)
        return value

    def _call(self, node: fx.Node, is_data: bool) -> None:
        """Run an operation, and find what it does with tangents."""
        target = node.target if node.op == "call_function" else self._attribute(str(node.target))
        assert callable(target)
        arguments, spec = pytree.tree_flatten((node.args, node.kwargs))
        args, kwargs = pytree.tree_unflatten(
            [self._values[a] if isinstance(a, fx.Node) else a for a in arguments], spec
        )
        state = rng_state() if is_random(target) else None
        value = target(*args, **kwargs)
        self._values[node] = value
        blanks = [
            leaf.new_zeros(()).expand_as(leaf) if is_differentiable(leaf) else None
            for leaf in pytree.tree_leaves(value)
        ]
        sources, entering = self._arriving(arguments)
        if node.target in CONSTANT or not any(b is not None for b in blanks):
            return
        operation = Operation(target, args, kwargs, entering) if entering else NOTHING
        if not is_data:
            self._tangents[node] = {
                name: [
                    tangent if blank is None else tangent.expand_as(blank)
                    for tangent, blank in zip(operation.tangents(name), blanks, strict=True)
                ]
                for name in entering
            }
        elif sources or entering:
            factors = self._by_element(target, args, kwargs, value, sources)
            if factors is not None and len(factors) == 1 and not entering:
                ((self._factors[node, 0]),) = factors.items()
                return
            through: LinearMap | Combination
            if factors is not None:
                sources = dict(enumerate(factors))
                through = Combination(dict(enumerate(factors.values())))
            else:
                flat = pytree.tree_leaves((args, kwargs))
                sources = {p: self._materialized(leaf, flat[p]) for p, leaf in sources.items()}
                through = linear_map(target, args, kwargs, value, tuple(sources), state)
            matrix = matrix_of(target, args, kwargs, sources)
            self.steps.append(TangentStep(node, sources, through, operation, blanks, matrix))
            self._stepped |= {(node, i) for i, b in enumerate(blanks) if b is not None}

    def _arriving(
        self, arguments: Sequence[Any]
    ) -> tuple[dict[int, Leaf], dict[str, dict[int, Tensor]]]:
        """Return by position among flattened values the places of tangents of data, and
        parameters'.
        """
        sources: dict[int, Leaf] = {}
        entering: dict[str, dict[int, Tensor]] = {}
        position = 0
        for argument in arguments:
            if not isinstance(argument, fx.Node):
                position += 1
                continue
            for leaf in range(len(pytree.tree_leaves(self._values[argument]))):
                if (argument, leaf) in self._stepped or (argument, leaf) in self._factors:
                    sources[position] = argument, leaf
                for name, moved in self._tangents.get(argument, {}).items():
                    entering.setdefault(name, {})[position] = moved[leaf]
                position += 1
        return sources, entering

    def _by_element(
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        value: Any,
        sources: Mapping[int, Leaf],
    ) -> dict[Leaf, Factor] | None:
        """Return the factors of an operation by element, of the stacks that steps leave."""
        factors: dict[Leaf, Factor] = {}
        for position, leaf in sources.items():
            factor = diagonal(target, argument_at(args, position), value, args, kwargs)
            if factor is None:
                return None
            root, before = self._factors.get(leaf, (leaf, 1.0))
            total = factor * before
            factors[root] = factors[root] + total if root in factors else total
        return factors or None

    def _materialized(self, leaf: Leaf, value: Tensor) -> Leaf:
        """Return where a step leaves a value's tangents, if need be a step of its own."""
        if leaf not in self._factors:
            return leaf
        root, factor = self._factors[leaf]
        if not isinstance(factor, Tensor) and factor == 1.0:
            return root
        del self._factors[leaf]
        blank = value.new_zeros(()).expand_as(value)
        self.steps.append(
            TangentStep(leaf[0], {0: root}, Combination({0: factor}), NOTHING, [blank])
        )
        self._stepped.add(leaf)
        return leaf


def matrix_of(
    op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], sources: Mapping[int, Leaf]
) -> Tensor | None:
    """Return W where an operation makes W x of the last dimension of its one source, or else None.

    >>> import torch
    >>> x, w = torch.ones(1, 2), torch.tensor([[1.0], [2.0]])
    >>> op, b = torch.ops.aten.addmm.default, torch.zeros(1)
    >>> matrix_of(op, (b, x, w), {"alpha": 0.5}, {1: (fx.Graph().placeholder("x"), 0)})
    tensor([[0.5000, 1.0000]])
    """
    known = facts(op)
    if len(sources) != 1 or known.kind != "product" or not known.layout:
        return None
    ((position, _),) = sources.items()
    if argument_name(op, argument_at(args, position)) != known.linear[0]:
        return None
    right: Tensor = argument_of_call(op, args, kwargs, known.linear[1])
    if known.layout == "out in":
        return right
    if right.dim() != 2:
        return None
    alpha = argument_of_call(op, args, kwargs, "alpha") if known.bias else 1
    return right.mT if alpha == 1 else right.mT * alpha
