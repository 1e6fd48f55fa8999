"""An emitter is one form of what ``compile`` gives back: where multipliers are, and how a call
runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from flerm_fx.capture.captured import Capture
from flerm_fx.emit.emitted import Emitted


class Emitter(ABC):
    """An ``Emitter`` is one form of what :func:`flerm_fx.compile` emits; a :class:`ScaledModel`
    holds one.

    A form is one file with one subclass, and one line in :mod:`flerm_fx.emit.emitters`.

    Args:
        skeleton: the module whose parameters train. It is changed here as the form asks.
        scales: s_l of each trainable parameter, by canonical name.
    """

    has_nodes: ClassVar[bool] = True
    """Whether there are scale nodes, behind which the stored weights train."""

    in_place: ClassVar[bool] = False
    """Whether the nodes are on the very model that was given."""

    takes_over: ClassVar[bool] = False
    """Whether it can train the parameters of the model in a structure of its own (``donate``)."""

    def __init__(self, skeleton: nn.Module, scales: Mapping[str, float]) -> None:
        self.skeleton = skeleton

    @classmethod
    @abstractmethod
    def skeleton_of(cls, model: nn.Module, donate: bool) -> nn.Module:
        """Return the module whose parameters are to train: the given one, or its copy ``twin``."""

    @property
    @abstractmethod
    def scales(self) -> dict[str, float]:
        """The scale of each trainable parameter that has a node."""

    @abstractmethod
    def set_scales(self, scales: Mapping[str, float]) -> None:
        """Change the scales alone, not what is stored behind them."""

    def run(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], emitted: Callable[[], Emitted]
    ) -> Any:
        """Return what the model returns; ``emitted`` gives the graph for this call."""
        return self.skeleton(*args, **kwargs)

    @abstractmethod
    def plain(self) -> nn.Module:
        """Return a copy of the model without nodes, with the effective weights θ = s·w in it."""

    def traced(self) -> nn.Module:
        """Return the model without nodes that graphs are captured from."""
        return self.skeleton

    def bound(self, captured: Capture, scaled: nn.Module) -> Capture:
        """Return a capture of :meth:`traced` on the weights that train."""
        return captured.bound(self.skeleton)

    def twin(self, captured: Capture) -> nn.Module:
        """Return a copy to be trained with nodes of its own, for a capture of a plain copy."""
        return captured.model

    def plain_names(self) -> dict[str, str]:
        """Return names of parameters that the nodes have changed, with those that they had
        before.
        """
        return {}

    @abstractmethod
    def to_effective(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Tensor]:
        """Put effective weights in a state dict, and return what gives the stored ones back, by
        parameter.
        """

    def to_places(  # noqa: B027 (most load stored weights under plain names)
        self, state_dict: dict[str, Any], prefix: str, scales: Mapping[str, float]
    ) -> None:
        """Give the stored weights in a state dict the names by which they are loaded."""
