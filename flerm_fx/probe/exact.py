"""The exact FSLR: one tangent per parameter, carried forward through the graph."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from flerm_fx.capture import (
    Capture,
    RngState,
    cloned_buffers,
    preserved_rng,
    rng_state,
    set_rng_state,
)
from flerm_fx.errors import EstimateError
from flerm_fx.frontier import jvp, tangent_by_autograd
from flerm_fx.inputs import Inputs, is_differentiable
from flerm_fx.operation import is_opaque, is_random

MEMORY = 2**30
"""Default bound, in bytes, on the tangents alive at one node."""


def exact(
    captured: Capture,
    parameters: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    *,
    memory: int = MEMORY,
) -> dict[str, float]:
    r"""FSLRs without sampling error, in about L/2 forward passes of arithmetic.

    .. math:: \mathrm{FSLR}_l^2 = \tfrac{1}{NK} \lVert J_l u_l \rVert^2

    A tangent starts where its parameter enters and exists only downstream of there; all that are
    alive at a node travel as one stacked tensor, through ``vmap`` of the node's ``jvp``. Random
    operations (dropout) repeat the draw of the one forward pass. Without a graph, a loop over
    parameters differentiates the whole function, by backward passes that are differentiated once
    more, or by forward mode where an operation does not allow that.

    Args:
        captured: the model.
        parameters: values of the trainable parameters at which to differentiate.
        updates: unit update of each parameter to measure.
        inputs: probe inputs, batch first.
        memory: bound in bytes on the tangents alive at one node; more parameters take more passes.

    Raises:
        EstimateError: there is no graph, and a custom autograd function has no second derivative.
    """
    parameters = {name: value.detach() for name, value in parameters.items()}
    with torch.no_grad(), preserved_rng():
        state = rng_state()
        if captured.probe_module is None:
            return {
                name: _rms(_whole_tangent(captured, parameters, name, update, inputs, state))
                for name, update in updates.items()
            }
        largest = _Forward(captured.probe_module, parameters, {}).run(captured.flat(inputs))[1]
        chunk = max(1, memory // max(largest, 1))
        names = [name for name in captured.parameters if name in updates]
        found: dict[str, float] = {}
        for start in range(0, len(names), chunk):
            set_rng_state(state)
            tangents = {name: updates[name] for name in names[start : start + chunk]}
            forward = _Forward(captured.probe_module, parameters, tangents)
            alive = forward.run(captured.flat(inputs))[0]
            found.update({name: _rms(tangent) for name, tangent in alive.items()})
        return {name: found.get(name, 0.0) for name in updates}


def _rms(tangent: Tensor) -> float:
    precise = tangent if tangent.dtype == torch.float64 else tangent.float()
    return float(precise.square().mean().sqrt())


def _whole_tangent(
    captured: Capture,
    parameters: Mapping[str, Tensor],
    name: str,
    update: Tensor,
    inputs: Inputs,
    state: RngState,
) -> Tensor:
    set_rng_state(state)

    def moved(value: Tensor) -> Tensor:
        return captured.apply({**parameters, name: value}, inputs)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have neither other derivative
        try:
            # Forward mode crashes torch in a model that casts its modules as it runs, as Switch
            # Transformers do.
            return tangent_by_autograd(moved, parameters[name], update)
        except RuntimeError as error:
            if captured.own_backward:
                raise EstimateError(
                    f"the exact FSLR of parameter {name!r} takes a second derivative, which "
                    f"something in the model does not have: {error}; use method='sampled'"
                ) from error
        set_rng_state(state)
        return jvp(moved, (parameters[name],), {}, {0: update})  # type: ignore[no-any-return]


Stack = tuple[tuple[str, ...], Tensor]
"""Tangents of one tensor: parameter names, and the tangents stacked along a new first dimension."""


class _Forward:
    """One forward pass over the graph that carries values and stacked tangents."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
    ) -> None:
        self.module = graph_module
        self.state = {
            **dict(graph_module.named_parameters(remove_duplicate=False)),
            **cloned_buffers(graph_module),
            **parameters,
        }
        self.updates = updates

    def run(self, flat_inputs: list[Any]) -> tuple[dict[str, Tensor], int]:
        """Tangents of the output by parameter, and the largest value's size in bytes."""
        values: dict[fx.Node, Any] = {}
        tangents: dict[fx.Node, list[Stack | None]] = {}
        arguments = iter(flat_inputs)
        waiting = {node: len(node.users) for node in self.module.graph.nodes}
        largest = 0
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(arguments)
            elif node.op == "get_attr":
                values[node] = self._attribute(str(node.target))
                name = node.meta.get("parameter")
                if name in self.updates:
                    value = values[node]
                    tangents[node] = [((name,), self.updates[name].to(value).unsqueeze(0))]
            elif node.op == "output":
                (result,) = node.args
                assert isinstance(result, fx.Node)
                stack = next(iter(tangents.get(result, ())), None)
                return (
                    {} if stack is None else dict(zip(stack[0], stack[1], strict=True)),
                    largest,
                )
            else:
                values[node], tangents[node] = self._call(node, values, tangents)
                largest = max(
                    [largest]
                    + [
                        leaf.numel() * leaf.element_size()
                        for leaf in pytree.tree_leaves(values[node])
                        if is_differentiable(leaf)
                    ]
                )
            for source in node.all_input_nodes:
                waiting[source] -= 1
                if not waiting[source]:
                    values.pop(source, None)
                    tangents.pop(source, None)
        raise AssertionError("a graph ends in its output node")

    def _attribute(self, target: str) -> Any:
        if target in self.state:
            return self.state[target]
        value: Any = self.module
        for part in target.split("."):
            value = getattr(value, part)
        return value

    def _call(
        self,
        node: fx.Node,
        values: Mapping[fx.Node, Any],
        tangents: Mapping[fx.Node, list[Stack | None]],
    ) -> tuple[Any, list[Stack | None]]:
        target = node.target if node.op == "call_function" else self._attribute(str(node.target))
        assert callable(target)
        leaves = 0
        stacks: dict[int, Stack] = {}
        nodes, spec = pytree.tree_flatten((node.args, node.kwargs))
        for argument in nodes:
            if not isinstance(argument, fx.Node):
                leaves += 1
                continue
            for offset, stack in enumerate(tangents.get(argument, ())):
                if stack is not None:
                    stacks[leaves + offset] = stack
            leaves += len(pytree.tree_leaves(values[argument]))
        filled = pytree.tree_unflatten(
            [values[a] if isinstance(a, fx.Node) else a for a in nodes], spec
        )
        state = rng_state() if is_random(target) else None
        value = target(*filled[0], **filled[1])
        if not stacks:
            return value, []
        parts: list[tuple[tuple[str, ...], list[Tensor | None]]] = []
        for names, positions in _groups(stacks):
            directions = {p: _take(stacks[p], names) for p in positions}
            parts.append((names, _stacked_jvp(target, filled, directions, state)))
        return value, _joined(parts)


