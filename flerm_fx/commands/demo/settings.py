"""The settings say what one run of the demo does."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from flerm_fx.commands.demo.train import Task
from flerm_fx.errors import InputError

# The paper's schemes; models/transformer.py implements them.
NORMS = ("pre", "post", "post-pre-residual")
HEAD_WIDTH = 16
# A process takes some 400 MB, so a machine of many cores is not filled.
WORKERS = min(os.cpu_count() or 1, 8)
_MOST_RATES = 1000
_SEEDS = 2**63  # a generator of torch takes no larger ones
_FURTHEST = 64  # octaves; Adam's step in float32 holds rates up to 2^127


@dataclass(frozen=True)
class Settings:
    """A ``Settings`` holds the demo's choices, checked.

    Attributes:
        width: how many times wider the large model is.
        base_width: width of the small model, a multiple of 16 (the width of an attention head).
        depth: blocks in both models.
        norm: ``"pre"``, ``"post"`` or ``"post-pre-residual"``.
        rates: learning rates to try, increasing.
        task: steps and batches.
        out: folder for the results.
        workers: processes that train side by side, on one thread each.

    Raises:
        InputError: for a value that cannot be run.

    >>> Settings(width=8).large_width
    256
    """

    width: int = 4
    base_width: int = 32
    depth: int = 2
    norm: str = "pre"
    rates: tuple[float, ...] = tuple(2.0**octave for octave in range(-10, -1))
    task: Task = field(default_factory=Task)
    out: Path = Path("demo-out")
    workers: int = WORKERS

    def __post_init__(self) -> None:
        task = self.task
        for option, value, least in [
            ("width", self.width, 2),
            ("base-width", self.base_width, HEAD_WIDTH),
            ("depth", self.depth, 1),
            ("steps", task.steps, 1),
            ("warmup", task.warmup, 0),
            ("batch", task.batch, 2),
            ("context", task.context, 2),
            ("workers", self.workers, 1),
            ("seed", task.seed, 0),
        ]:
            if value < least:
                raise InputError(f"--{option} is {value}; it must be {least} or more")
        if task.seed >= _SEEDS:
            raise InputError(f"--seed is {task.seed}; it must be below 2^63")
        if self.base_width % HEAD_WIDTH:
            raise InputError(
                f"--base-width is {self.base_width}; it must be a multiple of {HEAD_WIDTH}, the "
                "width of an attention head"
            )
        if self.norm not in NORMS:
            raise InputError(f"--norm is {self.norm!r}; it must be one of {', '.join(NORMS)}")
        if len(self.rates) < 3:
            raise InputError(
                f"--rates gives {len(self.rates)} learning rates; an optimum needs 3 or more"
            )

    @property
    def large_width(self) -> int:
        """Width of the large model."""
        return self.width * self.base_width


def parse_rates(text: str) -> tuple[float, ...]:
    """Return learning rates from ``LOW:HIGH`` or ``LOW:HIGH:STEP`` in octaves (powers of two).

    Raises:
        InputError: for anything else.

    >>> parse_rates("-3:-1")
    (0.125, 0.25, 0.5)
    >>> len(parse_rates("-3:-1:0.5"))
    5
    """
    try:
        low, high, step = [float(part) for part in (text + ":1").split(":")[:3]]
        if text.count(":") not in (1, 2) or not (
            -_FURTHEST <= low < high <= _FURTHEST and step > 0
        ):
            raise ValueError
        count = math.floor((high - low) / step + 1e-9) + 1
    except (ValueError, OverflowError):
        raise InputError(
            f"--rates is {text!r}; it must be LOW:HIGH or LOW:HIGH:STEP in powers of two, lowest "
            "first, such as -10:-2 for rates from 2^-10 to 2^-2"
        ) from None
    if count > _MOST_RATES:
        raise InputError(
            f"--rates is {text!r}, which is {count} learning rates, each a run; give a STEP of at "
            f"least {(high - low) / (_MOST_RATES - 1):g}"
        )
    return tuple(2.0 ** (low + i * step) for i in range(count))
