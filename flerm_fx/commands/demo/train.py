"""One language model trains with Adam at one learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flerm_fx.commands.demo.corpus import Corpus, sample_windows

# Guessing every byte with equal probability costs log 256 = 5.5 nats, and a fresh model starts near
# that: a run that ends at twice as much has diverged. On the way it may be higher and come back.
DIVERGED = 2 * math.log(256)


@dataclass(frozen=True)
class Task:
    """A ``Task`` holds what all runs have in common: the steps, the batches and how the loss is
    taken.

    Attributes:
        steps: optimizer steps.
        batch: windows in a training batch.
        context: bytes in a window.
        warmup: steps over which the rate rises linearly to its value.
        seed: seeds the training batches. Run i of every sweep sees the same batches.
        validation_windows: windows in the validation set, the same for every run.
    """

    steps: int = 150
    batch: int = 16
    context: int = 64
    warmup: int = 0
    seed: int = 0
    validation_windows: int = 256


def train(
    model: nn.Module,
    rate: float,
    corpus: Corpus,
    task: Task,
    on_step: Callable[[], None] = lambda: None,
) -> float:
    """Train ``model`` with Adam at ``rate`` and return its validation loss, in nats per byte.

    Returns:
        The mean cross entropy over the validation windows after the last step; NaN where the run
        diverged: it ended above :data:`DIVERGED`, or before its end at a loss that is not finite.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(task.seed)
    model.train()
    for step in range(task.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (task.warmup + 1))
        inputs, targets = sample_windows(corpus.train, task.batch, task.context, generator)
        loss = cross_entropy(model(inputs), targets)
        if not math.isfinite(loss.item()):
            return math.nan
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        on_step()
    final = validate(model, corpus, task)
    return final if final < DIVERGED else math.nan


@torch.no_grad()
def validate(model: nn.Module, corpus: Corpus, task: Task) -> float:
    """Return the mean cross entropy over the validation windows, in nats per byte."""
    model.eval()
    generator = torch.Generator().manual_seed(task.seed)
    windows = task.validation_windows
    inputs, targets = sample_windows(corpus.validation, windows, task.context, generator)
    loss = 0.0
    for start in range(0, windows, task.batch):
        batch = slice(start, start + task.batch)
        loss += cross_entropy(model(inputs[batch]), targets[batch]).item() * len(targets[batch])
    return loss / windows


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy in nats: logits (B, T, vocab), targets (B, T) -> scalar."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
