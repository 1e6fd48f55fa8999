"""The demo reads the Python standard library's own source, as bytes."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flerm_fx.errors import InputError

_SKIPPED_DIRECTORIES = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
)
# Of the character tables in encodings/ there are 120, near copies of each other: a model learns
# them by heart, and the validation loss would measure that.
_SKIPPED_TABLES = "encodings"
_VALIDATION_EVERY = 10


@dataclass(frozen=True)
class Corpus:
    """A ``Corpus`` has bytes to train on and bytes to validate on, from different files.

    Attributes:
        train: (n,) uint8.
        validation: (m,) uint8.
        files: how many files were read.
    """

    train: Tensor
    validation: Tensor
    files: int


def read_corpus(root: str | Path | None = None, limit: int = 6_000_000) -> Corpus:
    """Read ``.py`` files in sorted order until ``limit`` bytes; every tenth is for validation.

    Args:
        root: the folder to read; the running interpreter's standard library by default.
        limit: bytes to stop after.

    Raises:
        InputError: if ``root`` has too little Python source to train and validate on.

    >>> corpus = read_corpus(limit=400_000)
    >>> corpus.train.dtype, len(corpus.train) > 5 * len(corpus.validation) > 0
    (torch.uint8, True)
    """
    folder = Path(root if root is not None else sysconfig.get_paths()["stdlib"])
    train, validation = bytearray(), bytearray()
    files = 0
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if _SKIPPED_DIRECTORIES.intersection(parts) or parts[0] == _SKIPPED_TABLES:
            continue
        if len(train) + len(validation) >= limit:
            break
        files += 1
        (validation if files % _VALIDATION_EVERY == 0 else train).extend(path.read_bytes())
    if min(len(train), len(validation)) < 10_000:
        raise InputError(
            f"{folder}: expected Python source files with at least 10,000 bytes to train on and "
            f"10,000 to validate on, found {files} files with {len(train)} and "
            f"{len(validation)}; name a folder with more source in it"
        )
    return Corpus(_as_tensor(train), _as_tensor(validation), files)


def sample_windows(
    text: Tensor, batch: int, context: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw ``batch`` windows of ``context`` bytes and the bytes that follow each of theirs.

    Returns:
        inputs and targets, both (batch, context) int64; ``targets[:, t] = inputs[:, t + 1]``.

    >>> text = torch.arange(100, dtype=torch.uint8)
    >>> inputs, targets = sample_windows(text, 2, 5, torch.Generator().manual_seed(0))
    >>> inputs.shape, bool((targets == inputs + 1).all())
    (torch.Size([2, 5]), True)
    """
    starts = torch.randint(len(text) - context, (batch, 1), generator=generator)
    windows = text[starts + torch.arange(context + 1)].long()  # (batch, context + 1)
    return windows[:, :-1], windows[:, 1:]


def _as_tensor(text: bytearray) -> Tensor:
    return torch.frombuffer(text, dtype=torch.uint8)
