r"""An update rule is an optimizer without its parameters, and knows how it answers to a change of
scale.

A scale node stores the weight ``w`` of ``theta = s * w``. The optimizer then sees the gradient
``s * g`` and the weight ``theta / s``, and its step moves ``theta`` by ``s`` times what it moves
``w``. What that does to training depends on the rule alone and is measured here on a small matrix,
never looked up by the rule's name:

.. math:: s\,\Delta(s g, \theta / s) = s^{1+p}\,\Delta(g, \theta)

defines the degree p, so a learning-rate multiplier m is a scale node of ``s = m ** (1 / (1 + p))``
(0 for Adam, sign descent and Muon; 1 for SGD and momentum).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim import Optimizer

from flerm_fx.errors import OptimizerError
from flerm_fx.model.randomness import preserved_rng
from flerm_fx.recipe.reflection import (
    BESIDE_THE_RULE,
    BUILT,
    IMPLEMENTATION,
    PASS_OPTIMIZER,
    OptimizerLike,
    Params,
    build_with,
    constructor_defaults,
    constructor_parameters,
    groups_of,
    is_optimizer_class,
    kept_arguments,
    own_keys,
    plain_setting,
    refuse,
    shared_settings,
    torch_optimizer,
)
from flerm_fx.recipe.response import Alike, Response, measured
from flerm_fx.recipe.trial import LR, matrix


@dataclass(frozen=True)
class UpdateRule:
    """An ``UpdateRule`` is an optimizer's rule and settings, without parameters, state and learning
    rate.

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
            plain = {key: plain_setting(value) for key, value in getattr(self, name).items()}
            object.__setattr__(self, name, plain)
        if not self.source:
            object.__setattr__(self, "source", f"torch.optim.{self.name}" if self.name else "")

    @classmethod
    def of(
        cls,
        optimizer: "OptimizerLike | UpdateRule",
    ) -> "UpdateRule":
        """Return the rule of an optimizer, of an optimizer class, or of what a function builds.

        A function takes parameter groups (a list of dicts with ``"params"`` and ``"lr"``) and
        returns an optimizer; it is called once here, on a small matrix, to see what it builds.

        Raises:
            OptimizerError: for LBFGS and SparseAdam, for groups that disagree on a setting other
                than the learning rate and the weight decay, and for anything that is no optimizer.
        """
        if isinstance(optimizer, UpdateRule):
            return optimizer
        if is_optimizer_class(optimizer):
            return cls._from_class(optimizer, constructor_defaults(optimizer))
        if isinstance(optimizer, Optimizer):
            return cls._from_class(
                type(optimizer),
                shared_settings(optimizer),
                arguments=kept_arguments(optimizer),
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
                built = factory([{"lr": 1e-3, **(settings or {}), "params": [matrix(0)]}])
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
        rule = cls._from_class(type(built), shared_settings(built))
        return cls(None, rule.settings, factory, rule.source)

    @classmethod
    def of_group(cls, optimizer: Optimizer, group: Mapping[str, Any]) -> "UpdateRule":
        """Return the rule by which an optimizer trains one of its parameter groups.

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
        own = own_keys(optimizer)
        settings = {k: v for k, v in defaults.items() if k not in own} | {
            k: v for k, v in group.items() if k in defaults or k in own
        }
        rule = cls._from_class(
            kind, settings, beyond=own & group.keys(), arguments=kept_arguments(optimizer)
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
        refuse(kind)
        kept = constructor_parameters(kind).keys() - IMPLEMENTATION - {"params", "lr"} | beyond
        settings = {key: value for key, value in settings.items() if key in kept}
        if getattr(torch.optim, kind.__name__, None) is kind:
            return cls(kind.__name__, settings, None, "", beyond, arguments or {})
        source = f"{kind.__module__}.{kind.__qualname__}"
        return cls(None, settings, kind, source, beyond, arguments or {})

    def built_by(self, optimizer: OptimizerLike) -> "UpdateRule":
        """Return this rule with the code of an optimizer, since a file holds settings, and no code.

        Args:
            optimizer: of the same class, or a function from parameter groups to one.

        Raises:
            OptimizerError: it is another rule, by its class or by a setting; or it lacks a setting
                that the file could not hold.
        """
        if isinstance(optimizer, Optimizer):
            groups = [UpdateRule.of_group(optimizer, g) for g in optimizer.param_groups]
            given = next((g for g in groups if not self._differs(g)), groups[0])
        elif is_optimizer_class(optimizer):
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
        held = {} if is_optimizer_class(optimizer) else {**given.settings, **given.arguments}
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
        """Return the rule without the settings that only a group can state."""
        settings = {key: value for key, value in self.settings.items() if key not in self.beyond}
        return replace(self, settings=settings, beyond=frozenset())

    def _differs(self, other: "UpdateRule") -> str:
        """Return a setting, other than a decay, in which two rules differ, or "" if there is
        none.
        """
        common = self.settings.keys() & other.settings.keys() - {"weight_decay"}
        return next((k for k in sorted(common) if self.settings[k] != other.settings[k]), "")

    @classmethod
    def from_name(cls, name: str | None, settings: Mapping[str, Any] | None = None) -> "UpdateRule":
        """Return the rule called ``name`` in ``torch.optim``, and nowhere else.

        Raises:
            OptimizerError: if ``torch.optim`` has no optimizer of that name, or not with these
                settings.

        >>> optimizer = UpdateRule.from_name("SGD", {"momentum": 0.9}).build([torch.zeros(1)], 0.1)
        >>> type(optimizer).__name__, optimizer.param_groups[0]["momentum"]
        ('SGD', 0.9)
        """
        kind = torch_optimizer(name)
        unknown = sorted((settings or {}).keys() - constructor_parameters(kind).keys())
        if unknown:
            raise OptimizerError(
                f"torch.optim.{name} of torch {torch.__version__} has no setting "
                f"{', '.join(map(repr, unknown))}; {PASS_OPTIMIZER}"
            )
        return cls._from_class(kind, {**constructor_defaults(kind), **(settings or {})})

    def build(self, params: Params, lr: float, *, weight_decay: float | None = None) -> Optimizer:
        """Return a fresh optimizer of this rule over parameters or parameter groups.

        ``lr`` and ``weight_decay`` are defaults: what a group states itself wins, as in torch.
        ``weight_decay`` is left out where the rule has none; ``None`` keeps the rule's own.

        Raises:
            OptimizerError: if the rule is in neither ``torch.optim`` nor ``factory``, or does not
                take these parameters (Muon takes matrices only).
        """
        defaults: dict[str, Any] = {"lr": lr}
        if weight_decay is not None and "weight_decay" in self.settings:
            defaults["weight_decay"] = weight_decay
        kind = self.factory if self.factory is not None else torch_optimizer(self.name, self.source)
        keywords = {**self.settings, **defaults}
        try:
            if is_optimizer_class(kind):
                in_groups = self.beyond | ({"lr"} - constructor_parameters(kind).keys())
                stated = {key: keywords.pop(key) for key in in_groups & keywords.keys()}
                groups = [{**stated, **group} for group in groups_of(params)]
                optimizer = kind(groups, **self.arguments, **keywords)
            else:
                optimizer = build_with(kind, [{**keywords, **group} for group in groups_of(params)])
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
        """Return name, source and settings as values for JSON, which :meth:`from_spec` reads."""
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
        """Return the rule that :meth:`spec` described.

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
        return bool(self.response.powers)

    @property
    def response(self) -> Response:
        """How the rule answers to a change of scale, measured once."""
        return measured(Alike(self))

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"UpdateRule({self.source}: {settings})"


def _check_built_alike(rule: UpdateRule, optimizer: Optimizer) -> None:
    """Check that an optimizer that is built again has the switches of the one that was given.

    An argument that its constructor keeps under another name is not found, and has its default.
    Numbers are left out, which may be counts.
    """
    kind = type(optimizer)
    sources = (optimizer.defaults, vars(optimizer), rule.arguments)
    _, *arguments = constructor_parameters(kind)
    kept_elsewhere = [
        name
        for name in arguments
        if name not in BESIDE_THE_RULE and not any(name in each for each in sources)
    ]
    if not kept_elsewhere or rule.name is not None:
        return
    with preserved_rng():
        built = vars(rule.build([{"params": [matrix(0)]}], LR))
    for name, value in vars(optimizer).items():
        if isinstance(value, bool | str) and built.get(name, value) != value:
            raise OptimizerError(
                f"{kind.__name__} cannot be built again: its {name} is {value!r}, and that of a "
                f"new one {built[name]!r}, since its constructor keeps "
                f"{', '.join(map(repr, kept_elsewhere))} under another name; {BUILT}"
            )


def _is_json(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_json(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)
