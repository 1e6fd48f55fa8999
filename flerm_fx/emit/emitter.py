"""The interface of emitters: how the multipliers of a compiled model reach its training."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from flerm_fx.emit.emitted import Emitted


class Emitter(ABC):
    r"""One way to put scales :math:`s_l` on a model, whose parameters then hold :math:`\theta / s`.

    A :class:`flerm_fx.emit.scaled.ScaledModel` has one, and asks it for all that differs from one
    way to the other: how the scales are put (the constructor), what a call runs, the plain model,
    the names of what trains, and the state dict.

    Attributes:
        has_nodes: whether there are scale nodes; otherwise multipliers are left to the optimizer.
        trains_a_copy: whether what trains is a copy of the model, or with ``donate`` its remains.
        changes_the_model: whether the model that is compiled gets the scale nodes itself.
        skeleton: the module whose parameters and buffers the scaled model has.

    Args:
        skeleton: a module that the emitter may change.
        scales: s_l of each trainable parameter, by canonical name.
    """

    has_nodes: ClassVar[bool]
    trains_a_copy: ClassVar[bool]
    changes_the_model: ClassVar[bool]

    def __init__(self, skeleton: nn.Module, scales: Mapping[str, float]) -> None:
        self.skeleton = skeleton
        self._scales = dict(scales)

    @property
    def scales(self) -> dict[str, float]:
        """The present scale of each trainable parameter; empty where there are no nodes."""
        return self._scales

    def rescale(self, scales: Mapping[str, float]) -> None:
        """Change the scales alone, and nothing that is stored behind them."""
        self._scales = dict(scales)

    @abstractmethod
    def run(
        self, emitted: Callable[[], Emitted], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the model returns.

        Args:
            emitted: gives the graph for such a call, which is captured if it is asked for.
            args: of the call.
            kwargs: of the call.
        """

    @abstractmethod
    def plain(self) -> nn.Module:
        """A copy of the original model with the effective weights in it."""

    def names(self) -> dict[str, str]:
        """The plain name of each trained parameter that has another in the skeleton."""
        return {}

    def to_capture(self) -> nn.Module:
        """The module whose forward is captured for graphs: the plain function."""
        return self.skeleton

    def holder(self, scaled: nn.Module) -> nn.Module:
        """The module that has the trained parameters under their plain names."""
        return self.skeleton

    def to_train(self, plain: nn.Module) -> nn.Module:
        """What an emitter of this kind is built from, for a copy that trains as this one does.

        Args:
            plain: a plain copy of the model that may be changed.
        """
        return plain

    def to_state(
        self, state_dict: dict[str, Any], prefix: str, parameters: list[tuple[str, nn.Parameter]]
    ) -> dict[str, Tensor]:
        """Put effective weights in a state dict of stored ones.

        Args:
            state_dict: as torch makes it; it is changed.
            prefix: of the names in it.
            parameters: the trained ones, under every plain name.

        Returns:
            What gives the stored weights back bit for bit (:func:`flerm_fx.emit.state.packed`), by
            parameter.
        """
        return {}

    def from_state(
        self, state_dict: dict[str, Any], prefix: str, scales: Mapping[str, float]
    ) -> None:
        """Give stored weights in a state dict, which have plain names, those of the skeleton.

        Args:
            state_dict: what is loaded; it is changed.
            prefix: of the names in it.
            scales: of the model, once that is loaded.
        """
        return
