"""Batches of real text for the examples: the Python standard library's own source, as bytes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from flerm_fx.commands.demo.corpus import Corpus, read_corpus, sample_windows

CONTEXT = 64
BATCH = 8


def corpus() -> Corpus:
    """Two megabytes of it."""
    return read_corpus(limit=2_000_000)


def batches(text: Corpus, steps: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Bytes and the bytes that follow them, both of shape (BATCH, CONTEXT)."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield sample_windows(text.train, BATCH, CONTEXT, generator)
