"""Rounding takes something of a step, and makes gradients where there are none."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flerm_fx.errors import OptimizerError
from flerm_fx.model.inputs import Batch, as_real
from flerm_fx.model.randomness import seed_all
from flerm_fx.model.untouched import untouched
from flerm_fx.start.procedure import StartProcedure, batch_loss

NUDGE = 2.0**-16
"""Relative change of the weights, up or down at random, that tells rounding from gradients; at
least the weights' own last bit. Far above the last bit, all rounding falls otherwise."""

ROUNDED = 0.5
"""Relative change of a gradient under such a nudge beyond which it is rounding: noise changes by
1.4 of itself, gradients by about the nudge, in bfloat16 by a few hundredths."""


def check_moves(
    before: Mapping[str, Tensor], updates: Mapping[str, Tensor], rates: Mapping[str, float]
) -> None:
    """Tell whether a step at each of the rates moves anything that is not 0.

    Raises:
        OptimizerError: rounding takes all of it.
    """
    for rate in {rate for rate in rates.values() if rate}:
        of_rate = [name for name in updates if rates[name] == rate]
        if all(lost_in_rounding(before[n], updates[n], rate) for n in of_rate) and any(
            bool(before[n].any()) for n in of_rate
        ):
            raise OptimizerError(
                f"a step at learning rate {rate:g} moves no weight: of {of_rate[0]!r}, for one, it "
                f"is below half of the last place of each in {before[of_rate[0]].dtype}; record at "
                "a higher learning rate"
            )


def lost_in_rounding(weight: Tensor, unit_update: Tensor | float, rate: float) -> bool:
    r"""Tell whether a step leaves each entry of a weight that is not 0 as it is.

    Half of the last place of w is at least :math:`\epsilon |w| / 4` on either side, so that
    :math:`w + \mathrm{lr}\,u = w` in floating point where :math:`\mathrm{lr} |u|` is less. A unit
    update is taken to be 1 at least, as Adam's is: where gradients vanish it is not the rate that
    is to blame.

    >>> weight = torch.tensor([0.5, 0.0])
    >>> lost_in_rounding(weight, 1.0, 1e-9), lost_in_rounding(weight, 1.0, 1e-7)
    (True, False)
    """
    sizes = weight.detach().abs()
    last = torch.finfo(weight.dtype).eps / 4 * sizes
    moved = rate * torch.as_tensor(unit_update).abs().clamp_min(1.0).to(last) >= last
    return not bool((moved & (sizes > 0)).any())


def stretch(parameters: Mapping[str, nn.Parameter], procedure: StartProcedure) -> float:
    """Factor on the learning rate, well inside the range of the weights' type."""
    smallest_range = min(torch.finfo(p.dtype).max for p in parameters.values())
    factor = 2.0**8 if smallest_range < 1e6 else 2.0**24
    return factor if all(procedure.optimizers.linear(factor)) else 1.0


def rounding_alone(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    procedure: StartProcedure,
) -> frozenset[str]:
    """Return parameters whose gradient is rounding alone: a nudge of the weights makes it another.

    The loss may not depend on a parameter that the output depends on: cross entropy does not see a
    number added to all logits. Adam turns what rounding leaves of its gradient into a full step.
    """
    gradients = {name: p.grad for name, p in parameters.items()}
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(procedure.seed)
    names = set()
    with untouched(model):
        seed_all(procedure.seed)
        try:
            with torch.no_grad():
                for p in parameters.values():
                    part = as_real(p)
                    sign = 2 * torch.randint(2, part.shape, generator=generator) - 1
                    nudge = max(torch.finfo(p.dtype).eps, NUDGE)
                    part.mul_(1 + nudge * sign.to(part.device, part.dtype))
            for p in parameters.values():
                p.grad = None
            loss = batch_loss(model, batch, procedure.loss, procedure.output_fn)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, p in parameters.items():
                gradient = gradients[name]
                if gradient is not None and p.grad is not None:
                    before, after = as_real(gradient).float(), as_real(p.grad).float()
                    if (after - before).norm() > ROUNDED * before.norm():
                        names.add(name)
        finally:
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(weights[name])
                    p.grad = gradients[name]
    return frozenset(names)
