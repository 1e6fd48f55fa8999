"""This module measures whether states and steps of update rules are alike at another scale, rate or
rule.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from flerm_fx.errors import OptimizerError
from flerm_fx.model.randomness import preserved_rng, seed_all
from flerm_fx.recipe.reflection import BESIDE_THE_RULE
from flerm_fx.recipe.trial import (
    LARGE,
    LR,
    STEPS,
    TOLERANCE,
    as_doubles,
    last_update,
    matrix,
    stepped,
)
from flerm_fx.recipe.update_rule import UpdateRule

_ALIKE = 0.05  # a state in eight bits makes other steps than one in 32, by a few hundredths


def state_powers(rule: UpdateRule) -> dict[str, int]:
    r"""Measure by which power of s each entry of a rule's state answers to a scale node.

    Behind a node of s the rule sees the gradient s g and the weight :math:`\theta / s`; an entry of
    power k is then :math:`s^k` times what it would be. So a running mean of gradients has power 1,
    one of their squares 2, a count 0.

    Raises:
        OptimizerError: an entry that answers in another way, so that a scale cannot be changed
            while training.

    >>> state_powers(UpdateRule.from_name("Adam"))
    {'step': 0, 'exp_avg': 1, 'exp_avg_sq': 2}
    """
    gradients = LARGE * torch.stack([matrix(1 + step) for step in range(STEPS)])
    weight = matrix(0).detach()
    with preserved_rng():
        one = state_after(rule, gradients, weight)
        doubled = state_after(rule, 2 * gradients, weight / 2)
    powers = {}
    for name, value in one.items():
        for power in (0, 1, 2, -1, -2):
            wanted = value * 2.0**power
            if (doubled[name] - wanted).norm() <= TOLERANCE * wanted.norm():
                powers[name] = power
                break
        else:
            raise OptimizerError(
                f"the state {name!r} of {rule.source} is no power of the scale of its weights, so "
                "scale nodes cannot be changed while it trains: match the plain model, whose "
                "learning rates change instead"
            )
    return powers


def check_state_is_free(rule: UpdateRule) -> None:
    """Check that a rule's state is the same under another learning rate.

    Where it does not, a multiplier that changes while a model trains leaves behind a state of the
    old one: schedule-free's averages hold weights, and its groups the largest rate so far.

    Raises:
        OptimizerError: it does not; the message names the state.

    >>> check_state_is_free(UpdateRule.from_name("AdamW"))
    """
    gradients, weight = torch.stack([matrix(1 + step) for step in range(3)]), matrix(0).detach()
    seen = []
    with preserved_rng():
        for lr in (LR, 2 * LR):
            seed_all(0)
            parameter, optimizer = stepped(rule, gradients, weight, lr=lr)
            seen.append(as_doubles(optimizer.state[parameter]) | counts(optimizer))
    one, other = seen
    bound = [k for k in one if (one[k] - other[k]).norm() > TOLERANCE * one[k].norm()]
    if bound:
        raise OptimizerError(
            f"the state {', '.join(map(repr, bound))} of {rule.source} holds weights or learning "
            "rates, so multipliers cannot change while it trains: compile the model instead, and "
            "train it with compiled.param_groups(lr), whose rates stay"
        )


def step_alike(rule: UpdateRule, other: UpdateRule) -> bool:
    """Measure whether two rules take the same steps on the same gradients, decay apart.

    >>> adam, adamw, sgd = (UpdateRule.from_name(name) for name in ("Adam", "AdamW", "SGD"))
    >>> step_alike(adam, adamw), step_alike(adam, sgd)
    (True, False)
    """
    gradients, weight = torch.stack([matrix(1 + step) for step in range(3)]), matrix(0).detach()
    with preserved_rng():
        one, two = (last_update(each, gradients, weight) for each in (rule, other))
    return bool((one - two).norm() <= _ALIKE * one.norm())


def is_linear(rule: UpdateRule, lr: float, factor: float) -> bool:
    """Measure whether a first step at ``factor * lr`` is ``factor`` times one at ``lr``.

    It is not where a rule bounds its steps, as Rprop does.

    >>> is_linear(UpdateRule.from_name("Adam"), 1e-3, 2.0**24)
    True
    >>> is_linear(UpdateRule.from_name("Rprop"), 1e-3, 2.0**24)
    False
    """
    gradient, weight = matrix(1).unsqueeze(0), torch.zeros(6, 4, dtype=torch.float64)
    with preserved_rng():
        one = last_update(rule, gradient, weight, lr=lr)
        many = last_update(rule, gradient, weight, lr=factor * lr)
    return bool((many - factor * one).norm() <= TOLERANCE * many.norm())


def state_after(rule: UpdateRule, gradients: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Return the numbers in an optimizer's state after steps that all but leave a matrix where it
    is.
    """
    parameter, optimizer = stepped(rule, gradients, weight, lr=2.0**-40)
    return as_doubles(optimizer.state[parameter])


def counts(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the numbers that an optimizer writes into its groups."""
    stated = {k: v for k, v in optimizer.param_groups[0].items() if k not in BESIDE_THE_RULE}
    return as_doubles(stated)
