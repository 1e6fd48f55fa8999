"""An update rule takes trial steps on a small matrix, from which all that is said of it is
measured.

Powers of two throughout: multiplying by them is exact in binary floating point, so that equal
trainings agree to the last bits even through Muon's bfloat16 iteration.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from flerm_fx.recipe.reflection import Params, is_number

STEPS = 16  # past RAdam's first five steps, which are of another degree
LR = 2.0**-10
# Gradients beside which an eps of 1 is small: eps scales by its own power and is no part of p.
LARGE = 2.0**10
DECAYS = ("weight_decay", "lambd")
TOLERANCE = 1e-6


class Rule(Protocol):
    """A ``Rule`` is what is asked of a :class:`~flerm_fx.recipe.update_rule.UpdateRule` here."""

    @property
    def name(self) -> str | None:
        """The class's name in ``torch.optim``; ``None`` for a rule from elsewhere."""

    @property
    def source(self) -> str:
        """The class's full name."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a parameter group states."""

    @property
    def factory(self) -> Callable[..., Optimizer] | None:
        """What builds a rule that ``torch.optim`` does not have."""

    @property
    def beyond(self) -> frozenset[str]:
        """Names of the settings that only a group can state."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Arguments of the constructor that no group states."""

    def build(self, params: Params, lr: float, *, weight_decay: float | None = None) -> Optimizer:
        """Return a fresh optimizer of this rule."""


def last_update(
    rule: Rule,
    gradients: Tensor,
    weight: Tensor,
    settings: Mapping[str, Any] | None = None,
    *,
    lr: float = LR,
    decay: Mapping[str, float] | None = None,
) -> Tensor:
    """Return the step from ``weight`` on the last of the gradients, after steps on the others.

    Decay acts in the last step only: before it, it would change the state, and with it the step.
    """
    parameter, optimizer = stepped(rule, gradients[:-1], weight, settings, lr)
    for built in optimizer.param_groups:
        built.update(decay or {})
    with torch.no_grad():
        parameter.copy_(weight)
    parameter.grad = gradients[-1].clone()
    optimizer.step()
    return parameter.detach() - weight


def stepped(
    rule: Rule,
    gradients: Tensor,
    weight: Tensor,
    settings: Mapping[str, Any] | None = None,
    lr: float = LR,
) -> tuple[torch.nn.Parameter, Optimizer]:
    """Return a matrix after steps on gradients without decay, and its optimizer."""
    parameter = torch.nn.Parameter(weight.clone())
    off = {name: 0.0 for name in DECAYS if name in rule.settings}
    optimizer = rule.build([{"params": [parameter], **off, **(settings or {})}], lr)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter, optimizer


def as_doubles(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the numbers and tensors among some values, in float64."""
    return {
        name: torch.as_tensor(value, dtype=torch.float64)
        for name, value in values.items()
        if isinstance(value, Tensor) or is_number(value)
    }


def matrix(seed: int) -> Tensor:
    """Return a random 6 x 4 matrix, two-dimensional and not square, so that Muon takes it."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    values = torch.randn(6, 4, generator=generator, dtype=torch.float64, device="cpu")
    return values.requires_grad_(seed == 0)
