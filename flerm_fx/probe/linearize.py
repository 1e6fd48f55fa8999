"""One forward pass linearises a graph: it makes a linear map of every operation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from flerm_fx.probe.forward import Forward
from flerm_fx.probe.steps import Leaf, TangentStep, alive, is_apart, moved, own


class Linearization:
    r"""A ``Linearization`` is a graph's derivative in its parameters, as a sequence of linear maps.

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
        forward = Forward(graph_module, parameters, updates)
        self._output = forward.run(flat_inputs)
        self._steps = alive(forward.steps, self._output)
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
        r"""Return the mean square of each parameter's tangent of the output, in float32 at least.

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
        """Return all parameters that reach the output, a few at a time."""
        head = self._steps[-1].operation.entering if self._steps else {}
        for kind in (False, True):
            names = [name for name in self.order if (name in head) == kind]
            for start in range(0, len(names), at_once):
                yield tuple(names[start : start + at_once])

    def _pushed(self, names: Sequence[str], steps: Sequence[TangentStep], end: Leaf) -> Tensor:
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
            stacked = moved(step, arrived, fresh)
            if entering:
                stacked = own(stacked, taken, step.blanks, len(rows))
                for name in entering:
                    for stack, tangent in zip(stacked, step.operation.tangents(name), strict=True):
                        if stack is not None:
                            stack[rows[name]] += tangent
            for index, stack in enumerate(stacked):
                if stack is not None:
                    stacks[step.node, index] = stack
                    if is_apart(stack, taken):
                        fresh.add((step.node, index))
        return stacks[end]


def _isometric(steps: Sequence[TangentStep], output: Leaf) -> Tensor | None:
    """Return R of the matrix that the graph ends in, where R is the smaller one."""
    if not steps or steps[-1].node is not output[0] or steps[-1].matrix is None:
        return None
    matrix = steps[-1].matrix
    if matrix.shape[0] <= 2 * matrix.shape[1]:
        return None
    precise = torch.promote_types(matrix.dtype, torch.float32)
    upper: Tensor = torch.linalg.qr(matrix.to(precise), mode="r").R
    return upper


def _bytes(blank: Tensor | None) -> int:
    return 0 if blank is None else blank.numel() * blank.element_size()
