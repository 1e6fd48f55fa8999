"""This module tells whether the model couples the examples of a batch."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from flerm_fx.boundary.compat import pytree
from flerm_fx.capture.captured import Capture, cloned_buffers
from flerm_fx.model.inputs import Inputs, batch_size, difference, is_differentiable
from flerm_fx.model.randomness import preserved_rng, rng_state, set_rng_state
from flerm_fx.ops.operation import is_opaque, operation
from flerm_fx.ops.table import facts
from flerm_fx.probe.cotangent import Cotangents
from flerm_fx.probe.derivative import jvp
from flerm_fx.probe.later import Later
from flerm_fx.probe.sampled import (
    examples_of,
    output_size,
    projections,
)
from flerm_fx.probe.streamed import Streamed, applied, device_of_inputs, streams, to_gather

TOLERANCE = 1e-3
"""Relative difference above which outputs alone and in the batch are not the same function: far
above the rounding of float32 kernels at other batch sizes, far below what BatchNorm mixes in."""


EXAMPLES, LARGE = 4, 2**24
"""So many examples are run together and alone, and a :data:`PAIR` where the whole output has more
numbers than this: a step holds about three tensors like it, and a check of all would hold six. What
couples a batch by its statistics couples few examples more than many."""

PAIR = 2
"""Examples of which derivatives are compared: another one is there to be mixed in, and each further
one costs a tangent, a forward pass and a backward pass."""


def few(captured: Capture, inputs: Inputs, size: tuple[int, int], most: int = EXAMPLES) -> Inputs:
    """Return the first examples of a batch, as many as tell whether any influence each other.

    All of it, where the graph does not hold for so few.

    Args:
        captured: the model.
        inputs: the batch.
        size: its examples, and the output coordinates of each.
        most: how many examples.
    """
    examples, coordinates = size
    count = PAIR if examples * coordinates > LARGE else most
    if batch_size(inputs) <= count:
        return inputs
    first = pytree.tree_map_only(Tensor, lambda t: t[:count], inputs)
    return first if captured.holds_for(first) else inputs


def coupling(
    captured: Capture,
    parameters: Mapping[str, Tensor],
    inputs: Inputs,
) -> str:
    """Return why examples cannot be treated one by one; empty if they can.

    Looks for operations of the graph that leave no axis for the examples. Then runs the model on
    the batch and on each example by itself (all at once through ``vmap``, with the same random
    draws), and compares the outputs; in half precision also the first one's beside the others and
    beside copies of itself. What has no batching rule is run on two copies of each
    example, unless it draws; what fails to run counts as coupled. Inputs that are no batch are one
    example.
    """
    if batch_size(inputs) == 1:
        return "the inputs' first dimensions differ, so all of them are one example"
    parameters = {name: value.detach() for name, value in parameters.items()}
    assert captured.probe_module is not None
    for node in captured.probe_module.graph.nodes:
        if is_opaque(node.target):
            return f"{operation(node)} cannot be batched"
        if _joins_examples(node):
            return f"examples influence each other (they meet in {operation(node)})"
    with (
        torch.no_grad(),
        preserved_rng(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # "no batching rule": slower, not wrong
        state = rng_state()
        together = applied(captured, parameters, inputs)
        draws = not state.same(rng_state())
        set_rng_state(state)
        try:
            alone = _vmapped(captured, captured.probe_module, parameters, inputs)
        except Exception as error:  # an operation may refuse vmap, or a batch of 1, in any way
            refused = f"examples cannot be run one by one: {first_line(error)}"
            if draws:
                return refused
            try:
                alone = torch.cat([_in_pairs(captured, parameters, x) for x in examples_of(inputs)])
            except Exception:
                return refused

        def of_copies() -> Tensor:
            set_rng_state(state)
            return applied(captured, parameters, copies_of_first(inputs))

        return apart(alone, together, of_copies, *parameters.values())


def copies_of_first(inputs: Inputs) -> Inputs:
    """Return a batch as large as one, of copies of its first example.

    >>> copies_of_first(torch.tensor([5, 6]))
    tensor([5, 5])
    """
    return pytree.tree_map_only(Tensor, lambda t: torch.cat([t[:1]] * len(t)), inputs)  # type: ignore[no-any-return]


def apart(
    alone: Tensor, together: Tensor, of_copies: Callable[[], Tensor], *weights: Tensor
) -> str:
    """Return why outputs are not those of examples one by one; empty if they are.

    Args:
        alone: the outputs of single examples.
        together: those of the batch.
        of_copies: gives those of as many copies of the first, called where types are coarse.
            Kernels are the same there, and so is rounding, so that a step in the last place tells
            that the others matter, which beside ``alone`` would be within rounding.
        weights: what they were computed with.
    """
    if alone.shape != together.shape:
        return "the output's shape depends on the batch"
    away = difference(alone, together)
    if not away <= tolerance(together, *weights):
        return f"examples influence each other (outputs differ by {away:.1e} when run alone)"
    step = coarsest(together, *weights)
    if step > TOLERANCE:
        moved = difference(of_copies()[:1], together[:1])
        if not moved <= step:
            return (
                f"examples influence each other (an output differs by {moved:.1e} beside copies of "
                "its example)"
            )
    return ""


def disagreement(
    captured: Capture,
    tapped: fx.GraphModule,
    parameters: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    inputs: Inputs,
) -> str:
    r"""Return why per-example projections cannot be trusted; empty if they agree with the batch's
    tangent.

    The projections of all parameters must add up to that of one tangent of the whole function,

    .. math:: \sum_l s_{n,l} = q_n \cdot \partial_t f_n(\theta + t u) |_{t=0},

    computed without taps. It finds coupling that is hidden at first, as behind a closed gate, and
    an axis that does not hold the examples one after another.
    """
    examples, coordinates = output_size(captured, parameters, inputs)
    (rows,) = Cotangents(examples, coordinates, 1).sets(torch.Generator().manual_seed(0))
    products = projections(captured, tapped, parameters, updates, inputs, rows)[:, 0]
    module = captured.probe_module
    assert module is not None
    fixed = {**cloned_buffers(module), **{n: p.detach() for n, p in parameters.items()}}
    flat = captured.flat(inputs)
    device = device_of_inputs(flat)

    def moved(*values: Tensor) -> Tensor:
        state = {**fixed, **dict(zip(updates, values, strict=True))}
        return torch.func.functional_call(module, state, tuple(flat))  # type: ignore[no-any-return]

    weights = to_gather(parameters, device)
    ahead = to_gather({n: u.to(parameters[n].dtype) for n, u in updates.items()}, device)

    def moved_along(t: Tensor) -> Tensor:
        ways = {
            name: Later(_along, (weights[name], ahead[name], t), blank=weights[name].blank)
            for name in ahead
        }
        return Streamed(module, {**weights, **ways}, device).run(*flat)  # type: ignore[no-any-return]

    with torch.no_grad(), preserved_rng():
        try:
            if streams(module, parameters, updates):
                zero = torch.zeros((), device=device)
                tangent = jvp(moved_along, (zero,), {}, {0: torch.ones_like(zero)})
            else:
                positions = dict(enumerate(updates.values()))
                tangent = jvp(moved, tuple(fixed[name] for name in updates), {}, positions)
        except RuntimeError:  # an operation without a forward derivative: nothing to compare with
            return ""
    expected = (
        (rows[:, 0].to(tangent) * tangent.reshape(examples, coordinates)).sum(-1).to(products)
    )
    size = products.abs().sum(-1).max().clamp_min(torch.finfo(products.dtype).tiny)
    away = float((products.sum(-1) - expected).abs().max() / size)
    if not away <= tolerance(tangent, *fixed.values()):
        return f"derivatives of single examples differ from the batch's (by {away:.1e})"
    return ""


def _along(weight: Tensor, update: Tensor, t: Tensor) -> Tensor:
    return weight + t * update


def tolerance(*values: Tensor) -> float:
    """:data:`TOLERANCE`, or what the rounding of the coarsest of their types takes."""
    return max(TOLERANCE, 16 * coarsest(*values))


def coarsest(*values: Tensor) -> float:
    """Return a step in the last place, relative, of the coarsest of their types.

    >>> coarsest(torch.ones(1), torch.ones(1, dtype=torch.bfloat16))
    0.0078125
    """
    return max(torch.finfo(v.dtype).eps for v in values if is_differentiable(v))


def first_line(error: Exception) -> str:
    r"""Return what an error says, in a line.

    >>> first_line(ValueError("one\nother"))
    'one'
    """
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _joins_examples(node: fx.Node) -> bool:
    """Tell whether an operation makes something without an axis for examples of something with
    one.
    """
    if node.op != "call_function" or facts(node.target).kind == "blank":
        return False
    if _has_axis(node) is not False:
        return False
    return any(_has_axis(source) is True for source in node.all_input_nodes)


def _has_axis(node: fx.Node) -> bool | None:
    """Tell whether a captured value has an axis for examples; None if it is no floating tensor."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not is_differentiable(value):
        return None
    sizes: list[Any] = list(value.shape)
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _in_pairs(captured: Capture, parameters: Mapping[str, Tensor], one: Inputs) -> Tensor:
    """Return the output for an example, beside a copy of itself."""
    pair = pytree.tree_map_only(Tensor, lambda t: torch.cat([t, t]), one)
    return applied(captured, parameters, pair)[:1]


def _vmapped(
    captured: Capture,
    module: fx.GraphModule,
    parameters: Mapping[str, Tensor],
    inputs: Inputs,
) -> Tensor:
    flat = captured.flat(inputs)
    device = device_of_inputs(flat)
    state = {**cloned_buffers(module), **parameters}
    held = to_gather(parameters, device)
    streamed = streams(module, parameters)

    def one(*arguments: object) -> Tensor:
        example = _as_batch_of_one(arguments)
        if streamed:
            return Streamed(module, held, device).run(*example).squeeze(0)  # type: ignore[no-any-return]
        output = torch.func.functional_call(module, state, example)
        return output.squeeze(0)  # type: ignore[no-any-return]

    return torch.func.vmap(one, in_dims=_batch_axes(flat), randomness="different")(*flat)


def _batch_axes(flat: Sequence[Any]) -> tuple[int | None, ...]:
    """Return where ``vmap`` finds the examples in flat inputs: first in tensors, nowhere else."""
    return tuple(0 if isinstance(value, Tensor) else None for value in flat)


def _as_batch_of_one(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return one example's arguments, under ``vmap``, as the batch that a graph takes."""
    return tuple(v.unsqueeze(0) if isinstance(v, Tensor) else v for v in arguments)
