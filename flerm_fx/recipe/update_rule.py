r"""An optimizer's update rule without its parameters, and how it answers to a change of scale.

A scale node stores the weight ``w`` of ``theta = s * w``. The optimizer then sees the gradient
``s * g`` and the weight ``theta / s``, and its step moves ``theta`` by ``s`` times what it moves
``w``. What that does to training depends on the rule alone and is measured here on a small matrix,
never looked up by the rule's name:

.. math:: s\,\Delta(s g, \theta / s) = s^{1+p}\,\Delta(g, \theta)

defines the degree p, so a learning-rate multiplier m is a scale node of ``s = m ** (1 / (1 + p))``
(0 for Adam, sign descent and Muon; 1 for SGD and momentum).
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from flerm_fx.errors import OptimizerError
from flerm_fx.model.randomness import preserved_rng, seed_all

# They choose an implementation or a device, not a rule: a profile recorded with a fused or
# capturable optimizer on a GPU must build the same rule on a CPU.
_IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})

# What a group holds beside its rule: its parameters, and what schedulers write into it.
_BESIDE_THE_RULE = _IMPLEMENTATION | {
    "params",
    "param_names",
    "lr",
    "initial_lr",
    "max_lr",
    "min_lr",
    "swa_lr",
    "base_momentum",
    "max_momentum",
}

_REFUSED = {
    torch.optim.LBFGS: "its step needs a closure that evaluates the loss again",
    torch.optim.SparseAdam: "it takes sparse gradients only",
}

_PASS_OPTIMIZER = (
    "pass optimizer=… to flerm_fx.compile: an optimizer, its class, or a function from parameter "
    "groups to one"
)

OptimizerLike = Optimizer | type[Optimizer] | Callable[..., Optimizer]
Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
Decay = Literal["coupled", "decoupled", "absolute"]


@dataclass(frozen=True)
class UpdateRule:
    """An optimizer's rule and settings, without its parameters, state and learning rate.

    An optimizer has one rule for each of its parameter groups, since groups may state settings of
    their own (a decay, ``betas``, GaLore's ``rank``, ``use_muon``).

    Attributes:
        name: the class's name in ``torch.optim``; ``None`` for a rule from elsewhere.
        settings: what a parameter group states, except ``lr``, what schedulers write there, and
            what chooses an implementation (``foreach``, ``fused``, ``capturable``,
            ``differentiable``).
        factory: the class, or function from parameter groups to an optimizer, that builds a rule
            which ``torch.optim`` does not have; ``None`` for one that it has.
        source: the class's full name, for messages.
        beyond: the names of those settings that are no defaults of the optimizer, so that only a
            group can state them.
        arguments: arguments of the constructor that no group states, read from the optimizer's
            attributes of the same names.
        lost: the names of settings that a file could not hold, for a rule that was read from one.

    >>> rule = UpdateRule.of(torch.optim.AdamW([torch.zeros(2)], lr=0.1, betas=(0.9, 0.95)))
    >>> rule.name, rule.settings["betas"]
    ('AdamW', (0.9, 0.95))
    >>> rule.build([torch.zeros(3)], lr=0.02, weight_decay=0.0).param_groups[0]["lr"]
    0.02
    """

    name: str | None
    settings: Mapping[str, Any]
    factory: Callable[..., Optimizer] | None = None
    source: str = ""
    beyond: frozenset[str] = frozenset()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    lost: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("settings", "arguments"):
            plain = {key: _plain(value) for key, value in getattr(self, name).items()}
            object.__setattr__(self, name, plain)
        if not self.source:
            object.__setattr__(self, "source", f"torch.optim.{self.name}" if self.name else "")

    @classmethod
    def of(
        cls,
        optimizer: "OptimizerLike | UpdateRule",
    ) -> "UpdateRule":
        """The rule of an optimizer, of an optimizer class, or of what a function builds.

        A function takes parameter groups (a list of dicts with ``"params"`` and ``"lr"``) and
        returns an optimizer; it is called once here, on a small matrix, to see what it builds.

        Raises:
            OptimizerError: for LBFGS and SparseAdam, for groups that disagree on a setting other
                than the learning rate and the weight decay, and for anything that is no optimizer.
        """
        if isinstance(optimizer, UpdateRule):
            return optimizer
        if _is_optimizer_class(optimizer):
            return cls._from_class(optimizer, _constructor_defaults(optimizer))
        if isinstance(optimizer, Optimizer):
            return cls._from_class(
                type(optimizer),
                _shared_settings(optimizer),
                arguments=_kept_arguments(optimizer),
            )
        return cls._of_function(optimizer)

    @classmethod
    def _of_function(
        cls, factory: Callable[..., Optimizer], settings: Mapping[str, Any] | None = None
    ) -> "UpdateRule":
        if not callable(factory):
            raise OptimizerError(
                "optimizer must be a torch optimizer, its class, or a function from parameter "
                f"groups to one; got {type(factory).__name__}"
            )
        with preserved_rng():
            try:
                built = factory([{"lr": 1e-3, **(settings or {}), "params": [_matrix(0)]}])
            except Exception as error:  # whatever the user's code may raise
                raise OptimizerError(
                    "the optimizer function cannot build an optimizer of a random 6x4 matrix: "
                    f"{type(error).__name__}: {error}; it takes a list of parameter groups"
                ) from error
        if not isinstance(built, Optimizer):
            raise OptimizerError(
                f"the optimizer function returned {type(built).__name__}, not a "
                "torch.optim.Optimizer; it takes a list of parameter groups"
            )
        rule = cls._from_class(type(built), _shared_settings(built))
        return cls(None, rule.settings, factory, rule.source)

    @classmethod
    def of_group(cls, optimizer: Optimizer, group: Mapping[str, Any]) -> "UpdateRule":
        """The rule by which an optimizer trains one of its parameter groups.

        Raises:
            OptimizerError: for LBFGS and SparseAdam, and for an optimizer whose constructor takes
                what neither its groups nor its attributes hold.

        >>> weight, bias = torch.zeros(2, 2), torch.zeros(2)
        >>> groups = [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}]
        >>> adamw = torch.optim.AdamW(groups, weight_decay=0.1)
        >>> [UpdateRule.of_group(adamw, g).settings["weight_decay"] for g in adamw.param_groups]
        [0.1, 0.0]
        """
        kind, defaults = type(optimizer), optimizer.defaults
        own = _own_keys(optimizer)
        settings = {k: v for k, v in defaults.items() if k not in own} | {
            k: v for k, v in group.items() if k in defaults or k in own
        }
        rule = cls._from_class(
            kind, settings, beyond=own & group.keys(), arguments=_kept_arguments(optimizer)
        )
        _check_built_alike(rule, optimizer)
        return rule

    @classmethod
    def _from_class(
        cls,
        kind: type[Optimizer],
        settings: Mapping[str, Any],
        *,
        beyond: frozenset[str] = frozenset(),
        arguments: Mapping[str, Any] | None = None,
    ) -> "UpdateRule":
        _refuse(kind)
        kept = _constructor_parameters(kind).keys() - _IMPLEMENTATION - {"params", "lr"} | beyond
        settings = {key: value for key, value in settings.items() if key in kept}
        if getattr(torch.optim, kind.__name__, None) is kind:
            return cls(kind.__name__, settings, None, "", beyond, arguments or {})
        source = f"{kind.__module__}.{kind.__qualname__}"
        return cls(None, settings, kind, source, beyond, arguments or {})

    def built_by(self, optimizer: OptimizerLike) -> "UpdateRule":
        """This rule, with the code of an optimizer: a file holds settings, and no code.

        Args:
            optimizer: of the same class, or a function from parameter groups to one.

        Raises:
            OptimizerError: it is another rule, by its class or by a setting; or it lacks a setting
                that the file could not hold.
        """
        if isinstance(optimizer, Optimizer):
            groups = [UpdateRule.of_group(optimizer, g) for g in optimizer.param_groups]
            given = next((g for g in groups if not self._differs(g)), groups[0])
        elif _is_optimizer_class(optimizer):
            given = UpdateRule.of(optimizer)
        else:
            given = UpdateRule._of_function(optimizer, self.settings)
        if given.class_name != self.class_name:
            raise OptimizerError(
                f"the base was trained by {self.source}, and optimizer= is {given.source}; the "
                "FSLRs of one rule say nothing of another's: pass the one that the base was "
                "trained by, or record the base with the other"
            )
        if isinstance(optimizer, Optimizer) and (key := self._differs(given)):
            raise OptimizerError(
                f"the base was trained by {self.source} with {key}={self.settings[key]!r}, and "
                f"optimizer= has {key}={given.settings[key]!r}; pass one with the base's "
                "settings, or its class, which takes them from the profile"
            )
        held = {} if _is_optimizer_class(optimizer) else {**given.settings, **given.arguments}
        if missing := [name for name in self.lost if name not in held]:
            raise OptimizerError(
                f"the profile could not hold {', '.join(map(repr, missing))} of {self.source}; "
                "pass optimizer= as an optimizer that has it, or as a function that gives it"
            )
        arguments = {**self.arguments, **given.arguments}
        settings = {k: v for k, v in given.settings.items() if k not in arguments}
        return replace(
            given,
            settings={**settings, **self.settings},
            beyond=self.beyond,
            arguments=arguments,
        )

    def without_own(self) -> "UpdateRule":
        """The rule without the settings that only a group can state."""
        settings = {key: value for key, value in self.settings.items() if key not in self.beyond}
        return replace(self, settings=settings, beyond=frozenset())

    def _differs(self, other: "UpdateRule") -> str:
        """A setting, other than a decay, in which two rules differ; empty if there is none."""
        common = self.settings.keys() & other.settings.keys() - {"weight_decay"}
        return next((k for k in sorted(common) if self.settings[k] != other.settings[k]), "")

    @classmethod
    def from_name(cls, name: str | None, settings: Mapping[str, Any] | None = None) -> "UpdateRule":
        """The rule called ``name`` in ``torch.optim``, and nowhere else.

        Raises:
            OptimizerError: if ``torch.optim`` has no optimizer of that name, or not with these
                settings.

        >>> optimizer = UpdateRule.from_name("SGD", {"momentum": 0.9}).build([torch.zeros(1)], 0.1)
        >>> type(optimizer).__name__, optimizer.param_groups[0]["momentum"]
        ('SGD', 0.9)
        """
        kind = _torch_optimizer(name)
        unknown = sorted((settings or {}).keys() - _constructor_parameters(kind).keys())
        if unknown:
            raise OptimizerError(
                f"torch.optim.{name} of torch {torch.__version__} has no setting "
                f"{', '.join(map(repr, unknown))}; {_PASS_OPTIMIZER}"
            )
        return cls._from_class(kind, {**_constructor_defaults(kind), **(settings or {})})

    def build(self, params: Params, lr: float, *, weight_decay: float | None = None) -> Optimizer:
        """A fresh optimizer of this rule over parameters or parameter groups.

        ``lr`` and ``weight_decay`` are defaults: what a group states itself wins, as in torch.
        ``weight_decay`` is left out where the rule has none; ``None`` keeps the rule's own.

        Raises:
            OptimizerError: if the rule is in neither ``torch.optim`` nor ``factory``, or does not
                take these parameters (Muon takes matrices only).
        """
        defaults: dict[str, Any] = {"lr": lr}
        if weight_decay is not None and "weight_decay" in self.settings:
            defaults["weight_decay"] = weight_decay
        kind = (
            self.factory if self.factory is not None else _torch_optimizer(self.name, self.source)
        )
        keywords = {**self.settings, **defaults}
        try:
            if _is_optimizer_class(kind):
                in_groups = self.beyond | ({"lr"} - _constructor_parameters(kind).keys())
                stated = {key: keywords.pop(key) for key in in_groups & keywords.keys()}
                groups = [{**stated, **group} for group in _groups(params)]
                optimizer = kind(groups, **self.arguments, **keywords)
            else:
                optimizer = _build_with(kind, [{**keywords, **group} for group in _groups(params)])
        except OptimizerError:
            raise
        except Exception as error:  # whatever a constructor may raise
            raise OptimizerError(
                f"{self.source} cannot be built with settings "
                f"{dict(self.settings)} for these parameters: {error}"
            ) from error
        if callable(train := getattr(optimizer, "train", None)):
            train()  # a rule that has a mode for evaluation, as schedule-free ones have
        return optimizer

    def spec(self) -> dict[str, Any]:
        """Name, source and settings as JSON-able values; :meth:`from_spec` reads it back."""
        parts = {"settings": self.settings, "arguments": self.arguments}
        kept = {
            part: {key: value for key, value in values.items() if _is_json(value)}
            for part, values in parts.items()
        }
        lost = [key for part, values in parts.items() for key in values if key not in kept[part]]
        spec = {"name": self.name, "source": self.source, "settings": kept["settings"]}
        others = {
            "arguments": kept["arguments"],
            "beyond": sorted(self.beyond),
            "lost": sorted({*lost, *self.lost}),
        }
        return {**spec, **{key: value for key, value in others.items() if value}}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "UpdateRule":
        """The rule that :meth:`spec` described.

        A rule that ``torch.optim`` does not have raises only when it is built, so that a profile
        can be read where its optimizer is missing and another is passed instead.
        """
        name, settings, source = spec["name"], spec["settings"], spec["source"]
        if not (name is None or isinstance(name, str)) or not isinstance(source, str):
            raise TypeError(f"optimizer name {name!r} or source {source!r} is not text")
        arguments = spec.get("arguments", {})
        if not isinstance(settings, dict) or not isinstance(arguments, dict):
            raise TypeError(f"optimizer settings are a {type(settings).__name__}, not a mapping")
        beyond = frozenset(map(str, spec.get("beyond", ())))
        lost = tuple(map(str, spec.get("lost", ())))
        try:
            own = {key: value for key, value in settings.items() if key not in beyond}
            known = cls.from_name(name, own)
            settings, source = {**known.settings, **settings}, known.source
        except OptimizerError:
            pass
        return cls(name, settings, None, source, beyond, arguments, lost)

    @property
    def class_name(self) -> str:
        """The name of the optimizer's class, wherever it was imported from."""
        return self.source.rpartition(".")[2]

    @property
    def has_eps(self) -> bool:
        """Whether a step depends on the size of its gradient beside an ``eps`` or the like."""
        return bool(self._response.powers)

    @property
    def _response(self) -> "_Response":
        return _measured(_Alike(self))

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"UpdateRule({self.source}: {settings})"


