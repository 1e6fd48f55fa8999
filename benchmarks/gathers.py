"""What is gathered of weights, counted."""

import time
import weakref

import torch
from torch import Tensor

from flerm_fx.probe.prefetch import Gather


class Gathers(Gather):
    """Gathers tensors as the probe does, into memory that is nothing else's.

    Attributes:
        largest: bytes of the largest.
        alive: bytes of those that are still held.
        most: bytes that were held at once, with what is on its way.
        traffic: bytes of all.
        count: how many came.
        begun: how many were sent for ahead.
    """

    def __init__(self) -> None:
        self.largest = self.alive = self.most = self.traffic = self.count = self.begun = 0
        self._begun: dict[int, int] = {}

    def begin(self, tensor: Tensor) -> Tensor:
        """Send for a tensor."""
        coming = super().begin(tensor)
        self.begun += 1
        self._begun[id(coming)] = self._held(coming)
        return coming

    def finish(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return the whole tensor, on a device."""
        whole = super().finish(tensor, device).clone()
        self.alive -= self._begun.pop(id(tensor), 0)
        size = self._held(whole)
        self.largest, self.traffic, self.count = (
            max(self.largest, size),
            self.traffic + size,
            self.count + 1,
        )
        weakref.finalize(whole.untyped_storage(), self._gone, size)
        return whole

    def _held(self, tensor: Tensor) -> int:
        size = tensor.numel() * tensor.element_size()
        self.alive += size
        self.most = max(self.most, self.alive)
        return size

    def _gone(self, size: int) -> None:
        self.alive -= size


class Slow(Gather):
    """Gathers over a link that takes a while for each tensor, however many are on their way.

    Args:
        seconds: that it takes.
        ahead: whether tensors are sent for ahead.
    """

    def __init__(self, seconds: float, *, ahead: bool) -> None:
        self._seconds, self._ahead = seconds, ahead
        self._due: dict[int, float] = {}

    def begin(self, tensor: Tensor) -> Tensor:
        """Send for a tensor."""
        if not self._ahead:
            return tensor
        coming = super().begin(tensor)
        self._due[id(coming)] = time.perf_counter() + self._seconds
        return coming

    def finish(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return the whole tensor, once it is there."""
        due = self._due.pop(id(tensor), time.perf_counter() + self._seconds)
        whole = super().finish(tensor, device)
        time.sleep(max(0.0, due - time.perf_counter()))
        return whole
