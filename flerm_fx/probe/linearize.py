"""A graph, linearised: one forward pass makes a linear map of every operation."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from flerm_fx.capture.probed_as import CONSTANT
from flerm_fx.capture.tracing import cloned_buffers
from flerm_fx.model.inputs import is_differentiable
from flerm_fx.model.randomness import rng_state
from flerm_fx.ops.operation import is_random
from flerm_fx.probe.frontier import data_nodes
from flerm_fx.probe.linear_maps import Combination, Factor, LinearMap, diagonal, linear_map
from flerm_fx.probe.rules import Operation, argument_at

aten = torch.ops.aten

Leaf = tuple[fx.Node, int]
"""One of the tensors that a node returns."""

NOTHING = Operation(lambda: None, (), {}, {})
"""Where no parameter enters, no argument need be kept."""


@dataclass
class _Step:
    """What an operation does with tangents.

    Attributes:
        node: the operation.
        sources: where tangents of its data come from, by position among its flattened arguments.
        through: what it makes of those.
        operation: where updates of parameters enter.
        blanks: what its outputs are like; None for one that has no tangents.
        matrix: W of an operation that makes W x of the last dimension of its one source; else None.
        last: the nodes whose tangents no later step reads.
        alone: positions whose source no other step reads.
    """

    node: fx.Node
    sources: Mapping[int, Leaf]
    through: LinearMap | Combination
    operation: Operation
    blanks: Sequence[Tensor | None]
    matrix: Tensor | None = None
    last: list[fx.Node] = field(default_factory=list)
    alone: set[int] = field(default_factory=set)


class Linearization:
    r"""The derivative of a graph's output in its parameters, as a sequence of linear maps.

    The forward pass runs once. Of its values those are kept that the maps need, which are about
    those that a backward pass would keep. Operations that work element by element, one after
    another, become one factor. :meth:`push` takes tangents of parameters to the output.

    Args:
        graph_module: a functional graph with one output.
        parameters: values of parameters, by name.
        updates: the tangent of each parameter that may be pushed.
        flat_inputs: the graph's inputs.

    Attributes:
        order: the parameters that reach the output, in the order in which they enter.
        largest: bytes of the largest value that tangents pass.

    >>> from flerm_fx.capture.tracing import capture
    >>> captured = capture(torch.nn.Linear(2, 1, bias=False), torch.zeros(3, 2))
    >>> x, update = torch.ones(3, 2), {"weight": torch.ones(1, 2)}
    >>> with torch.no_grad():
    ...     linear = Linearization(captured.probe_module, captured.parameters, update, [x])
    ...     linear.push(["weight"]).flatten()
    tensor([2., 2., 2.])
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        flat_inputs: Sequence[Any],
    ) -> None:
        forward = _Forward(graph_module, parameters, updates)
        self._output = forward.run(flat_inputs)
        self._steps = _alive(forward.steps, self._output)
        self._entry: dict[str, int] = {}
        for index, step in enumerate(self._steps):
            for name in step.operation.entering:
                self._entry.setdefault(name, index)
        self.order = tuple(self._entry)
        self._isometric = _isometric(self._steps, self._output)
        passed = self._steps if self._isometric is None else self._steps[:-1]
        self.largest = max((_bytes(b) for step in passed for b in step.blanks), default=0)

    def push(self, names: Sequence[str]) -> Tensor:
        """Tangents of the output, stacked in the order of ``names`` along a new first dimension."""
        return self._pushed(names, self._steps, self._output)

    def mean_squares(self, names: Sequence[str]) -> Tensor:
        r"""Mean square of each parameter's tangent of the output, in float32 at least.

        Where the graph ends in a product W x with more outputs than inputs (logits), and the update
        does not enter there, :math:`\lVert W \dot x \rVert = \lVert R \dot x \rVert` with W = QR,
        which is a much smaller product.
        """
        head = self._steps[-1]
        if self._isometric is None or any(name in head.operation.entering for name in names):
            moved = self.push(names)
            size = moved[0].numel()
        else:
            ((_, source),) = head.sources.items()
            inner = self._pushed(names, self._steps[:-1], source)
            moved = inner.to(self._isometric.dtype) @ self._isometric.mT
            (blank,) = head.blanks
            assert blank is not None
            size = blank.numel()
        precise = torch.promote_types(moved.dtype, torch.float32)
        norms: Tensor = torch.linalg.vector_norm(moved.flatten(1), dim=1, dtype=precise)
        return norms.square() / size

    def groups(self, at_once: int) -> Iterator[tuple[str, ...]]:
        """All parameters that reach the output, a few at a time."""
        head = self._steps[-1].operation.entering if self._steps else {}
        for kind in (False, True):
            names = [name for name in self.order if (name in head) == kind]
            for start in range(0, len(names), at_once):
                yield tuple(names[start : start + at_once])

    def _pushed(self, names: Sequence[str], steps: Sequence[_Step], end: Leaf) -> Tensor:
        rows = {name: row for row, name in enumerate(names)}
        stacks: dict[Leaf, Tensor] = {}
        fresh: set[Leaf] = set()  # in memory that is no other stack's
        for step in steps[min(self._entry[name] for name in names) :]:
            arrived = {p: stacks[leaf] for p, leaf in step.sources.items() if leaf in stacks}
            entering = [name for name in step.operation.entering if name in rows]
            for leaf in [leaf for leaf in stacks if leaf[0] in step.last]:
                del stacks[leaf]
            if not arrived and not entering:
                continue
            taken = {stack.untyped_storage().data_ptr() for stack in arrived.values()}
            moved = _moved(step, arrived, fresh)
            if entering:
                moved = _own(moved, taken, step.blanks, len(rows))
                for name in entering:
                    for stack, tangent in zip(moved, step.operation.tangents(name), strict=True):
                        if stack is not None:
                            stack[rows[name]] += tangent
            for index, stack in enumerate(moved):
                if stack is not None:
                    stacks[step.node, index] = stack
                    if _is_apart(stack, taken):
                        fresh.add((step.node, index))
        return stacks[end]


