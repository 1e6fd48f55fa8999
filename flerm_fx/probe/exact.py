"""The exact FSLR carries one tangent per parameter forward through the graph."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flerm_fx.capture.captured import Capture
from flerm_fx.errors import EstimateError
from flerm_fx.model.inputs import Inputs
from flerm_fx.model.randomness import RandomState, preserved_rng, rng_state, set_rng_state
from flerm_fx.probe.derivative import jvp, tangent_by_autograd
from flerm_fx.probe.linearize import Linearization

STACK = 2**23
"""Bytes of a stack of tangents, at most: a few rows that stay in the cache in place of many."""


def exact(
    captured: Capture,
    parameters: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    *,
    memory: int = STACK,
) -> dict[str, float]:
    r"""FSLRs without sampling error, in about L/2 forward passes of arithmetic.

    .. math:: \mathrm{FSLR}_l^2 = \tfrac{1}{NK} \lVert J_l u_l \rVert^2

    The graph is linearised once (see :class:`~flerm_fx.probe.linearize.Linearization`), and
    tangents are pushed through it, a few parameters at a time. Each starts where its parameter
    enters, and exists only downstream of there. Random operations (dropout) draw once. Without a
    graph, a loop over parameters differentiates the whole function, by backward passes that are
    differentiated once more, or by forward mode where an operation does not allow that.

    Args:
        captured: the model.
        parameters: values of the trainable parameters at which to differentiate.
        updates: unit update of each parameter to measure.
        inputs: probe inputs, batch first.
        memory: bound in bytes on a stack of tangents; one parameter at a time if that takes more.

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
        linear = Linearization(captured.probe_module, parameters, updates, captured.flat(inputs))
        fslrs = dict.fromkeys(updates, 0.0)
        for names in linear.groups(max(1, memory // max(linear.largest, 1))):
            fslrs.update(zip(names, linear.mean_squares(names).sqrt().tolist(), strict=True))
        return fslrs


def _rms(tangent: Tensor) -> float:
    precise = tangent if tangent.dtype == torch.float64 else tangent.float()
    return float(precise.square().mean().sqrt())


def _whole_tangent(
    captured: Capture,
    parameters: Mapping[str, Tensor],
    name: str,
    update: Tensor,
    inputs: Inputs,
    state: RandomState,
) -> Tensor:
    set_rng_state(state)

    held = contextlib.ExitStack()  # which a backward pass needs, too

    def moved(value: Tensor) -> Tensor:
        held.enter_context(captured.holding({**parameters, name: value}))
        return captured.run(inputs)

    with held, sdpa_kernel(SDPBackend.MATH):  # the fused kernels have neither other derivative
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
        held.close()
        set_rng_state(state)
        return jvp(moved, (parameters[name],), {}, {0: update})  # type: ignore[no-any-return]
