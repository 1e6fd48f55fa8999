"""Whether a run trains its model as the base was trained: by the same rules, group by group."""

import warnings
from collections.abc import Mapping
from typing import Any

from flerm_fx.errors import OptimizerError
from flerm_fx.optimizers import Optimizers
from flerm_fx.update_rule import UpdateRule, step_alike


def check_as_base(base: Optimizers, held: Mapping[str, int], given: Optimizers) -> None:
    """Compare the optimizers of a target's run with those of the base's.

    Multipliers come on top of what the base's groups have: a rate of its own that a group of the
    base had, and the target's has not, is lost to the target.

    Args:
        base: optimizers of the base's run.
        held: the base's parameter group that each parameter of the target goes with.
        given: optimizers of the target's run.

    Raises:
        OptimizerError: another rule than the base's trains a parameter, or all parameters have one
            rate where the base's groups had several.

    Warns:
        UserWarning: they have one value of another setting where the base's groups had several.
    """
    pairs = {(held.get(name, 0), given.index(name)): name for name in given.held}
    for (of_base, of_given), name in pairs.items():
        rule, other = base.rules[of_base], given.rules[of_given]
        if not _same(rule, other):
            raise OptimizerError(
                f"parameter {name!r} is trained by {other.source}, and its counterpart in the base "
                f"was by {rule.source}; the FSLRs of one rule say nothing of another's: use the "
                "base's optimizer, or record the base with this one"
            )
    for optimizer in range(base.count):
        of_it = [pair for pair in pairs if base.belongs[pair[0]] == optimizer]
        stated = [(_stated(base, of_base), _stated(given, of_given)) for of_base, of_given in of_it]
        for key in sorted({key for theirs, _ in stated for key in theirs}):
            were = list(dict.fromkeys(repr(theirs.get(key)) for theirs, _ in stated))
            are = list(dict.fromkeys(repr(ours.get(key)) for _, ours in stated))
            if len(were) > 1 and len(are) == 1:
                _lost(key, were, are[0])


def _lost(key: str, were: list[str], are: str) -> None:
    message = (
        f"the base's parameter groups had {key} {', '.join(were)}, and all of this model's have "
        f"{are}; give its parameters the groups that their counterparts had "
        "(compiled.base_groups(lr) has them for a model with scale nodes)"
    )
    if key == "lr":
        raise OptimizerError(message)
    warnings.warn(message, stacklevel=4)


def _stated(run: Optimizers, index: int) -> dict[str, Any]:
    return {"lr": run.learning_rates[index], **run.rules[index].settings}


def _same(rule: UpdateRule, other: UpdateRule) -> bool:
    """By name; or, where both can be built, by what they do (Adam without decay is AdamW)."""
    if rule.source.rpartition(".")[2] == other.source.rpartition(".")[2]:
        return True
    return (rule.name is not None or rule.factory is not None) and step_alike(rule, other)