@dataclass(frozen=True)
class _Response:
    """How a rule answers to a change of scale: see the module's docstring.

    ``powers[h]`` is the power of s by which setting h of a parameter group must be multiplied so
    that it does to theta what the unchanged setting does to w. ``decays[h]`` says how a decay acts.
    """

    degree: float
    powers: Mapping[str, int]
    decays: Mapping[str, Decay]


def degree(rule: UpdateRule) -> float:
    r"""The degree p of a rule in the gradient, measured.

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
    return rule._response.degree


def node_scale(rule: UpdateRule, multiplier: float) -> float:
    """The scale s of the node that does what the learning-rate multiplier m does.

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
    if not _has_node_scale(p):
        raise OptimizerError(
            f"{rule.source} steps in proportion to the weights, so scale nodes cannot change its "
            f"learning rates (asked for a multiplier of {multiplier:g}): compile with "
            "emit='param_groups', or match the plain model"
        )
    return float(multiplier ** (1.0 / (1.0 + p)))


def node_multiplier(rule: UpdateRule, scale: float) -> float:
    """The learning-rate multiplier m that a node of scale s stands for: the inverse of node_scale.

    >>> node_multiplier(UpdateRule.from_name("SGD"), 2.0)
    4.0
    """
    return float(scale ** (1.0 + degree(rule)))