def _isometric(steps: Sequence[_Step], output: Leaf) -> Tensor | None:
    """R of the matrix that the graph ends in, where that is the smaller one."""
    if not steps or steps[-1].node is not output[0] or steps[-1].matrix is None:
        return None
    matrix = steps[-1].matrix
    if matrix.shape[0] <= 2 * matrix.shape[1]:
        return None
    precise = torch.promote_types(matrix.dtype, torch.float32)
    upper: Tensor = torch.linalg.qr(matrix.to(precise), mode="r").R
    return upper


def _moved(
    step: _Step, arrived: Mapping[int, Tensor], fresh: Collection[Leaf]
) -> list[Tensor | None]:
    """What a step makes of tangents: in their own memory where it may."""
    if not arrived:
        return [None] * len(step.blanks)
    if isinstance(step.through, Combination):
        mine = {p for p in arrived if p in step.alone and step.sources[p] in fresh}
        return step.through(arrived, mine)
    # A tangent is of its value's type, to which arguments of several types are promoted.
    return [
        stack if stack is None or blank is None else stack.to(blank.dtype)
        for stack, blank in zip(step.through(arrived), step.blanks, strict=True)
    ]


def _is_apart(stack: Tensor, taken: Collection[int]) -> bool:
    """Whether it has memory of its own for each element."""
    return 0 not in stack.stride() and stack.untyped_storage().data_ptr() not in taken


def _own(
    stacks: Sequence[Tensor | None],
    taken: Collection[int],
    blanks: Sequence[Tensor | None],
    rows: int,
) -> list[Tensor | None]:
    """The stacks, to be added to."""
    found: list[Tensor | None] = []
    for stack, blank in zip(stacks, blanks, strict=True):
        if blank is None:
            found.append(None)
        elif stack is None:
            found.append(blank.new_zeros(rows, *blank.shape))
        elif _is_apart(stack, taken):
            found.append(stack)
        else:
            found.append(stack.clone(memory_format=torch.contiguous_format))
    return found


def _alive(steps: Sequence[_Step], output: Leaf) -> list[_Step]:
    """The steps that the output depends on; each learns what it is the last, or only, to read."""
    needed = {output[0]}
    kept: list[_Step] = []
    readers = Counter([output])
    for step in reversed(steps):
        if step.node in needed:
            sources = {node for node, _ in step.sources.values()}
            step.last = [node for node in sources if node not in needed]
            needed |= sources
            readers.update(set(step.sources.values()))
            kept.append(step)
    for step in kept:
        alone = {p for p, leaf in step.sources.items() if readers[leaf] == 1}
        step.alone = alone if len(set(step.sources.values())) == len(step.sources) else set()
    return kept[::-1]


class _Forward:
    """The forward pass, which makes steps of the operations as it runs them."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
    ) -> None:
        self.module = graph_module
        self.updates = updates
        self.steps: list[_Step] = []
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
        """Run the graph; returns where the output's tangents will be."""
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
            matrix = _matrix(target, args) if set(sources) == {_factor(target)} else None
            self.steps.append(_Step(node, sources, through, operation, blanks, matrix))
            self._stepped |= {(node, i) for i, b in enumerate(blanks) if b is not None}

    def _arriving(
        self, arguments: Sequence[Any]
    ) -> tuple[dict[int, Leaf], dict[str, dict[int, Tensor]]]:
        """By position among flattened values: places of tangents of data, and parameters'."""
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
        """The factors of an operation by element, of the stacks that steps leave."""
        found: dict[Leaf, Factor] = {}
        for position, leaf in sources.items():
            factor = diagonal(target, argument_at(args, position), value, args, kwargs)
            if factor is None:
                return None
            root, before = self._factors.get(leaf, (leaf, 1.0))
            total = factor * before
            found[root] = found[root] + total if root in found else total
        return found or None

    def _materialized(self, leaf: Leaf, value: Tensor) -> Leaf:
        """Where a step leaves a value's tangents, if need be a step of its own."""
        if leaf not in self._factors:
            return leaf
        root, factor = self._factors[leaf]
        if not isinstance(factor, Tensor) and factor == 1.0:
            return root
        del self._factors[leaf]
        blank = value.new_zeros(()).expand_as(value)
        self.steps.append(_Step(leaf[0], {0: root}, Combination({0: factor}), NOTHING, [blank]))
        self._stepped.add(leaf)
        return leaf


def _factor(target: Any) -> int:
    """Which argument of a product with a matrix is multiplied; -1 if it is no such product."""
    return {aten.linear.default: 0, aten.matmul.default: 0, aten.addmm.default: 1}.get(target, -1)


def _matrix(target: Any, args: tuple[Any, ...]) -> Tensor | None:
    """W, where an operation makes W x of each x along the last dimension."""
    if target is aten.linear.default:
        weight: Tensor = args[1]
        return weight
    right: Tensor = args[_factor(target) + 1]
    return right.mT if right.dim() == 2 else None


def _bytes(blank: Tensor | None) -> int:
    return 0 if blank is None else blank.numel() * blank.element_size()