def _groups(
    stacks: Mapping[int, Stack],
) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Parameter names that arrive by the same arguments, with those arguments' positions."""
    arrives: dict[str, list[int]] = {}
    for position, (names, _) in stacks.items():
        for name in names:
            arrives.setdefault(name, []).append(position)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, positions in arrives.items():
        groups.setdefault(tuple(positions), []).append(name)
    return [(tuple(names), positions) for positions, names in groups.items()]


def _take(stack: Stack, names: tuple[str, ...]) -> Tensor:
    own, tangents = stack
    if own == names:
        return tangents
    row = {name: i for i, name in enumerate(own)}
    return tangents[[row[name] for name in names]]


def _stacked_jvp(
    target: Callable[..., Any],
    filled: Any,
    directions: Mapping[int, Tensor],
    state: RngState | None,
) -> list[Tensor | None]:
    """Tangents of each output leaf, stacked; None where the output is not floating.

    Each runs the operation again, draws from ``state`` what it drew, and leaves the same state.
    """
    args, kwargs = filled
    positions = tuple(directions)

    def one(*tangents: Tensor) -> list[Tensor]:
        if state is not None:
            set_rng_state(state)
        result = jvp(target, args, kwargs, dict(zip(positions, tangents, strict=True)))
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]

    stacked = tuple(directions.values())
    if stacked[0].shape[0] == 1 or is_opaque(target):
        rows = [one(*row) for row in zip(*stacked, strict=True)]
        results = [torch.stack(leaf) for leaf in zip(*rows, strict=True)]
    else:
        try:
            results = torch.func.vmap(one, randomness="same")(*stacked)
        except RuntimeError:  # an operation that vmap refuses
            rows = [one(*row) for row in zip(*stacked, strict=True)]
            results = [torch.stack(leaf) for leaf in zip(*rows, strict=True)]
    return [leaf if is_differentiable(leaf) else None for leaf in results]


def _joined(
    parts: list[tuple[tuple[str, ...], list[Tensor | None]]],
) -> list[Stack | None]:
    joined: list[Stack | None] = []
    for leaf in range(len(parts[0][1])):
        kept = [(names, stacks[leaf]) for names, stacks in parts if stacks[leaf] is not None]
        if not kept:
            joined.append(None)
            continue
        names = tuple(name for part, _ in kept for name in part)
        tensors = [tensor for _, tensor in kept if tensor is not None]
        joined.append((names, tensors[0] if len(tensors) == 1 else torch.cat(tensors)))
    return joined
