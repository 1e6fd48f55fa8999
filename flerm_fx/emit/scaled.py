"""A model with scale nodes: called like the original, it trains the stored weights w = θ / s."""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from flerm_fx.capture import capture
from flerm_fx.errors import CaptureWarning
from flerm_fx.inputs import is_floating
from flerm_fx.scale import ScaleNodes, scale


class ScaledModel(nn.Module):
    r"""The captured graph of a model, with a scale node :math:`\theta_l = s_l w_l` a parameter.

    Its parameters and buffers have the model's names; a parameter holds
    :math:`w_l = \theta_l / s_l`, so the function is the model's. A graph serves one mode and one
    shape of input (any batch size); a call that differs captures another behind the scenes, all
    sharing parameters and buffers. Where the model does not export, the same scales are applied
    by ``torch.func.functional_call``.

    Args:
        skeleton: a copy of the model that this object may own; its weights are divided by s.
        scales: s_l of each trainable parameter, by canonical name; if empty, calls go to
            ``skeleton`` as it is.

    >>> model = ScaledModel(nn.Linear(2, 1, bias=False).requires_grad_(), {"weight": 4.0})
    >>> print(model.graph_for((torch.zeros(3, 2),), {}).code.strip().splitlines()[3].strip())
    scale = flerm_fx_scale_scale(weight, 4.0);  weight = None
    """

    def __init__(self, skeleton: nn.Module, scales: Mapping[str, float]) -> None:
        super().__init__()
        self.scales = dict(scales)
        with torch.no_grad():
            for name, parameter in skeleton.named_parameters():
                if name in self.scales:
                    parameter.div_(self.scales[name])
        # The skeleton's own dictionaries: names, modes and buffers are one with it.
        self._parameters = skeleton._parameters
        self._buffers = skeleton._buffers
        self._modules = skeleton._modules
        self._non_persistent_buffers_set = skeleton._non_persistent_buffers_set
        self.training = skeleton.training
        self._skeleton = (skeleton,)  # in a tuple, so that it is no submodule
        self._graphs: dict[Any, fx.GraphModule | None] = {}

    @property
    def skeleton(self) -> nn.Module:
        """The module whose parameters and buffers these are; its own forward does not scale."""
        self._skeleton[0].training = self.training
        return self._skeleton[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        if not self.scales:
            return self.skeleton(*args, **kwargs)
        graph_module = self.graph_for(args, kwargs)
        if graph_module is not None:
            return graph_module(*args, **kwargs)
        parameters = dict(self.skeleton.named_parameters())
        scaled = {name: scale(parameters[name], s) for name, s in self.scales.items()}
        return torch.func.functional_call(self.skeleton, scaled, args, kwargs)

    def graph_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.GraphModule | None:
        """The graph with scale nodes for such a call in the present mode; None where eager."""
        signature = self._signature(args, kwargs)
        if signature not in self._graphs:
            self._graphs[signature] = self._with_scales(self._captured(args, dict(kwargs)))
        return self._graphs[signature]

    def adopt(
        self,
        graph_module: fx.GraphModule | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Use a graph captured from the skeleton, for calls like this one."""
        self._graphs[self._signature(args, kwargs)] = self._with_scales(graph_module)

    def annotate(self, graph_module: fx.GraphModule) -> None:
        """Write what is known of each parameter to ``node.meta``; a hook for subclasses."""

    def _signature(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a graph is made for: modes, argument structure, and all but the batch size."""
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        return (
            tuple(module.training for module in self.modules()),
            str(spec),
            tuple(
                (leaf.dtype, leaf.device, leaf.shape[:1] == (1,), leaf.shape[1:])
                if isinstance(leaf, Tensor)
                else repr(leaf)
                for leaf in leaves
            ),
        )

    def _captured(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.GraphModule | None:
        if args and kwargs:  # captured are positional or keyword arguments, not a mixture
            return None
        batches = {
            leaf.shape[:1]
            for leaf in pytree.tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        one_batch = len(batches) == 1 and not batches & {
            torch.Size([]),
            torch.Size([1]),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CaptureWarning)
            return capture(
                self.skeleton, args or kwargs, _any_output, dynamic_batch=one_batch
            ).graph_module

    def _with_scales(self, graph_module: fx.GraphModule | None) -> fx.GraphModule | None:
        if graph_module is not None:
            ScaleNodes(self.scales)(graph_module)
            self.annotate(graph_module)
        return graph_module

    def plain(self) -> nn.Module:
        """A copy of the original model with the effective weights θ = s·w in it."""
        model = copy.deepcopy(self.skeleton)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.scales:
                    parameter.mul_(self.scales[name])
        return model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._graphs.clear()  # they hold buffers, dtypes and devices as they were
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied

    def __getstate__(self) -> dict[str, Any]:
        # A copy captures its own graphs, so that they share its weights.
        return {**self.__dict__, "_graphs": {}}


def _any_output(output: Any) -> Tensor:
    """Some floating tensor of the output: training calls do not say which one is measured."""
    floating = [leaf for leaf in pytree.tree_leaves(output) if is_floating(leaf)]
    return floating[0] if floating else torch.zeros(1)
