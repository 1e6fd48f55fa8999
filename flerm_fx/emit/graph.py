"""This emitter puts scale nodes into the graph of a model's copy."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from flerm_fx.assign.assignment import Assignment
from flerm_fx.boundary.compat import own_buffers, own_parameters
from flerm_fx.emit.emitted import Emitted
from flerm_fx.emit.emitter import Emitter
from flerm_fx.emit.state import effective, packed_units
from flerm_fx.errors import FlermError
from flerm_fx.model.copying import copied
from flerm_fx.model.substitution import called_with
from flerm_fx.ops.scale import is_scale, scale


class GraphEmitter(Emitter):
    r"""The emitter holds a copy with :math:`w_l = \theta_l / s_l`, and runs it as its graph with
    scale nodes.
    """

    takes_over = True

    def __init__(self, skeleton: nn.Module, scales: Mapping[str, float]) -> None:
        super().__init__(skeleton, scales)
        self._scales = dict(scales)
        with torch.no_grad():
            for name, parameter in skeleton.named_parameters():
                if name in self._scales:
                    parameter.div_(self._scales[name])

    @classmethod
    def skeleton_of(cls, model: nn.Module, donate: bool) -> nn.Module:
        """Return the copy that was measured on, or one with the model's own parameters."""
        return donated(model) if donate else copied(model, on_meta=True)

    @property
    def scales(self) -> dict[str, float]:
        """The scale of each trainable parameter."""
        return self._scales

    def set_scales(self, scales: Mapping[str, float]) -> None:
        """Change the scales alone, not what is stored behind them."""
        self._scales = dict(scales)

    def run(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], emitted: Callable[[], Emitted]
    ) -> Any:
        """Return what the graph returns, or the skeleton with scaled weights where there is no
        graph.
        """
        current = emitted()
        if current.graph_module is not None:
            return current.to_run()(*args, **kwargs)
        parameters = dict(self.skeleton.named_parameters())
        scaled = {name: scale(parameters[name], s) for name, s in self._scales.items()}
        return called_with(self.skeleton, scaled, args, dict(kwargs))

    def plain(self) -> nn.Module:
        """Return a copy of the skeleton with the scales multiplied into its weights."""
        model = copied(self.skeleton)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self._scales:
                    parameter.mul_(self._scales[name])
        return model

    def to_effective(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Tensor]:
        """Put effective weights in a state dict, and return what gives the stored ones back, by
        parameter.
        """
        units: dict[str, Tensor] = {}
        names: dict[int, str] = {}
        for alias, parameter in self.skeleton.named_parameters(remove_duplicate=False):
            name = names.setdefault(id(parameter), alias)
            if name in self._scales and prefix + alias in state_dict:
                stored = state_dict[prefix + alias]
                # Memory of its own for each of tied names, which safetensors asks for.
                state_dict[prefix + alias] = effective(stored, self._scales[name])
                if name == alias:
                    units[name] = packed_units(stored, self._scales[name])
        return units


def donated(model: nn.Module) -> nn.Module:
    """Return the model's structure with its own parameters and buffers, which the model loses."""
    held: list[Tensor] = [*model.parameters(), *model.buffers()]
    skeleton: nn.Module = copy.deepcopy(model, {id(tensor): tensor for tensor in held})

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise FlermError(
            "this model gave its parameters to flerm_fx.compile(..., donate=True); call the "
            "compiled model instead"
        )

    for module in model.modules():
        own_parameters(module).clear()
        own_buffers(module).clear()
    model.forward = forward
    return skeleton


def annotate(
    graph_module: fx.GraphModule, rows: Iterable[Assignment], multipliers: Mapping[str, float]
) -> None:
    """Write each parameter's assignment to its scale node."""
    by_name = {row.parameter: row for row in rows}
    for node in graph_module.graph.nodes:
        if is_scale(node):
            row = by_name[node.meta["parameter"]]
            node.meta.update(
                multiplier=multipliers[row.parameter],
                base=row.base,
                base_fslr=row.base_fslr,
                fslr=row.target,
                after=row.after,
            )
