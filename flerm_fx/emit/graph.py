"""The emitter whose model runs a captured graph with scale nodes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flerm_fx.emit.emitted import Emitted
from flerm_fx.emit.emitter import Emitter
from flerm_fx.emit.state import effective, packed
from flerm_fx.model.copying import copied
from flerm_fx.model.substitution import called_with
from flerm_fx.ops.scale import scale


class GraphEmitter(Emitter):
    """Scale nodes in the graph: calls run it, and the skeleton's own forward does not scale.

    Where the model does not export, ``torch.func.functional_call`` applies the same scales.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> before = layer.weight.detach().clone()
    >>> emitter = GraphEmitter(layer, {"weight": 4.0})
    >>> torch.equal(layer.weight, before / 4), torch.equal(emitter.plain().weight, before)
    (True, True)
    """

    has_nodes = True
    trains_a_copy = True
    changes_the_model = False

    def __init__(self, skeleton: nn.Module, scales: Mapping[str, float]) -> None:
        super().__init__(skeleton, scales)
        with torch.no_grad():
            for name, parameter in skeleton.named_parameters():
                if name in scales:
                    parameter.div_(scales[name])

    def run(
        self, emitted: Callable[[], Emitted], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the graph returns, or the skeleton with scaled weights."""
        found = emitted()
        if found.graph_module is not None:
            return found.to_run()(*args, **kwargs)
        parameters = dict(self.skeleton.named_parameters())
        scaled = {name: scale(parameters[name], s) for name, s in self.scales.items()}
        return called_with(self.skeleton, scaled, args, kwargs)

    def plain(self) -> nn.Module:
        """A copy of the skeleton with its weights multiplied by their scales."""
        model = copied(self.skeleton)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.scales:
                    parameter.mul_(self.scales[name])
        return model

    def to_state(
        self, state_dict: dict[str, Any], prefix: str, parameters: list[tuple[str, nn.Parameter]]
    ) -> dict[str, Tensor]:
        """Multiply stored weights by their scales; tied names get memory of their own."""
        units: dict[str, Tensor] = {}
        names: dict[int, str] = {}
        for alias, parameter in parameters:
            name = names.setdefault(id(parameter), alias)
            if name in self.scales and prefix + alias in state_dict:
                stored = state_dict[prefix + alias]
                # Memory of its own for each of tied names, which safetensors asks for.
                state_dict[prefix + alias] = effective(stored, self.scales[name])
                if name == alias:
                    units[name] = packed(stored, self.scales[name])
        return units
