"""What a run was asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Progress = Callable[[str], None]
"""Told what is being measured; a part calls it before anything that takes long."""


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Attributes:
        device: where models live.
        quick: tiny models and few repetitions, to see that all runs; its figures mean nothing.
    """

    device: torch.device
    quick: bool = False

    @property
    def repetitions(self) -> int:
        """Timed repetitions of a call, at most."""
        return 2 if self.quick else 7

    @property
    def budget(self) -> float:
        """Seconds after which a call is repeated no more, for models whose steps take seconds."""
        return 5.0 if self.quick else 60.0
