"""This module measures how large a model's outputs are, masks aside."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flerm_fx.model.inputs import is_differentiable

NUDGE = 2.0**-10
"""Part by which weights are made larger, at least; four of their last bits, if that is more. So far
above the last bit, no entry that they make stays the same."""

BEYOND = 16.0
"""How many times larger than anything that the weights make an entry is no longer theirs, as with
-10000 added to logits. What they do make moves by some two nudges of itself."""

Weights = Mapping[str, Tensor]


def output_rms(run: Callable[[Weights], Tensor], weights: Weights) -> float:
    """Root mean square of the entries of an output that the weights make.

    Outputs may be masked, as logits are by ``-inf``, the least number of their type, or a number
    like -10000, put in their place or added. Which entries these are shows when the weights are
    made a little larger: an entry counts if it is finite, changes, and is not far larger than what
    the weights make of any. So no size of a mask enters; an output of masks alone has a size of 0.

    Args:
        run: from weights to the output; what it draws at random is to be the same each time.
        weights: of the model, frozen ones too: behind a weight of 0, the others do not move it yet.

    >>> weights = {"w": torch.tensor([3.0, 4.0, 5.0])}
    >>> hidden = torch.tensor([False, False, True])
    >>> round(output_rms(lambda w: w["w"].masked_fill(hidden, -1e9), weights), 4)
    3.5355
    """
    nudge = max(NUDGE, *(4 * torch.finfo(w.dtype).eps for w in weights.values() if _is_nudged(w)))
    with torch.no_grad():
        output, moved = run(weights), run(_larger(weights, nudge))
    change = (moved - output).abs()
    made = output.isfinite() & (moved != output)
    most = change.where(made & change.isfinite(), 0).max()
    return _root_mean_square(output[made & (output.abs() <= BEYOND / nudge * most)])


def _larger(weights: Weights, nudge: float) -> dict[str, Tensor]:
    """Return the weights, larger by a part of themselves, or of 1 where they are 0.

    It is three times the part for a random half of them. All by one part would change nothing of an
    output that is normalised; as many up as down, little of a sum of numbers of one sign.
    """
    larger = {**weights}
    for index, (name, weight) in enumerate(weights.items()):
        if _is_nudged(weight):
            generator = torch.Generator(weight.device).manual_seed(index)
            half = torch.empty(weight.shape, device=weight.device)
            part = nudge * (1 + 2 * half.bernoulli_(0.5, generator=generator))
            larger[name] = weight + part.to(weight.dtype) * weight.where(weight != 0, 1)
    return larger


def _is_nudged(weight: Tensor) -> bool:
    """Tell whether weights can be multiplied, as integers and the eight bits of a quantised one
    cannot.
    """
    return is_differentiable(weight) and weight.element_size() > 1


def _root_mean_square(values: Tensor) -> float:
    """Compute a root mean square without squares that overflow."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not largest:
        return 0.0
    precise = torch.promote_types(values.dtype, torch.float32)
    norm = torch.linalg.vector_norm(values.to(precise) / largest)
    return largest * float(norm) / math.sqrt(values.numel())
