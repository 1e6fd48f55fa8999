"""Does the model couple the examples of a batch?"""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from flerm_fx.capture import (
    Capture,
    cloned_buffers,
    preserved_rng,
    rng_state,
    set_rng_state,
)
from flerm_fx.frontier import jvp
from flerm_fx.inputs import Inputs
from flerm_fx.operation import is_opaque, operation
from flerm_fx.probe.cotangent import Cotangents
from flerm_fx.probe.sampled import (
    as_batch_of_one,
    batch_axes,
    examples_of,
    output_size,
    projections,
)

TOLERANCE = 1e-3
"""Relative difference above which outputs alone and in the batch are not the same function: far
above the rounding of float32 kernels at other batch sizes, far below what BatchNorm mixes in."""


def coupling(
    captured: Capture,
    parameters: Mapping[str, Tensor],
    inputs: Inputs,
) -> str:
    """Why examples cannot be treated one by one; empty if they can.

    Runs the model on the batch and on each example by itself (all at once through ``vmap``, with
    the same random draws) and compares the outputs. What fails to batch counts as coupled.
    """
    parameters = {name: value.detach() for name, value in parameters.items()}
    if captured.probe_module is not None:
        for node in captured.probe_module.graph.nodes:
            if is_opaque(node.target):
                return f"{operation(node)} cannot be batched"
    with (
        torch.no_grad(),
        preserved_rng(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # "no batching rule": slower, not wrong
        state = rng_state()
        together = captured.apply(parameters, inputs)
        set_rng_state(state)
        try:
            alone = _one_by_one(captured, parameters, inputs)
        except Exception as error:  # an operation may refuse vmap, or a batch of 1, in any way
            return f"examples cannot be run one by one: {_first_line(error)}"
    if alone.shape != together.shape:
        return "the output's shape depends on the batch"
    scale = together.abs().max().clamp_min(torch.finfo(together.dtype).tiny)
    difference = float((alone - together).abs().max() / scale)
    if not difference <= _tolerance(together):
        return f"examples influence each other (outputs differ by {difference:.1e} when run alone)"
    return ""


def disagreement(
    captured: Capture,
    instrumented: fx.GraphModule,
    parameters: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    inputs: Inputs,
) -> str:
    r"""Why per-example projections cannot be trusted; empty if they agree with the batch's tangent.

    The projections of all parameters must add up to that of one tangent of the whole function,

    .. math:: \sum_l s_{n,l} = q_n \cdot \partial_t f_n(\theta + t u) |_{t=0},

    computed without ``vmap`` and without probes. It guards against batching rules with wrong
    derivatives, of which torch has had some.
    """
    examples, coordinates = output_size(captured, parameters, inputs)
    (rows,) = Cotangents(examples, coordinates, 1).sets(torch.Generator().manual_seed(0))
    try:
        found = projections(captured, instrumented, parameters, updates, inputs, rows)[:, 0]
    except RuntimeError as error:
        return f"examples cannot be differentiated one by one: {_first_line(error)}"
    module = captured.probe_module
    assert module is not None
    fixed = {**cloned_buffers(module), **{n: p.detach() for n, p in parameters.items()}}
    flat = captured.flat(inputs)

    def moved(*values: Tensor) -> Tensor:
        state = {**fixed, **dict(zip(updates, values, strict=True))}
        return torch.func.functional_call(module, state, tuple(flat))  # type: ignore[no-any-return]

    positions = dict(enumerate(updates.values()))
    with torch.no_grad(), preserved_rng():
        try:
            tangent = jvp(moved, tuple(fixed[name] for name in updates), {}, positions)
        except RuntimeError:  # an operation without a forward derivative: nothing to compare with
            return ""
    expected = (rows[:, 0].to(tangent) * tangent.reshape(examples, coordinates)).sum(-1).to(found)
    size = found.abs().sum(-1).max().clamp_min(torch.finfo(found.dtype).tiny)
    difference = float((found.sum(-1) - expected).abs().max() / size)
    if not difference <= _tolerance(tangent):
        return f"derivatives of single examples differ from the batch's (by {difference:.1e})"
    return ""


def _tolerance(computed: Tensor) -> float:
    """:data:`TOLERANCE`, or what the rounding of a coarser type takes."""
    return max(TOLERANCE, 16 * torch.finfo(computed.dtype).eps)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _one_by_one(captured: Capture, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    module = captured.probe_module
    if module is None:
        return torch.cat([captured.apply(parameters, one) for one in examples_of(inputs)])
    return _vmapped(captured, module, parameters, inputs)


def _vmapped(
    captured: Capture,
    module: fx.GraphModule,
    parameters: Mapping[str, Tensor],
    inputs: Inputs,
) -> Tensor:
    state = {**cloned_buffers(module), **parameters}
    flat = captured.flat(inputs)

    def one(*arguments: object) -> Tensor:
        output = torch.func.functional_call(module, state, as_batch_of_one(arguments))
        return output.squeeze(0)  # type: ignore[no-any-return]

    return torch.func.vmap(one, in_dims=batch_axes(flat), randomness="different")(*flat)
