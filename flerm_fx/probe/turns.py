"""Examples of a batch take turns, where a mean is taken over several measurements."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flerm_fx.boundary.compat import pytree
from flerm_fx.model.inputs import Inputs, batch_size

LEAST = 4
"""Examples of one turn, at least: fewer hardly cost less, beside what a measurement costs in any
case, and single examples differ."""

TIMES = 2
"""How often each example has its turn."""


@dataclass(frozen=True)
class Turn:
    r"""A ``Turn`` is one of several measurements, each of its own part of a batch.

    A draw for each of n examples costs n forward and backward passes, and so do n draws for one of
    them but for the forward pass. So a mean over several steps is cheapest where each step is
    measured on a part of the examples, and each has its turn twice, so
    that what differs from step to step is not taken for what differs from example to example:

    .. math:: n = \max(4, \lceil 2 N / \mathrm{turns} \rceil)

    Attributes:
        index: of this one, from 0; beyond ``turns`` the first come again.
        turns: how many measurements there are.

    >>> [Turn(index, turns=4).of(torch.arange(10)).tolist() for index in range(4)]
    [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    """

    index: int
    turns: int

    def of(self, inputs: Inputs) -> Inputs:
        """Return the examples whose turn it is; the batch itself, if it is all of them.

        Raises:
            InputError: the inputs are no batch of at least 2 examples.
        """
        size = batch_size(inputs)
        count = max(LEAST, -(-TIMES * size // self.turns))
        if count >= size:  # so are inputs that are one example
            return inputs
        chosen = [(self.index * count + i) % size for i in range(count)]

        def part(values: Tensor) -> Tensor:
            return values[torch.tensor(chosen, device=values.device)]

        return pytree.tree_map_only(Tensor, part, inputs)  # type: ignore[no-any-return]
