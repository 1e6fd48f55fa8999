"""A captured model is a graph, or where it has none a function."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from flerm_fx.boundary.compat import (
    FORWARD_HOOKS,
    pytree,
    tree_flatten_spec,
)
from flerm_fx.model.hooks import Hook, only
from flerm_fx.model.inputs import (
    Inputs,
    OutputFn,
    call_arguments,
    output_of,
)
from flerm_fx.model.standing import standing_in
from flerm_fx.ops.operation import is_opaque


@dataclass(frozen=True)
class Capture:
    """A ``Capture`` is a model as a graph, ready for passes, or as a function where it does not
    export.

    Attributes:
        model: the model itself; the graphs share its parameters and buffers.
        parameters: its trainable parameters by canonical name, in the order in which the forward
            pass reaches them (unused ones last). Tied parameters have one entry, under the first
            of their names.
        aliases: every name of a trainable parameter, with its canonical name.
        graph_module: the graph, called like the model; None without a graph.
        probe_module: the same graph without mutation, from the flat inputs to the one output
            tensor whose change is measured; None without a graph.
        in_spec: how arguments flatten to the graph's placeholders; None without a graph.
        guards: takes the flat inputs and raises AssertionError where the graph is not the model,
            such as at a batch size on the other side of a branch; None without a graph.
        output_fn: picks the output tensor.
        training: the mode at capture, which the graph has baked in.
        reason: why there is no graph; empty if there is one.
        modules: trainable parameters as a run enters their modules, with the modules' kinds.
        own_backward: whether something in the model has a backward pass that is no formula of
            torch: a ``torch.autograd.Function``, or an operation registered with ``torch.library``.
        hooks: the user's hooks that change outputs or gradients; the others only look.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    aliases: dict[str, str]
    graph_module: fx.GraphModule | None
    probe_module: fx.GraphModule | None
    in_spec: pytree.TreeSpec | None
    guards: Callable[..., None] | None
    output_fn: OutputFn | None
    training: bool
    reason: str = ""
    modules: dict[str, str] = field(default_factory=dict)
    own_backward: bool = False
    hooks: frozenset[Hook] = frozenset()

    @functools.cached_property
    def is_of_torch(self) -> bool:
        """Whether the graph has torch's own operations alone. One that is registered from outside
        of torch may hold what the model does.
        """
        nodes = () if self.probe_module is None else self.probe_module.graph.nodes
        opaque = any(node.op == "call_module" or is_opaque(node.target) for node in nodes)
        return self.probe_module is not None and not opaque

    def apply(self, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """Return the output tensor f(inputs) with some parameters replaced; no buffer is
        changed.
        """
        with self.holding(parameters):
            return self.run(inputs)

    @contextmanager
    def holding(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the model have other parameters while a block lasts, and buffers of its own.

        A backward pass within the block runs with them, too, where it runs a part of the model
        again, as checkpoints of activations do.
        """
        named = dict(self.model.named_parameters(remove_duplicate=False))
        state = {**dict(self.model.named_buffers(remove_duplicate=False)), **named}
        given = {**cloned_buffers(self.model), **parameters}
        instead = {id(state[name]): tensor for name, tensor in given.items()}
        # Those of the backward pass change gradients, which are not what is measured.
        kept = [hook for hook in self.hooks if hook.kind in FORWARD_HOOKS]
        with only(self.model, kept), standing_in(self.model, instead):
            yield

    def run(self, inputs: Inputs) -> Tensor:
        """Return the output tensor of the model as it is."""
        return output_of(self.model, inputs, self.output_fn)

    def returned(self, parameters: Mapping[str, Tensor], inputs: Inputs) -> Any:
        """Return all that the model returns there, such as a loss beside the output tensor."""
        args, kwargs = call_arguments(inputs)
        with self.holding(parameters):
            return self.model(*args, **kwargs)

    def bound(self, model: nn.Module) -> "Capture":
        """Return the same graphs on another copy of the model, with its parameters and buffers.

        >>> import torch
        >>> from flerm_fx.capture.tracing import capture
        >>> captured = capture(nn.Linear(3, 2), torch.zeros(4, 3))
        >>> other = nn.Linear(3, 2)
        >>> captured.bound(other).parameters["weight"] is other.weight
        True
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        state = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
        return replace(
            self,
            model=model,
            parameters={name: parameters[name] for name in self.parameters},
            graph_module=_with_state(self.graph_module, state),
            probe_module=_with_state(self.probe_module, state),
        )

    def holds_for(self, inputs: Inputs) -> bool:
        """Tell whether the graph is the model for such inputs: for as many examples, above all."""
        if self.guards is None:
            return True
        try:
            self.guards(*self.flat(inputs))
        except AssertionError:
            return False
        return True

    def flat(self, inputs: Inputs) -> list[Any]:
        """Return the arguments of ``probe_module`` for these inputs."""
        assert self.in_spec is not None
        return tree_flatten_spec(call_arguments(inputs), self.in_spec)


def _with_state(
    graph_module: fx.GraphModule | None, state: Mapping[str, Any]
) -> fx.GraphModule | None:
    """Return a copy of a graph module with other parameters and buffers, and its own constants."""
    if graph_module is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, for a graph
        graph = copy.deepcopy(graph_module.graph)
    targets = [str(n.target) for n in graph.nodes if n.op in ("get_attr", "call_module")]
    root = {t: state[t] if t in state else attribute(graph_module, t) for t in targets}
    twin = fx.GraphModule(root, graph, class_name=type(graph_module).__name__)
    twin.train(graph_module.training)
    return twin


def attribute(module: nn.Module, target: str) -> Any:
    """Return what a dotted path names in a module."""
    return functools.reduce(getattr, target.split("."), module)


def modes(model: nn.Module) -> tuple[bool, ...]:
    """Return the mode of each module, which a capture has baked in beside the shapes."""
    return tuple(module.training for module in model.modules())


def cloned_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's buffers, for a run that may update them."""
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
