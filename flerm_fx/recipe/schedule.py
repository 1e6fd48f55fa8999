"""At which steps of a run something is measured."""

from collections.abc import Iterable

from flerm_fx.boundary.options import checked


class Schedule:
    """Every so many steps from 0 on, or at certain ones.

    Args:
        every: steps between two measurements.
        at: the steps themselves, in place of every so many.

    Raises:
        InputError: not whole numbers, too small ones, or no step at all.

    >>> [step for step in range(30) if Schedule(10).due(step)]
    [0, 10, 20]
    >>> [step for step in range(30) if Schedule(at=[0, 1, 2, 4, 8, 16]).due(step)]
    [0, 1, 2, 4, 8, 16]
    """

    def __init__(self, every: int = 100, at: Iterable[int] | None = None) -> None:
        self._every: int = checked("every", every)
        self._at: frozenset[int] | None = checked("at", at)

    def due(self, step: int) -> bool:
        """Whether this step is measured."""
        return step % self._every == 0 if self._at is None else step in self._at


SETTLE = 100
"""Settling steps by default, where the pool has batches for them."""

PASSES = 5
"""How often each batch of the pool is trained on while settling by default, at most."""


def default_settle(batches: int) -> int:
    """Settling steps for a pool of so many batches, the first of which is only probed on.

    A model that learns few batches by heart settles elsewhere than in training.

    >>> default_settle(1), default_settle(5), default_settle(50)
    (0, 20, 100)
    """
    return min(SETTLE, PASSES * (batches - 1))


def settling_steps(settle: int) -> tuple[int, ...]:
    """The simulated steps at which FSLRs are measured, and a target is matched.

    >>> settling_steps(0), settling_steps(10)
    ((0,), (0, 1, 2, 4, 8, 10))
    """
    earlier = (0, *(2**k for k in range(settle.bit_length())))
    return (*(step for step in earlier if step < settle), settle)


def start_steps(settle: int, last: int | None = None) -> tuple[int, ...]:
    """Those of them that the start is the mean over: one step's FSLRs are those of one batch.

    A target may take them over and over; then they are those of the round that ends at ``last``.

    >>> start_steps(0), start_steps(10), start_steps(100), start_steps(100, last=300)
    ((0,), (4, 8, 10), (32, 64, 100), (232, 264, 300))
    """
    before = 0 if last is None else last - settle
    return tuple(before + step for step in settling_steps(settle) if step >= settle / 4)


def step_of_round(step: int, settle: int) -> int:
    """The settling step that a step answers to, where those of the start are taken over and over.

    >>> [step_of_round(step, 100) for step in (64, 100, 132, 164, 200, 232)]
    [64, 100, 32, 64, 100, 32]
    """
    return step if step <= settle else (step - 1) % settle + 1
