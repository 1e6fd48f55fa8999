"""Random state is kept and put back: torch's on every device, Python's and numpy's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """A ``RandomState`` holds where the random number generators are that a model may draw from.

    Attributes:
        torch: by device: the CPU, and those in use of CUDA, XPU and MPS.
        python: of the module ``random``.
        numpy: of the functions in ``numpy.random``.
    """

    torch: dict[str, Tensor]
    python: Any
    numpy: dict[str, Any]

    def same(self, other: "RandomState") -> bool:
        """Tell whether nothing was drawn between the two."""
        return (
            self.torch.keys() == other.torch.keys()
            and all(torch.equal(state, other.torch[key]) for key, state in self.torch.items())
            and not self.foreign(other)
        )

    def foreign(self, other: "RandomState") -> str:
        """Return the generator outside of torch that was drawn from between the two, or "" if none
        was.
        """
        if self.python != other.python:
            return "Python's random"
        mine, theirs = self.numpy["state"], other.numpy["state"]
        drawn = mine["pos"] != theirs["pos"] or not np.array_equal(mine["key"], theirs["key"])
        return "numpy.random" if drawn or self.numpy["gauss"] != other.numpy["gauss"] else ""


def rng_state() -> RandomState:
    """Return the present random state.

    >>> before = rng_state()
    >>> _ = random.random()
    >>> before.same(rng_state()), before.foreign(rng_state())
    (False, "Python's random")
    """
    states = {"cpu": torch.get_rng_state()}
    for kind in _in_use():
        module = getattr(torch, kind)
        for index in range(module.device_count()):
            states[f"{kind}:{index}"] = (
                module.get_rng_state() if kind == "mps" else module.get_rng_state(index)
            )
    return RandomState(states, random.getstate(), np.random.get_state(legacy=False))


def set_rng_state(state: RandomState) -> None:
    """Go back to a state that :func:`rng_state` returned."""
    for key, value in state.torch.items():
        kind, _, index = key.partition(":")
        if kind == "cpu":
            torch.set_rng_state(value)
        elif kind == "mps":
            torch.mps.set_rng_state(value)
        else:
            getattr(torch, kind).set_rng_state(value, int(index))
    random.setstate(state.python)
    np.random.set_state(state.numpy)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put back the random state on leaving."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def seed_all(seed: int) -> None:
    """Seed every generator of :class:`RandomState`, to be called within :func:`preserved_rng`.

    A device that is not in use yet is left alone: ``torch.manual_seed`` would seed it at its first
    use, long after the state was put back.

    >>> with preserved_rng():
    ...     seed_all(0)
    ...     print(round(random.random(), 3), round(np.random.random(), 3), torch.rand(1))
    0.844 0.549 tensor([0.4963])
    """
    torch.default_generator.manual_seed(seed)
    for kind in _in_use():
        module = getattr(torch, kind)
        (module.manual_seed if kind == "mps" else module.manual_seed_all)(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # numpy takes 32 bits


def _in_use() -> list[str]:
    """Return the kinds of accelerators whose generators exist."""
    in_use = [kind for kind in ("cuda", "xpu") if getattr(torch, kind).is_initialized()]
    return [*in_use, "mps"] if torch.backends.mps.is_available() else in_use
