"""Multipliers in the parameter groups of an optimizer, and none in the model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flerm_fx.emit.emitter import Emitter
from flerm_fx.model.copying import copied


class GroupsEmitter(Emitter):
    """The model as it is: it trains with the groups that hold its multipliers."""

    has_nodes = False

    @classmethod
    def skeleton_of(cls, model: nn.Module, twin: nn.Module, donate: bool) -> nn.Module:
        """The model itself."""
        return model

    @property
    def scales(self) -> dict[str, float]:
        """None: there are no nodes."""
        return {}

    def set_scales(self, scales: Mapping[str, float]) -> None:
        """Nothing is to be changed."""

    def plain(self) -> nn.Module:
        """A copy of the model."""
        return copied(self.skeleton)

    def to_effective(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Tensor]:
        """Effective weights are what the model has."""
        return {}
