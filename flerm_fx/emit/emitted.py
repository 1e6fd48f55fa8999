"""This module holds what a call of a model with scale nodes runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class Emitted:
    """An ``Emitted`` holds a graph with scale nodes, its lowered form and its guards; all None
    without a graph.
    """

    graph_module: fx.GraphModule | None
    lowered: fx.GraphModule | None
    guards: Callable[..., None] | None

    def to_run(self) -> fx.GraphModule:
        """Return the lowered graph, unless autocast would store its unscaled weights in float16."""
        assert self.graph_module is not None
        assert self.lowered is not None
        return self.graph_module if _casts_to_float16() else self.lowered

    def holds(self, leaves: list[Any]) -> bool:
        """Tell whether the graph is the model's for these flat inputs."""
        if self.guards is None:
            return True
        try:
            self.guards(*leaves)
        except AssertionError:
            return False
        return True


UNGRAPHED = Emitted(None, None, None)


def _casts_to_float16() -> bool:
    return any(
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        for device in ("cpu", "cuda", "mps", "xpu")
    )
