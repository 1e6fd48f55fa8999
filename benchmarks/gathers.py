"""What is gathered of weights, counted."""

import weakref

import torch
from torch import Tensor

from flerm_fx.model.distributed import gathered


class Gathers:
    """Gathers tensors as the probe does, into memory that is nothing else's.

    Attributes:
        largest: bytes of the largest.
        alive: bytes of those that are still held.
        most: bytes that were held at once.
        traffic: bytes of all.
    """

    def __init__(self) -> None:
        self.largest = self.alive = self.most = self.traffic = self.count = 0

    def __call__(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The whole tensor, on a device."""
        whole = gathered(tensor, device).clone()
        size = whole.numel() * whole.element_size()
        self.largest, self.traffic = max(self.largest, size), self.traffic + size
        self.alive, self.count = self.alive + size, self.count + 1
        self.most = max(self.most, self.alive)
        weakref.finalize(whole.untyped_storage(), self._gone, size)
        return whole

    def _gone(self, size: int) -> None:
        self.alive -= size
