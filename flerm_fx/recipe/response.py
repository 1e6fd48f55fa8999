r"""This module measures how an update rule answers to a change of scale.

.. math:: s\,\Delta(s g, \theta / s) = s^{1+p}\,\Delta(g, \theta)

defines the degree p; see :mod:`flerm_fx.recipe.update_rule`.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from flerm_fx.errors import OptimizerError
from flerm_fx.model.randomness import preserved_rng, seed_all
from flerm_fx.recipe.reflection import is_number
from flerm_fx.recipe.trial import DECAYS, LARGE, LR, STEPS, TOLERANCE, Rule, last_update, matrix

Decay = Literal["coupled", "decoupled", "absolute"]

# Settings whose size is no part of an answer: decays are measured at another, eps beside gradients
# of other sizes.
_VALUES = (*DECAYS, "eps")


@dataclass(frozen=True)
class Response:
    """A ``Response`` says how a rule answers to a change of scale: see the module's docstring.

    ``powers[h]`` is the power of s by which setting h of a parameter group must be multiplied so
    that it does to theta what the unchanged setting does to w. ``decays[h]`` says how a decay acts.
    """

    degree: float
    powers: Mapping[str, int]
    decays: Mapping[str, Decay]

    def multiplied(
        self, settings: Mapping[str, Any], group: Mapping[str, Any], multiplier: float
    ) -> dict[str, Any]:
        """Return what a multiplier changes in a group; ``settings`` are for what it does not
        state.
        """
        changed: dict[str, Any] = {"lr": group["lr"] * multiplier}
        p = self.degree
        scale = multiplier ** (1.0 / (1.0 + p)) if has_node_scale(p) else 1.0
        decay_factor = {
            "coupled": scale**-2.0,
            "decoupled": 1.0 / multiplier,
            "absolute": 1.0,
        }
        for name, kind in self.decays.items():
            changed[name] = group.get(name, settings[name]) * decay_factor[kind]
        for name, power in self.powers.items():
            changed[name] = scaled_setting(group.get(name, settings[name]), scale**power)
        return changed


def has_node_scale(p: float) -> bool:
    """Tell whether a scale node can change the learning rates of a rule of degree p."""
    # 1 / (1 + p) beyond 20 would turn a multiplier of 2 into a scale of a million.
    return p > -0.95


class Alike:
    """An ``Alike`` is a rule as the key of a cache.

    Rules that are alike answer alike, whatever their decay and ``eps``.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        plain = {k: v for k, v in rule.settings.items() if not (k in _VALUES and is_number(v))}
        numbers = {k for k, v in rule.settings.items() if k in _VALUES and is_number(v)}
        self._key = (rule.name, rule.source, plain, numbers, rule.beyond, rule.arguments)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Alike)
            and self.rule.factory is other.rule.factory
            and self._key == other._key
        )

    def __hash__(self) -> int:
        return hash((self.rule.name, self.rule.source, len(self.rule.settings)))


@functools.lru_cache(maxsize=256)
def measured(alike: Alike) -> Response:
    """Return the response of a rule, measured once for all that are alike."""
    rule = alike.rule
    try:
        with preserved_rng():
            _check_listens(rule)
            response = _measure(rule)
            _check_answers(rule, response)
            return response
    except OptimizerError:
        raise
    except Exception as error:  # whatever its step may raise
        raise OptimizerError(
            f"{rule.source} cannot step on a random 6x4 matrix, on which its answer to a change of "
            f"scale is measured: {type(error).__name__}: {error}; use an optimizer whose step "
            "needs nothing but parameter groups and their gradients"
        ) from error


def _check_listens(rule: Rule) -> None:
    """Check that a rule steps at the present rate of its group, whichever it was built at."""
    weight = matrix(0).detach()
    moved = []
    for built_at in (LR, 2 * LR):
        seed_all(0)  # of a rule that draws
        parameter = torch.nn.Parameter(weight.clone())
        optimizer = rule.build([{"params": [parameter]}], built_at, weight_decay=0.0)
        for group in optimizer.param_groups:
            group["lr"] = 2 * LR
        for step in range(3):  # the first may only fill the state
            parameter.grad = matrix(1 + step).clone()
            optimizer.step()
        moved.append(parameter.detach() - weight)
    changed, wanted = moved
    if (changed - wanted).norm() > TOLERANCE * wanted.norm():
        _refuse_rate(rule)


