"""The next weight is on its way while the present one is used."""

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, fx

from flerm_fx.model.distributed import begun, gathered

FOLLOWERS = "which weight came after each two"


class Gather:
    """A ``Gather`` makes tensors whole on a device that are sharded over ranks, or elsewhere."""

    def begin(self, tensor: Tensor) -> Tensor:
        """Send for a tensor, without waiting for it."""
        return begun(tensor)

    def finish(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return what was sent for, or a tensor that was not."""
        return gathered(tensor, device)


class Prefetch:
    """A ``Prefetch`` sends for the tensor that will be read next whenever one is taken.

    It goes by what followed the last two reads when they were made in this order before, so that
    the first run of a graph, forward and back, fetches nothing ahead. Where the guess is wrong, the
    tensor that came for nothing is let go, and was traffic for nothing. Ranks that read alike guess
    alike.

    Args:
        graph_module: that reads them; it keeps which name came after each two.
        tensors: by name.
        device: that reads them.
        gather: brings them.

    >>> graph = fx.GraphModule({}, fx.Graph())
    >>> weights = {"first": torch.ones(1), "second": torch.zeros(1)}
    >>> with Prefetch(graph, weights, torch.device("cpu"), Gather()) as prefetch:
    ...     prefetch.take("second"), prefetch.take("first")
    (tensor([0.]), tensor([1.]))
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        gather: Gather,
    ) -> None:
        self._tensors, self._device, self._gather = tensors, device, gather
        self._followers: dict[tuple[str, str], str] = graph_module.meta.setdefault(FOLLOWERS, {})
        self._last = ("", "")
        self._begun: tuple[str, Tensor] | None = None

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:  # else another rank may be gone, and nothing may come
            self._wait()

    def take(self, name: str) -> Tensor:
        """Return a tensor, whole, and send for the one that is expected to be read next."""
        if self._begun is not None and self._begun[0] == name:
            tensor, self._begun = self._begun[1], None
        else:
            self._wait()
            tensor = self._tensors[name]
        value = self._gather.finish(tensor, self._device)
        self._followers[self._last] = name
        self._last = (self._last[1], name)
        following = self._followers.get(self._last, "")
        if following in self._tensors:
            self._begun = following, self._gather.begin(self._tensors[following])
        return value

    def _wait(self) -> None:
        """Wait for what is on its way, and let it go."""
        if self._begun is not None:
            (_, tensor), self._begun = self._begun, None
            self._gather.finish(tensor, self._device)
