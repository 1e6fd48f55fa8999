"""This emitter puts multipliers into an optimizer's parameter groups, and none into the model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flerm_fx.boundary.options import checked, integer
from flerm_fx.boundary.warned import warn
from flerm_fx.emit.emitter import Emitter
from flerm_fx.errors import InputError
from flerm_fx.model.copying import copied
from flerm_fx.model.distributed import whole
from flerm_fx.recipe.multiplier import group_settings
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.start.rounding import lost_in_rounding


class GroupsEmitter(Emitter):
    """The emitter holds the model as it is: groups that have its multipliers train it."""

    has_nodes = False

    @classmethod
    def skeleton_of(cls, model: nn.Module, donate: bool) -> nn.Module:
        """Return the model itself."""
        return model

    @property
    def scales(self) -> dict[str, float]:
        """None: there are no nodes."""
        return {}

    def set_scales(self, scales: Mapping[str, float]) -> None:
        """Do nothing, since there are no scales to change."""

    def plain(self) -> nn.Module:
        """Return a copy of the model."""
        return copied(self.skeleton)

    def to_effective(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Tensor]:
        """Return nothing that gives stored weights back, since the model's weights are the
        effective ones.
        """
        return {}


def parameter_groups(
    run: Optimizers,
    parameters: Mapping[str, nn.Parameter],
    multipliers: Mapping[str, float],
    lr: float | None = None,
    weight_decay: float | None = None,
    optimizer: int = 0,
) -> list[dict[str, Any]]:
    """Return groups that train parameters as the base was trained, with multipliers in their
    settings.

    Args:
        run: the base's optimizers, which hold parameters by the target's names.
        parameters: what trains, by name.
        multipliers: of those that have another one than 1.
        lr: the learning rate of the base's first parameter group, to which the others keep their
            proportions; None for those that the base had.
        weight_decay: in place of the base's, in the groups that have one if some have none; None
            for the base's own.
        optimizer: which of the base's optimizers the groups are for.

    Returns:
        A group for each of the base's groups and each multiplier in it.

    Raises:
        InputError: a learning rate that is not above 0 or moves nothing, or an optimizer that the
            base did not have.
    """
    weight_decay = checked("weight_decay", weight_decay)
    optimizer = integer("optimizer", optimizer, 0)
    if optimizer >= run.count:
        raise InputError(
            f"there is no optimizer {optimizer}: the base was trained by {run.count}, "
            "counted from 0"
        )
    kinds = run.groups(optimizer)
    recorded = run.learning_rates[kinds[0]]
    lr = recorded if lr is None else checked("lr", lr)
    rates = run.scaled_to(lr, kinds[0])
    held = [p for name, p in parameters.items() if run.index(name) in kinds]
    _check_moves(held, lr, recorded)
    differing = run.differing(optimizer)
    some_decay = any(run.rules[kind].settings.get("weight_decay") for kind in kinds)
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        kind, m = run.index(name), multipliers.get(name, 1.0)
        if kind not in kinds:
            continue
        if (kind, m) not in groups:
            rule = run.rules[kind]
            own = rule.settings.get("weight_decay")
            replaced = weight_decay if own or not some_decay else None
            groups[kind, m] = {
                "params": [],
                **{key: rule.settings[key] for key in differing & rule.settings.keys()},
                **group_settings(rule, rates[kind], m, replaced),
            }
        groups[kind, m]["params"].append(parameter)
    return list(groups.values())


def warn_of_group(run: Optimizers, lr: float | None, optimizer: int, *, stacklevel: int) -> None:
    """Say so where a rate that is meant to be the first group's is that of another.

    Args:
        run: the base's optimizers.
        lr: as given.
        optimizer: which of them the groups are for.
        stacklevel: of the warning, for the caller.

    Warns:
        UserWarning: it is.
    """
    first, *others = (run.learning_rates[kind] for kind in run.groups(optimizer))
    if lr is None or math.isclose(lr, first) or not any(math.isclose(lr, o) for o in others):
        return
    warn(
        f"lr is {lr:g}, which another of the base's parameter groups had: its first had "
        f"{first:g}, and the others keep their proportions to that, so that all rates are "
        f"{lr / first:.3g} times the base's. Leave lr out to have the base's own, or pass that of "
        "the first group",
        stacklevel=stacklevel + 1,
    )


def _check_moves(parameters: Sequence[nn.Parameter], lr: float, recorded: float) -> None:
    """Check that steps at a learning rate move something where those at the recorded one do.

    At that rate no step is larger than the largest weight, and steps are in proportion to rates.
    """
    last = min((torch.finfo(p.dtype).eps for p in parameters), default=0.0) / 4
    if lr >= recorded * last:
        return
    weights = [whole(parameter.detach()) for parameter in parameters]
    largest = max(float(weight.abs().max()) for weight in weights if weight.numel())
    if all(lost_in_rounding(weight, largest / recorded, lr) for weight in weights):
        raise InputError(
            f"lr is {lr:g}, at which each step is lost in the rounding of the weights; the base "
            f"was recorded at {recorded:g}: pass a rate near it"
        )
