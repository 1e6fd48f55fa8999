"""Seeded batches: what goes into the zoo's models, and the targets of their losses."""

from collections.abc import Callable

import torch
from torch import Tensor

EXAMPLES = 3
VOCABULARY = 64
TIME = 6
CLASSES = 5

Batch = Callable[[], Tensor]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(time: int = TIME, examples: int = EXAMPLES, vocabulary: int = VOCABULARY) -> Tensor:
    """Token ids, none of them one of the special ones below 4."""
    return torch.randint(4, vocabulary, (examples, time), generator=_seeded(1))


def next_tokens(time: int = TIME, examples: int = EXAMPLES, vocabulary: int = VOCABULARY) -> Tensor:
    """The tokens after :func:`tokens`."""
    return tokens(time, examples, vocabulary).roll(-1, 1)


def classes(*shape: int, number: int = CLASSES) -> Tensor:
    """A class for each example, or for each entry of a shape."""
    return torch.randint(number, shape or (EXAMPLES,), generator=_seeded(2))


def features(*shape: int, seed: int = 3) -> Tensor:
    """Normal numbers, batch first."""
    return torch.randn(EXAMPLES, *shape, generator=_seeded(seed))


def images(size: int = 16, channels: int = 3) -> Tensor:
    """Normal pixels."""
    return features(channels, size, size)
