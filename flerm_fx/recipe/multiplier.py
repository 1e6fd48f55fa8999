r"""A learning-rate multiplier becomes the scale of a node, or settings of a parameter group."""

from collections.abc import Mapping
from typing import Any

from flerm_fx.errors import OptimizerError
from flerm_fx.recipe.response import has_node_scale
from flerm_fx.recipe.update_rule import UpdateRule


def degree(rule: UpdateRule) -> float:
    r"""Return the degree p of a rule in the gradient, which is measured.

    .. math:: p = \log_2 \frac{\lVert\Delta(2g, \theta/2)\rVert}{\lVert\Delta(g, \theta)\rVert}

    after 16 steps on gradients of constant scale, large beside any ``eps``, without weight decay;
    snapped to an integer when within 0.01. The weights are halved as the gradient doubles, which
    is what a scale node of 2 does: a rule whose steps do not look at the weights cannot tell, and
    one whose steps are in proportion to them (Adafactor, LAMB) has p = -1, where no scale node
    changes its rate.

    Raises:
        OptimizerError: if the rule takes no step, or a step of NaN or infinity, on the matrix.

    >>> degree(UpdateRule.from_name("Adam")), degree(UpdateRule.from_name("SGD"))
    (0.0, 1.0)
    """
    return rule.response.degree


def node_scale(rule: UpdateRule, multiplier: float) -> float:
    """Return the scale s of the node that does what the learning-rate multiplier m does.

    ``s = m ** (1 / (1 + p))``, with p the rule's :func:`degree`.

    Raises:
        OptimizerError: for a multiplier other than 1 under a rule whose steps are in proportion to
            the weights (p = -1): a scale node leaves its training unchanged.

    >>> node_scale(UpdateRule.from_name("SGD"), 4.0)
    2.0
    """
    if multiplier == 1.0:
        return 1.0
    p = degree(rule)
    if not has_node_scale(p):
        raise OptimizerError(
            f"{rule.source} steps in proportion to the weights, so scale nodes cannot change its "
            f"learning rates (asked for a multiplier of {multiplier:g}): compile with "
            "emit='param_groups', or match the plain model"
        )
    return float(multiplier ** (1.0 / (1.0 + p)))


def node_multiplier(rule: UpdateRule, scale: float) -> float:
    """Return the multiplier m that a node of scale s stands for, the inverse of :func:`node_scale`.

    >>> node_multiplier(UpdateRule.from_name("SGD"), 2.0)
    4.0
    """
    return float(scale ** (1.0 + degree(rule)))


def group_settings(
    rule: UpdateRule, lr: float, multiplier: float, weight_decay: float | None = None
) -> dict[str, Any]:
    r"""Return settings of a parameter group that trains ``theta`` as a scale node trains ``theta /
    s``.

    With :math:`s = m^{1/(1+p)}` the learning rate is :math:`m \cdot \mathrm{lr}`, and

    - decoupled weight decay (AdamW, Muon) is divided by m, so that the decay of a step,
      :math:`\mathrm{lr}\cdot\mathrm{decay}`, is what it was;
    - decay in the gradient (SGD, Adam) is divided by :math:`s^2`: the rule on w sees
      :math:`s g + \lambda w = s\,(g + \lambda s^{-2} \theta)`;
    - decay that the learning rate does not enter is left alone;
    - ``eps`` is multiplied by the power of s that the rule was measured to need: -1 where it is
      added to the size of a gradient, :math:`s g / (s|g| + \epsilon) = g / (|g| + \epsilon/s)`.

    Which kind a rule has is measured. The two trainings agree to rounding, except where no setting
    of a group can make them: Adadelta (its ``eps`` is a gradient's square and a step's square at
    once; it is left alone), RAdam's first steps (of degree 1 before they are of degree 0),
    Adagrad's ``initial_accumulator_value`` if not 0 (read from the constructor, not the group),
    and rules whose steps are in proportion to the weights (see :func:`node_scale`).

    Args:
        rule: the update rule.
        lr: learning rate before the multiplier.
        multiplier: m, positive.
        weight_decay: decay before the multiplier; ``None`` for the rule's own.

    Returns:
        ``lr`` and, where the rule has them, ``weight_decay``, ``eps`` and other settings to change.

    >>> group_settings(UpdateRule.from_name("AdamW", {"weight_decay": 0.1}), 0.01, 4.0)
    {'lr': 0.04, 'weight_decay': 0.025, 'eps': 2.5e-09}
    """
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    return multiplied(rule, {**rule.settings, **decay, "lr": lr}, multiplier)


def multiplied(rule: UpdateRule, group: Mapping[str, Any], multiplier: float) -> dict[str, Any]:
    """Return what a multiplier changes in the present settings of a parameter group.

    As :func:`group_settings`, from the group's own learning rate, decay and ``eps``, which a
    scheduler or the user may have moved.

    >>> multiplied(UpdateRule.from_name("Adam"), {"lr": 0.01, "eps": 1e-6, "weight_decay": 0}, 2.0)
    {'lr': 0.02, 'weight_decay': 0.0, 'eps': 5e-07}
    """
    return rule.response.multiplied(rule.settings, group, multiplier)


def decay_per_step(rule: UpdateRule, group: Mapping[str, Any]) -> float:
    r"""Return the part of a weight that a step of a group takes off, beside what the gradient does.

    :math:`\mathrm{lr} \cdot \lambda` for decoupled decay, :math:`\lambda` for one that the rate
    does not enter, 0 for decay in the gradient.

    >>> decay_per_step(UpdateRule.from_name("AdamW"), {"lr": 0.1, "weight_decay": 0.5})
    0.05
    """
    factors = {"coupled": 0.0, "decoupled": float(group["lr"]), "absolute": 1.0}
    return sum(
        factors[kind] * float(group.get(name, rule.settings[name]))
        for name, kind in rule.response.decays.items()
    )