def group_settings(
    rule: UpdateRule, lr: float, multiplier: float, weight_decay: float | None = None
) -> dict[str, Any]:
    r"""Settings of a parameter group that trains ``theta`` as a scale node trains ``theta / s``.

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
    """What a multiplier changes in the present settings of a parameter group.

    As :func:`group_settings`, from the group's own learning rate, decay and ``eps``, which a
    scheduler or the user may have moved.

    >>> multiplied(UpdateRule.from_name("Adam"), {"lr": 0.01, "eps": 1e-6, "weight_decay": 0}, 2.0)
    {'lr': 0.02, 'weight_decay': 0.0, 'eps': 5e-07}
    """
    return _multiplied(rule._response, rule.settings, group, multiplier)


def _multiplied(
    response: "_Response", settings: Mapping[str, Any], group: Mapping[str, Any], multiplier: float
) -> dict[str, Any]:
    changed: dict[str, Any] = {"lr": group["lr"] * multiplier}
    p = response.degree
    scale = multiplier ** (1.0 / (1.0 + p)) if _has_node_scale(p) else 1.0
    decay_factor = {
        "coupled": scale**-2.0,
        "decoupled": 1.0 / multiplier,
        "absolute": 1.0,
    }
    for name, kind in response.decays.items():
        changed[name] = group.get(name, settings[name]) * decay_factor[kind]
    for name, power in response.powers.items():
        changed[name] = _times(group.get(name, settings[name]), scale**power)
    return changed


def decay_per_step(rule: UpdateRule, group: Mapping[str, Any]) -> float:
    r"""The part of a weight that a step of a group takes off, beside what the gradient does.

    :math:`\mathrm{lr} \cdot \lambda` for decoupled decay, :math:`\lambda` for one that the rate
    does not enter, 0 for decay in the gradient.

    >>> decay_per_step(UpdateRule.from_name("AdamW"), {"lr": 0.1, "weight_decay": 0.5})
    0.05
    """
    factors = {"coupled": 0.0, "decoupled": float(group["lr"]), "absolute": 1.0}
    return sum(
        factors[kind] * float(group.get(name, rule.settings[name]))
        for name, kind in rule._response.decays.items()
    )


def state_powers(rule: UpdateRule) -> dict[str, int]:
    r"""The power of s by which each entry of a rule's state answers to a scale node, measured.

    Behind a node of s the rule sees the gradient s g and the weight :math:`\theta / s`; an entry of
    power k is then :math:`s^k` times what it would be. So a running mean of gradients has power 1,
    one of their squares 2, a count 0.

    Raises:
        OptimizerError: an entry that answers in another way, so that a scale cannot be changed
            while training.

    >>> state_powers(UpdateRule.from_name("Adam"))
    {'step': 0, 'exp_avg': 1, 'exp_avg_sq': 2}
    """
    gradients = _LARGE * torch.stack([_matrix(1 + step) for step in range(_STEPS)])
    weight = _matrix(0).detach()
    with preserved_rng():
        one = _state(rule, gradients, weight)
        doubled = _state(rule, 2 * gradients, weight / 2)
    powers = {}
    for name, value in one.items():
        for power in (0, 1, 2, -1, -2):
            wanted = value * 2.0**power
            if (doubled[name] - wanted).norm() <= _TOLERANCE * wanted.norm():
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
    """Whether a rule's state is the same under another learning rate.

    Where it does not, a multiplier that changes while a model trains leaves behind a state of the
    old one: schedule-free's averages hold weights, and its groups the largest rate so far.

    Raises:
        OptimizerError: it does not; the message names the state.

    >>> check_state_is_free(UpdateRule.from_name("AdamW"))
    """
    gradients, weight = torch.stack([_matrix(1 + step) for step in range(3)]), _matrix(0).detach()
    seen = []
    with preserved_rng():
        for lr in (_LR, 2 * _LR):
            seed_all(0)
            parameter, optimizer = _stepped(rule, gradients, weight, lr=lr)
            seen.append(_numbers(optimizer.state[parameter]) | _counts(optimizer))
    one, other = seen
    bound = [k for k in one if (one[k] - other[k]).norm() > _TOLERANCE * one[k].norm()]
    if bound:
        raise OptimizerError(
            f"the state {', '.join(map(repr, bound))} of {rule.source} holds weights or learning "
            "rates, so multipliers cannot change while it trains: compile the model instead, and "
            "train it with compiled.param_groups(lr), whose rates stay"
        )


def step_alike(rule: UpdateRule, other: UpdateRule) -> bool:
    """Whether two rules take the same steps on the same gradients, decay apart, measured.

    >>> adam, adamw, sgd = (UpdateRule.from_name(name) for name in ("Adam", "AdamW", "SGD"))
    >>> step_alike(adam, adamw), step_alike(adam, sgd)
    (True, False)
    """
    gradients, weight = torch.stack([_matrix(1 + step) for step in range(3)]), _matrix(0).detach()
    with preserved_rng():
        one, two = (_last_update(each, gradients, weight) for each in (rule, other))
    return bool((one - two).norm() <= _ALIKE * one.norm())


def is_linear(rule: UpdateRule, lr: float, factor: float) -> bool:
    """Whether a first step at ``factor * lr`` is ``factor`` times one at ``lr``, measured.

    It is not where a rule bounds its steps, as Rprop does.

    >>> is_linear(UpdateRule.from_name("Adam"), 1e-3, 2.0**24)
    True
    >>> is_linear(UpdateRule.from_name("Rprop"), 1e-3, 2.0**24)
    False
    """
    gradient, weight = _matrix(1).unsqueeze(0), torch.zeros(6, 4, dtype=torch.float64)
    with preserved_rng():
        one = _last_update(rule, gradient, weight, lr=lr)
        many = _last_update(rule, gradient, weight, lr=factor * lr)
    return bool((many - factor * one).norm() <= _TOLERANCE * many.norm())


def _has_node_scale(p: float) -> bool:
    # 1 / (1 + p) beyond 20 would turn a multiplier of 2 into a scale of a million.
    return p > -0.95


# Measuring a rule. Powers of two throughout: multiplying by them is exact in binary floating point,
# so that equal trainings agree to the last bits even through Muon's bfloat16 iteration.

_STEPS = 16  # past RAdam's first five steps, which are of another degree
_LR = 2.0**-10
# Gradients beside which an eps of 1 is small: eps scales by its own power and is no part of p.
_LARGE = 2.0**10
_DECAYS = ("weight_decay", "lambd")
# Settings whose size is no part of an answer: decays are measured at another, eps beside gradients
# of other sizes.
_VALUES = (*_DECAYS, "eps")
_TOLERANCE = 1e-6
_ALIKE = 0.05  # a state in eight bits makes other steps than one in 32, by a few hundredths


class _Alike:
    """A rule as the key of a cache: those alike answer alike, whatever their decay and ``eps``."""

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        plain = {k: v for k, v in rule.settings.items() if not (k in _VALUES and _is_number(v))}
        numbers = {k for k, v in rule.settings.items() if k in _VALUES and _is_number(v)}
        self._key = (rule.name, rule.source, plain, numbers, rule.beyond, rule.arguments)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Alike)
            and self.rule.factory is other.rule.factory
            and self._key == other._key
        )

    def __hash__(self) -> int:
        return hash((self.rule.name, self.rule.source, len(self.rule.settings)))


@functools.lru_cache(maxsize=256)
def _measured(alike: _Alike) -> _Response:
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


def _check_listens(rule: UpdateRule) -> None:
    """A rule steps at the present rate of its group, whichever it was built at."""
    weight = _matrix(0).detach()
    moved = []
    for built_at in (_LR, 2 * _LR):
        seed_all(0)  # of a rule that draws
        parameter = torch.nn.Parameter(weight.clone())
        optimizer = rule.build([{"params": [parameter]}], built_at, weight_decay=0.0)
        for group in optimizer.param_groups:
            group["lr"] = 2 * _LR
        for step in range(3):  # the first may only fill the state
            parameter.grad = _matrix(1 + step).clone()
            optimizer.step()
        moved.append(parameter.detach() - weight)
    changed, wanted = moved
    if (changed - wanted).norm() > _TOLERANCE * wanted.norm():
        _refuse_rate(rule)


def _check_answers(rule: UpdateRule, response: _Response) -> None:
    """What a multiplier changes in a group changes its steps."""
    gradients, weight = torch.stack([_matrix(1), _matrix(2)]), _matrix(0).detach()
    plain = _last_update(rule, gradients, weight)
    changed = _multiplied(response, rule.settings, {"lr": _LR}, 4.0)
    changed = {key: value for key, value in changed.items() if key not in response.decays}
    if (_last_update(rule, gradients, weight, changed) - plain).norm() < plain.norm():
        _refuse_rate(rule)


def _refuse_rate(rule: UpdateRule) -> NoReturn:
    raise OptimizerError(
        f"{rule.source} does not step at the learning rate that its parameter groups have, but at "
        "one of its own, which neither a scheduler nor a multiplier reaches; use an optimizer that "
        "reads group['lr'] at each step"
    )


def _measure(rule: UpdateRule) -> _Response:
    gradients = torch.stack([_matrix(1 + step) for step in range(_STEPS)])
    weight = _matrix(0).detach()
    large = _LARGE * gradients
    unit = _last_update(rule, large, weight).norm().item()
    doubled = _last_update(rule, 2 * large, weight / 2).norm().item()
    if not (math.isfinite(unit) and math.isfinite(doubled) and unit > 0 and doubled > 0):
        raise OptimizerError(
            f"{rule.source} moved a random matrix by {unit:g}, and by {doubled:g} with twice "
            f"the gradient, after {_STEPS} steps at lr {_LR:g}; expected finite steps other "
            "than zero"
        )
    p = math.log2(doubled / unit)
    if abs(p - round(p)) < 1e-2:
        p = float(round(p))
    powers = {}
    # A large eps, so that it matters beside gradients of size 1 and beside their norm; step
    # bounds around the learning rate, so that they bind.
    for name, probe in (("eps", 64.0), ("step_sizes", (64 * _LR, 128 * _LR))):
        value = rule.settings.get(name)
        if isinstance(value, tuple) if isinstance(probe, tuple) else _is_number(value):
            power = _power(rule, gradients, weight, p, name, probe)
            if power:
                powers[name] = power
    decays = {
        name: _decay(rule, gradients, weight, name)
        for name in _DECAYS
        if _is_number(rule.settings.get(name))
    }
    return _Response(p, powers, decays)


def _power(
    rule: UpdateRule, gradients: Tensor, weight: Tensor, p: float, name: str, probe: Any
) -> int:
    """The power of s with which a setting makes group and scale node agree; 0 if none does."""
    if not _has_node_scale(p):
        return 0
    scale = 4.0
    node = scale * _last_update(rule, scale * gradients, weight / scale, {name: probe})
    lr = _LR * scale ** (1.0 + p)
    for power in (0, -1, -2, 1):
        group = {name: _times(probe, scale**power)}
        update = _last_update(rule, gradients, weight, group, lr=lr)
        if (update - node).norm() <= _TOLERANCE * node.norm():
            return power
    return 0


def _decay(rule: UpdateRule, gradients: Tensor, weight: Tensor, name: str) -> Decay:
    """How a decay acts, from what it adds to one step: ``-lr * decay * theta`` if decoupled."""
    value = 0.125
    added = _last_update(rule, gradients, weight, decay={name: value}) - _last_update(
        rule, gradients, weight
    )
    # Coupled decay may pass for decoupled where p = 1; both are divided by m = s**2 there.
    kinds: tuple[tuple[Decay, float], ...] = (
        ("decoupled", _LR * value),
        ("absolute", value),
    )
    for kind, rate in kinds:
        if (added + rate * weight).norm() <= 1e-3 * rate * weight.norm():
            return kind
    return "coupled"


def _last_update(
    rule: UpdateRule,
    gradients: Tensor,
    weight: Tensor,
    settings: Mapping[str, Any] | None = None,
    *,
    lr: float = _LR,
    decay: Mapping[str, float] | None = None,
) -> Tensor:
    """The step from ``weight`` on the last of the gradients, after steps on the others.

    Decay acts in the last step only: before it, it would change the state, and with it the step.
    """
    parameter, optimizer = _stepped(rule, gradients[:-1], weight, settings, lr)
    for built in optimizer.param_groups:
        built.update(decay or {})
    with torch.no_grad():
        parameter.copy_(weight)
    parameter.grad = gradients[-1].clone()
    optimizer.step()
    return parameter.detach() - weight


def _stepped(
    rule: UpdateRule,
    gradients: Tensor,
    weight: Tensor,
    settings: Mapping[str, Any] | None = None,
    lr: float = _LR,
) -> tuple[torch.nn.Parameter, Optimizer]:
    """A matrix after steps on gradients without decay, and its optimizer."""
    parameter = torch.nn.Parameter(weight.clone())
    off = {name: 0.0 for name in _DECAYS if name in rule.settings}
    optimizer = rule.build([{"params": [parameter], **off, **(settings or {})}], lr)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter, optimizer


def _state(rule: UpdateRule, gradients: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The numbers in an optimizer's state after steps that all but leave a matrix where it is."""
    parameter, optimizer = _stepped(rule, gradients, weight, lr=2.0**-40)
    return _numbers(optimizer.state[parameter])


