"""A backward pass may run a part of the model again, as checkpoints of activations do."""

import torch
from torch import Tensor, nn

from flerm_fx.capture.captured import Capture
from flerm_fx.errors import InputError
from flerm_fx.model.hooks import only
from flerm_fx.model.inputs import Inputs, as_real, call_arguments, select_output
from flerm_fx.model.standing import standing_in
from flerm_fx.model.substitution import called_with
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.live_signs import signs

TOLERANCE = 2.0**-4
"""Relative difference of gradients up to which they are the same in any type; those of other
weights differ by about all of it."""

ROUNDING = 2.0**-7
"""Part of the largest gradient that may be rounding in one that is 0, such as an attention key's
bias, in bfloat16."""


def check_backward(captured: Capture, inputs: Inputs) -> None:
    """Refuse scales on a model that has no graph and runs a part of itself again when it trains.

    Scaled weights are in the model while it runs forwards alone, so that such a part would run
    with weights that are not scaled.

    Raises:
        InputError: gradients of scaled weights are not those of the same weights without scales.
    """
    model = captured.model
    args, kwargs = call_arguments(inputs)
    own = captured.parameters

    def gradients(scale: float, stand: bool) -> list[Tensor]:
        leaves = {n: nn.Parameter(p.detach() / scale, p.requires_grad) for n, p in own.items()}
        there = {id(own[name]): leaf for name, leaf in leaves.items()}
        with (
            standing_in(model, there),
            untouched(model),
            only(model, captured.hooks),
            torch.enable_grad(),
        ):
            scaled = {} if stand else {name: scale * leaf for name, leaf in leaves.items()}
            output = called_with(model, scaled, args, kwargs) if scaled else model(*args, **kwargs)
            selected = select_output(output, captured.output_fn)
            if selected.requires_grad:
                selected.backward(signs(selected, seed=0))  # type: ignore[no-untyped-call]
        return [
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / scale
            for leaf in leaves.values()
        ]

    pairs = list(zip(gradients(2.0, stand=False), gradients(1.0, stand=True), strict=True))
    sizes = [float(as_real(expected).norm()) for _, expected in pairs]
    for name, (found, expected), size in zip(own, pairs, sizes, strict=True):
        apart = float(as_real(found - expected).norm())
        if not apart <= TOLERANCE * size + ROUNDING * max(sizes):
            raise InputError(
                f"{type(model).__name__} has no graph, and runs a part of itself again in the "
                "backward pass, as checkpoints of activations do, where scaled weights are not in "
                f"their places (the gradient of {name!r} would be wrong). Use emit='module' or "
                "emit='param_groups', or checkpoint with use_reentrant=False in a model that "
                "exports"
            )