def _check_answers(rule: Rule, response: Response) -> None:
    """Check that what a multiplier changes in a group changes its steps."""
    gradients, weight = torch.stack([matrix(1), matrix(2)]), matrix(0).detach()
    plain = last_update(rule, gradients, weight)
    changed = response.multiplied(rule.settings, {"lr": LR}, 4.0)
    changed = {key: value for key, value in changed.items() if key not in response.decays}
    if (last_update(rule, gradients, weight, changed) - plain).norm() < plain.norm():
        _refuse_rate(rule)


def _refuse_rate(rule: Rule) -> NoReturn:
    raise OptimizerError(
        f"{rule.source} does not step at the learning rate that its parameter groups have, but at "
        "one of its own, which neither a scheduler nor a multiplier reaches; use an optimizer that "
        "reads group['lr'] at each step"
    )


def _measure(rule: Rule) -> Response:
    gradients = torch.stack([matrix(1 + step) for step in range(STEPS)])
    weight = matrix(0).detach()
    large = LARGE * gradients
    unit = last_update(rule, large, weight).norm().item()
    doubled = last_update(rule, 2 * large, weight / 2).norm().item()
    if not (math.isfinite(unit) and math.isfinite(doubled) and unit > 0 and doubled > 0):
        raise OptimizerError(
            f"{rule.source} moved a random matrix by {unit:g}, and by {doubled:g} with twice "
            f"the gradient, after {STEPS} steps at lr {LR:g}; expected finite steps other "
            "than zero"
        )
    p = math.log2(doubled / unit)
    if abs(p - round(p)) < 1e-2:
        p = float(round(p))
    powers = {}
    # A large eps, so that it matters beside gradients of size 1 and beside their norm; step
    # bounds around the learning rate, so that they bind.
    for name, probe in (("eps", 64.0), ("step_sizes", (64 * LR, 128 * LR))):
        value = rule.settings.get(name)
        if isinstance(value, tuple) if isinstance(probe, tuple) else is_number(value):
            power = _power(rule, gradients, weight, p, name, probe)
            if power:
                powers[name] = power
    decays = {
        name: _decay(rule, gradients, weight, name)
        for name in DECAYS
        if is_number(rule.settings.get(name))
    }
    return Response(p, powers, decays)


def _power(rule: Rule, gradients: Tensor, weight: Tensor, p: float, name: str, probe: Any) -> int:
    """Return the power of s with which a setting makes group and scale node agree, or 0 if none
    does.
    """
    if not has_node_scale(p):
        return 0
    scale = 4.0
    node = scale * last_update(rule, scale * gradients, weight / scale, {name: probe})
    lr = LR * scale ** (1.0 + p)
    for power in (0, -1, -2, 1):
        group = {name: scaled_setting(probe, scale**power)}
        update = last_update(rule, gradients, weight, group, lr=lr)
        if (update - node).norm() <= TOLERANCE * node.norm():
            return power
    return 0


def _decay(rule: Rule, gradients: Tensor, weight: Tensor, name: str) -> Decay:
    """Tell how a decay acts, from what it adds to one step: ``-lr * decay * theta`` if
    decoupled.
    """
    value = 0.125
    added = last_update(rule, gradients, weight, decay={name: value}) - last_update(
        rule, gradients, weight
    )
    # Coupled decay may pass for decoupled where p = 1; both are divided by m = s**2 there.
    kinds: tuple[tuple[Decay, float], ...] = (
        ("decoupled", LR * value),
        ("absolute", value),
    )
    for kind, rate in kinds:
        if (added + rate * weight).norm() <= 1e-3 * rate * weight.norm():
            return kind
    return "coupled"


def scaled_setting(value: Any, factor: float) -> Any:
    """Return a number, or each of a tuple, times a factor."""
    if isinstance(value, tuple):
        return tuple(scaled_setting(item, factor) for item in value)
    return value * factor