def _counts(optimizer: Optimizer) -> dict[str, Tensor]:
    """The numbers that an optimizer writes into its groups."""
    stated = {k: v for k, v in optimizer.param_groups[0].items() if k not in _BESIDE_THE_RULE}
    return _numbers(stated)


def _numbers(values: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.as_tensor(value, dtype=torch.float64)
        for name, value in values.items()
        if isinstance(value, Tensor) or _is_number(value)
    }


def _matrix(seed: int) -> Tensor:
    """A random 6 x 4 matrix: two-dimensional and not square, so that Muon takes it."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    values = torch.randn(6, 4, generator=generator, dtype=torch.float64, device="cpu")
    return values.requires_grad_(seed == 0)


# Optimizer classes and their settings.


def _torch_optimizer(name: str | None, source: str = "") -> type[Optimizer]:
    kind = getattr(torch.optim, name, None) if name is not None else None
    if not (isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer):
        what = f"optimizer {name!r}" if name is not None else source or "an unnamed optimizer"
        raise OptimizerError(f"{what} is not in torch.optim; {_PASS_OPTIMIZER}")
    _refuse(kind)
    return kind


def _refuse(kind: type[Optimizer]) -> None:
    for refused, reason in _REFUSED.items():
        if issubclass(kind, refused):
            raise OptimizerError(
                f"{kind.__name__} has no update rule that flerm_fx can repeat: {reason}; use an "
                "optimizer that steps on dense gradients, such as AdamW, SGD or Muon"
            )


def _constructor_parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Named parameters of a constructor, and of those that its ``**kwargs`` go on to."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        if base is Optimizer and found:  # which is given the defaults, not the ``**kwargs``
            break
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _keeps_keywords(kind: type) -> bool:
    """Whether a constructor has ``**kwargs`` of its own, that none which it calls names."""
    for base in kind.__mro__:
        if base is Optimizer:
            return True
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                return False
    return False


def _constructor_defaults(kind: type) -> dict[str, Any]:
    return {
        key: parameter.default
        for key, parameter in _constructor_parameters(kind).items()
        if parameter.default is not inspect.Parameter.empty
    }


def _is_optimizer_class(value: object) -> TypeGuard[type[Optimizer]]:
    return isinstance(value, type) and issubclass(value, Optimizer)


def _own_keys(optimizer: Optimizer) -> frozenset[str]:
    """The keys by which groups say more than an optimizer's defaults do.

    They choose the rule where an optimizer is several in one class: ``use_muon``, ``rank``. A
    default that the constructor does not take is a count of the optimizer's own, unless groups
    disagree on it, or the constructor makes defaults of its ``**kwargs``.
    """
    taken = _constructor_parameters(type(optimizer)).keys()
    any_keyword = _keeps_keywords(type(optimizer))
    groups = [group for group in optimizer.param_groups if group["params"]]
    found = {key for group in groups for key in group} - _BESIDE_THE_RULE
    return frozenset(
        key
        for key in found
        if key not in optimizer.defaults
        or (
            key not in taken
            and (any_keyword or any(g.get(key) != groups[0].get(key) for g in groups))
        )
    )


def _kept_arguments(optimizer: Optimizer) -> dict[str, Any]:
    """The arguments of an optimizer's constructor that are no defaults of its groups.

    Raises:
        OptimizerError: one of them must be given, and is not kept under its name; or it is another
            optimizer or a model, which cannot be built again.
    """
    kind = type(optimizer)
    _refuse(kind)
    found = {}
    first, *rest = _constructor_parameters(kind).items()
    for name, parameter in rest:
        if name in _BESIDE_THE_RULE or name in optimizer.defaults:
            continue
        value = vars(optimizer).get(name, vars(optimizer).get(f"_{name}", parameter.default))
        if value is inspect.Parameter.empty:
            raise OptimizerError(
                f"{kind.__name__} cannot be built again, since its constructor needs {name!r}, "
                f"which it keeps neither in its parameter groups nor as an attribute; {_BUILT}"
            )
        if isinstance(value, Optimizer | torch.nn.Module):
            raise OptimizerError(
                f"{kind.__name__} cannot be built again, since its constructor takes a "
                f"{type(value).__name__} as {name!r}; {_BUILT}"
            )
        if value is not parameter.default:
            found[name] = value
    if isinstance(inner := vars(optimizer).get(first[0]), Optimizer):
        raise OptimizerError(
            f"{kind.__name__} cannot be built again, since it is around another optimizer, "
            f"{type(inner).__name__}, whose step it changes; {_BUILT}"
        )
    return found


def _check_built_alike(rule: UpdateRule, optimizer: Optimizer) -> None:
    """Whether an optimizer that is built again has the switches of the one that was given.

    An argument that its constructor keeps under another name is not found, and has its default.
    Numbers are left out, which may be counts.
    """
    kind = type(optimizer)
    sources = (optimizer.defaults, vars(optimizer), rule.arguments)
    _, *arguments = _constructor_parameters(kind)
    kept_elsewhere = [
        name
        for name in arguments
        if name not in _BESIDE_THE_RULE and not any(name in each for each in sources)
    ]
    if not kept_elsewhere or rule.name is not None:
        return
    with preserved_rng():
        built = vars(rule.build([{"params": [_matrix(0)]}], _LR))
    for name, value in vars(optimizer).items():
        if isinstance(value, bool | str) and built.get(name, value) != value:
            raise OptimizerError(
                f"{kind.__name__} cannot be built again: its {name} is {value!r}, and that of a "
                f"new one {built[name]!r}, since its constructor keeps "
                f"{', '.join(map(repr, kept_elsewhere))} under another name; {_BUILT}"
            )


_BUILT = (
    "a start is simulated by an optimizer of the same class on a copy of the model: use one whose "
    "constructor takes parameter groups and numbers"
)


def _shared_settings(optimizer: Optimizer) -> dict[str, Any]:
    """The settings that an optimizer's groups share, its defaults standing in for weight decay."""
    settings: dict[str, Any] = {}
    for key, default in optimizer.defaults.items():
        values = [_plain(group.get(key, default)) for group in optimizer.param_groups]
        if all(value == values[0] for value in values):
            settings[key] = values[0]
        elif key in _BESIDE_THE_RULE | {"weight_decay"}:
            settings[key] = default
        else:
            listed = ", ".join(dict.fromkeys(repr(value) for value in values))
            raise OptimizerError(
                f"the parameter groups of {type(optimizer).__name__} disagree on {key!r} "
                f"({listed}), so they are not one update rule; give every group the same {key!r} "
                "(learning rates and weight decay may differ)"
            )
    return settings


def _groups(params: Params) -> list[dict[str, Any]]:
    items: list[Any] = list(params)
    if not items:
        raise ValueError("there are none")
    if items and all(isinstance(item, dict) for item in items):
        return items
    return [{"params": items}]


def _build_with(factory: Callable[..., Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """Call a user's factory, and hold it to the learning rate and settings of the groups."""
    asked = {}
    for group in groups:
        group["params"] = list(group["params"])
        settings = {key: value for key, value in group.items() if key != "params"}
        for item in group["params"]:
            asked[id(item[1] if isinstance(item, tuple) else item)] = settings
    optimizer = factory(groups)
    for built in optimizer.param_groups:
        wanted = [asked.get(id(parameter), {}) for parameter in built["params"]]
        if any(settings != wanted[0] for settings in wanted):
            raise OptimizerError(
                f"the optimizer function put parameters of different groups into one "
                f"{type(optimizer).__name__} group; it must keep the groups that it is given"
            )
        built.update(wanted[0] if wanted else {})
    return optimizer


def _plain(value: Any) -> Any:
    """Tensors of one element as numbers, and lists, which is what JSON gives back, as tuples."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, tuple):
        return tuple(_times(item, factor) for item in value)
    return value * factor


def _is_json(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_json(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)
