"""Each step of a linearised graph takes stacks of tangents to stacks."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from flerm_fx.probe.by_element import Combination
from flerm_fx.probe.rules import Operation
from flerm_fx.probe.stacks import LinearMap

Leaf = tuple[fx.Node, int]
"""One of the tensors that a node returns."""


@dataclass
class TangentStep:
    """A ``TangentStep`` says what an operation does with tangents.

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


def alive(steps: Sequence[TangentStep], output: Leaf) -> list[TangentStep]:
    """Return the steps that the output depends on; each learns what it is the last, or only, to
    read.
    """
    needed = {output[0]}
    kept: list[TangentStep] = []
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


def moved(
    step: TangentStep, arrived: Mapping[int, Tensor], fresh: Collection[Leaf]
) -> list[Tensor | None]:
    """Return what a step makes of tangents: in their own memory where it may."""
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


def is_apart(stack: Tensor, taken: Collection[int]) -> bool:
    """Tell whether it has memory of its own for each element."""
    return 0 not in stack.stride() and stack.untyped_storage().data_ptr() not in taken


def own(
    stacks: Sequence[Tensor | None],
    taken: Collection[int],
    blanks: Sequence[Tensor | None],
    rows: int,
) -> list[Tensor | None]:
    """Return the stacks, to be added to."""
    owned: list[Tensor | None] = []
    for stack, blank in zip(stacks, blanks, strict=True):
        if blank is None:
            owned.append(None)
        elif stack is None:
            owned.append(blank.new_zeros(rows, *blank.shape))
        elif is_apart(stack, taken):
            owned.append(stack)
        else:
            owned.append(stack.clone(memory_format=torch.contiguous_format))
    return owned
