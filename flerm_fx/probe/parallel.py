"""This module tells whether a tensor-parallel model, taken as a plain one, is still the same
function.
"""

import torch
from torch import nn

from flerm_fx.capture.outlined import capture_outline
from flerm_fx.errors import CaptureError, InputError
from flerm_fx.model.copying import copied
from flerm_fx.model.distributed import is_tensor_parallel, resharded, whole
from flerm_fx.model.inputs import Inputs, OutputFn, device_of, difference, output_of
from flerm_fx.model.randomness import preserved_rng
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.streamed import applied

TOLERANCE = 2.0**-4
"""Relative difference of outputs up to which two are one function. Sums over shards round
otherwise, in bfloat16 by some hundredths; other heads are another function altogether."""


def check_parallel(
    model: nn.Module,
    inputs: Inputs,
    output_fn: OutputFn | None = None,
    *,
    on_copy: bool = True,
) -> None:
    """Compare what ranks compute together with what a graph makes of their whole weights, or where
    it does not export, a copy that has them.

    A module that is written for its own part of the weights, such as an attention whose number of
    heads is divided by the ranks, is another function of all of them. The comparison is in
    evaluation mode, in which nothing is drawn.

    Args:
        model: as it trains; all ranks run it. Nothing is compared if it is not tensor parallel.
        inputs: that it takes, the same on all ranks.
        output_fn: picks the output tensor.
        on_copy: whether a model that does not export is measured on such a copy; one that is
            measured as it is needs no comparison.

    Raises:
        InputError: the two differ.
    """
    if not is_tensor_parallel(model):
        return
    with untouched(model), torch.no_grad(), preserved_rng():
        model.eval()
        expected = whole(output_of(model, inputs, output_fn))
        resharded(model)
        try:
            captured = capture_outline(model, inputs, output_fn, device=device_of(model))
        except CaptureError:
            if not on_copy:
                return
            output = output_of(copied(model), inputs, output_fn)
        else:
            parameters = dict(model.named_parameters(remove_duplicate=False))
            output = applied(captured, parameters, inputs)
    apart = difference(output, expected.to(output)) if output.shape == expected.shape else torch.inf
    if not apart <= TOLERANCE:
        raise InputError(
            f"{type(model).__name__} is tensor parallel, and with whole weights in each module it "
            f"is another function (outputs differ by {apart:.1e} of the largest). Either some "
            "module is written for its own part of them, as with a number of heads divided by the "
            "ranks: write it for any part (view(..., -1, head_dim)), or measure the model before "
            "parallelize_module. Or weights that all ranks should have alike differ, as after "
            "training on other data on each"
        )
