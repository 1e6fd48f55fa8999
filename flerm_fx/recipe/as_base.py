"""A run is held against the base's: is its model trained by the same rules, group by group?"""

import math
from collections.abc import Mapping
from typing import Any

from flerm_fx.boundary.warned import warn
from flerm_fx.errors import OptimizerError
from flerm_fx.recipe.likeness import step_alike
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.update_rule import UpdateRule

Given = Mapping[str, tuple[UpdateRule, float]]

SAME = 1e-6
"""Relative difference of two rates that differ by rounding alone."""


def check_as_base(base: Optimizers, given: Given) -> None:
    """Compare the optimizers of a target's run with those of the base's.

    Multipliers come on top of what the base's groups have: a rate of its own that a group of the
    base had, and the target's has not, is lost to the target.

    Args:
        base: optimizers of the base's run, by which it holds the parameters of the target.
        given: the rule and learning rate that the target's run has for each of them.

    Raises:
        OptimizerError: another rule than the base's trains a parameter, or all parameters have one
            rate where the base's groups had several.

    Warns:
        UserWarning: they have one value of another setting where the base's groups had several.
    """
    kinds: dict[str, tuple[int, str, UpdateRule, float]] = {}
    for name, (rule, rate) in given.items():
        index = base.index(name)
        kinds.setdefault(f"{index} {rate!r} {rule!r}", (index, name, rule, rate))
    for index, name, rule, _ in kinds.values():
        was = base.rules[index]
        if not _same(was, rule):
            raise OptimizerError(
                f"parameter {name!r} is trained by {rule.source}, and its counterpart in the base "
                f"was by {was.source}; the FSLRs of one rule say nothing of another's: use the "
                "base's optimizer, or record the base with this one"
            )
    for optimizer in range(base.count):
        stated = [
            (_stated(base.rules[index], base.learning_rates[index]), _stated(rule, rate))
            for index, _, rule, rate in kinds.values()
            if base.belongs[index] == optimizer
        ]
        for key in sorted({key for theirs, _ in stated for key in theirs}):
            were = list(dict.fromkeys(repr(theirs.get(key)) for theirs, _ in stated))
            are = {repr(ours.get(key)): ours.get(key) for _, ours in stated}
            if len(were) > 1 and len(are) == 1 and (key != "lr" or any(are.values())):
                _lost(key, were, next(iter(are)))


def check_rates(base: Optimizers, given: Given) -> None:
    """Check that what the base trained at one rate has one in the target's run, too.

    Multipliers come on top of what the target's groups have: rates that differ where the base had
    one, as they do in groups that have multipliers already, would differ twice. What rests at 0 has
    no rate.

    Args:
        base: as for :func:`check_as_base`.
        given: as for :func:`check_as_base`.

    Raises:
        OptimizerError: there are several.
    """
    first: dict[int, tuple[str, float]] = {}
    for name, (_, rate) in given.items():
        if rate == 0:
            continue
        other, its_rate = first.setdefault(base.index(name), (name, rate))
        if not math.isclose(rate, its_rate, rel_tol=SAME):
            raise OptimizerError(
                f"parameter {name!r} is trained at the rate {rate:g} and {other!r} at "
                f"{its_rate:g}, where the base had one rate for both: multipliers come on top of "
                "rates, so that those of groups such as compiled.param_groups(lr) would act "
                "twice. Train both at one rate (what flerm_fx.compile returns begins with its own "
                "multipliers), or record the base with such rates"
            )


def _lost(key: str, were: list[str], is_now: str) -> None:
    message = (
        f"the base's parameter groups had {key} {', '.join(were)}, and all of this model's have "
        f"{is_now}; give its parameters the groups that their counterparts had "
        "(compiled.base_groups(lr) has them for a model with scale nodes)"
    )
    if key == "lr":
        raise OptimizerError(message)
    warn(message, stacklevel=4)


def _stated(rule: UpdateRule, rate: float) -> dict[str, Any]:
    return {"lr": rate, **rule.settings}


def _same(rule: UpdateRule, other: UpdateRule) -> bool:
    """Compare rules by name or, where both can be built, by what they do (Adam without decay is
    AdamW).
    """
    if rule.class_name == other.class_name:
        return True
    return (rule.name is not None or rule.factory is not None) and step_alike(rule, other)
