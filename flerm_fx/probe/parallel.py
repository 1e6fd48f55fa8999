"""Is a tensor-parallel model, taken as a plain one, still the same function?"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flerm_fx.capture.captured import Capture
from flerm_fx.capture.outlined import capture_outline
from flerm_fx.compat import pytree
from flerm_fx.errors import InputError
from flerm_fx.model.distributed import is_tensor_parallel, resharded, whole
from flerm_fx.model.inputs import Inputs, difference, output_of
from flerm_fx.model.randomness import preserved_rng, rng_state
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.streamed import applied, device_of_inputs

TOLERANCE = 2.0**-4
"""Relative difference of outputs up to which two are one function. Sums over shards round
otherwise, in bfloat16 by some hundredths; other heads are another function altogether."""


def check_parallel(
    model: nn.Module, captured: Capture, parameters: Mapping[str, Tensor], inputs: Inputs
) -> None:
    """Compare what ranks compute together with what a graph makes of their whole weights.

    A module that is written for its own part of the weights, such as an attention whose number of
    heads is divided by the ranks, is another function of all of them. Where the graph draws, as
    dropout does, the comparison is in evaluation mode.

    Args:
        model: as it trains; all ranks run it. Nothing is compared if it is not tensor parallel.
        captured: a plain copy of it.
        parameters: values of all its parameters, which may be sharded.
        inputs: the same on all ranks.

    Raises:
        InputError: the two differ.
    """
    if not is_tensor_parallel(model):
        return
    with untouched(model), torch.no_grad(), preserved_rng():
        state = rng_state()
        output = applied(captured, parameters, inputs)
        if not state.same(rng_state()):
            model.eval()
            device = device_of_inputs(pytree.tree_leaves(inputs))
            captured = capture_outline(model, inputs, captured.output_fn, device=device)
            output = applied(captured, parameters, inputs)
        expected = whole(output_of(model, inputs, captured.output_fn))
        resharded(model)
    apart = difference(output, expected.to(output)) if output.shape == expected.shape else torch.inf
    if not apart <= TOLERANCE:
        raise InputError(
            f"{type(model).__name__} is tensor parallel, and with whole weights in each module it "
            f"is another function (outputs differ by {apart:.1e} of the largest): some module is "
            "written for its own part of them, as with a number of heads divided by the ranks. "
            "Write it for any part (view(..., -1, head_dim)), or measure the model before "
            "parallelize_module"
        )
