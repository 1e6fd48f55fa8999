"""A schedule says at which steps of a run something is measured."""

from collections.abc import Iterable

from flerm_fx.boundary.options import checked


class Schedule:
    """A ``Schedule`` is due every so many steps from 0 on, or at certain ones.

    Args:
        every: steps between two measurements.
        at: the steps themselves, in place of every so many.
        beside: more steps, beside either.

    Raises:
        InputError: not whole numbers, too small ones, or no step at all.

    >>> [step for step in range(30) if Schedule(10).due(step)]
    [0, 10, 20]
    >>> [step for step in range(30) if Schedule(at=[0, 1, 2, 4, 8, 16]).due(step)]
    [0, 1, 2, 4, 8, 16]
    """

    def __init__(
        self, every: int = 100, at: Iterable[int] | None = None, beside: Iterable[int] = ()
    ) -> None:
        self._every: int = checked("every", every)
        self._at: frozenset[int] | None = checked("at", at)
        self._beside = frozenset(beside)

    def due(self, step: int) -> bool:
        """Tell whether this step is measured."""
        if step in self._beside:
            return True
        return step % self._every == 0 if self._at is None else step in self._at


SETTLE = 100
"""Settling steps by default, where the pool has batches for them."""

PASSES = 5
"""How often each batch of the pool is trained on while settling by default, at most."""


def default_settle(batches: int) -> int:
    """Return the default number of settling steps for a pool, whose first batch is only probed on.

    A model that learns few batches by heart settles elsewhere than in training.

    >>> default_settle(1), default_settle(5), default_settle(50)
    (0, 20, 100)
    """
    return min(SETTLE, PASSES * (batches - 1))


WARMUP = 0.4
"""Part of the settling steps over which the rate rises by default. A base that takes its first
steps at the full rate may be thrown where a run with a warm-up never is: GPT-2's blocks, at the
best rate of such a run, hardly learned anything in 100 steps."""

RISEN = 0.5
"""The part of a run's rate below which it still warms up."""

POINTS = 8
"""At how many of the settling steps FSLRs are measured: those of one are those of one batch, and
behind a warm-up they vary from step to step by a factor of 2 either way."""


def default_warmup(settle: int) -> int:
    """Return over how many settling steps the rate rises by default.

    >>> default_warmup(100), default_warmup(1)
    (40, 0)
    """
    return int(WARMUP * settle)


def warmed_up(step: int, warmup: int) -> float:
    """Return the part of the full rate that a step is taken at.

    >>> [warmed_up(step, 3) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min((step + 1) / (warmup + 1), 1.0)


def start_steps(settle: int, warmup: int, last: int | None = None) -> tuple[int, ...]:
    """Return the simulated steps that the start is the mean over, evenly spaced behind the warm-up.

    A target may take them over and over; then they are those of the round that ends at ``last``.

    >>> start_steps(0, 0), start_steps(10, 4), start_steps(100, 40), start_steps(100, 40, last=300)
    ((0,), (5, 6, 7, 8, 9, 10), (48, 55, ..., 93, 100), (248, 255, ..., 293, 300))
    """
    points = min(POINTS, settle - warmup) or 1
    before = warmup + (0 if last is None else last - settle)
    return tuple(before + -(-(settle - warmup) * k // points) for k in range(1, points + 1))


def settling_steps(settle: int, warmup: int) -> tuple[int, ...]:
    """Return the simulated steps at which outputs are measured: powers of 2, and the start's.

    >>> settling_steps(0, 0), settling_steps(10, 4)
    ((0,), (0, 1, 2, 4, 5, 6, 7, 8, 9, 10))
    """
    early = (0, *(2**k for k in range(settle.bit_length())))
    behind = start_steps(settle, warmup)
    return tuple(sorted({*(step for step in early if step < settle), *behind}))


def step_of_round(step: int, settle: int) -> int:
    """Return the settling step that a step answers to, where the start's are taken over and over.

    >>> [step_of_round(step, 100) for step in (64, 100, 132, 164, 200, 232)]
    [64, 100, 32, 64, 100, 32]
    """
    return step if step <= settle else (step - 1) % settle + 1
