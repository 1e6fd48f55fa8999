"""A loop of ``torch.func.jvp`` over parameters: what anybody would write for exact FSLRs."""

import statistics

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cases import Case
from benchmarks.timing import beside
from flerm_fx.model.inputs import call_arguments, select_output

TIMED_OF_LARGE = 5
"""Parameters that are timed where a step takes seconds, evenly over the depth of the model."""

TIMED = 24
"""The same elsewhere."""


def fslr(case: Case, name: str, update: Tensor) -> float:
    """The FSLR of one parameter's update, by one tangent of the whole model."""
    args, kwargs = call_arguments(case.inputs)
    state = case.parameters

    def moved(value: Tensor) -> Tensor:
        # Buffers that the model writes to have to be its own, inside of the transform.
        own = {n: b.detach().clone() for n, b in case.model.named_buffers()}
        everything = {**own, **state, name: value}
        return select_output(torch.func.functional_call(case.model, everything, args, kwargs))

    # The fused kernels of attention have no forward derivative.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        moved_by: tuple[Tensor, Tensor] = torch.func.jvp(moved, (state[name],), (update,))  # type: ignore[assignment]
    tangent = moved_by[1]
    return float(tangent.square().mean().sqrt())


def chosen(names: list[str], large: bool) -> list[str]:
    """The parameters to time: evenly spaced in the order of the model, the ends among them.

    >>> chosen(list("abcdefghi"), large=True)
    ['a', 'c', 'e', 'g', 'i']
    """
    count = min(len(names), TIMED_OF_LARGE if large else TIMED)
    if count < 2:
        return names[:count]
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def steps(case: Case, updates: dict[str, Tensor], device: torch.device) -> tuple[float, int]:
    """Training steps that the loop takes for all parameters, and how many were timed."""
    names = chosen(list(updates), case.large)
    fslr(case, names[0], updates[names[0]])  # torch scripts decompositions at the first tangent

    def ratio(name: str) -> float:
        return beside(case.step, lambda: fslr(case, name, updates[name]), device)[1].ratio

    return statistics.mean(map(ratio, names)) * len(updates), len(names)
