"""The optimizers of a run say by which rule, and at which rate, each parameter is trained."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flerm_fx.boundary.compat import has_step_hooks
from flerm_fx.boundary.options import described
from flerm_fx.errors import InputError, OptimizerError
from flerm_fx.model.values import NOTHING_TO_TRAIN
from flerm_fx.recipe.likeness import is_linear
from flerm_fx.recipe.update_rule import UpdateRule


@dataclass(frozen=True)
class Optimizers:
    """An ``Optimizers`` holds a run's rules and learning rates, one of each for every kind of
    group.

    Groups of one optimizer that have equal settings and rates are one kind. Within an optimizer
    those come first that have a rate above 0, so that the first one's is the optimizer's own.

    Attributes:
        rules: by which the groups' parameters are trained.
        learning_rates: of the groups: the peak that a scheduler has written into one, else what it
            was before any scheduler.
        held: the index of the group that a parameter is in, by canonical name; those that are
            missing are in the first one.
        belongs: the index of the optimizer that a group is of; each has its own if empty.

    >>> import torch
    >>> model = nn.Linear(4, 3)
    >>> muon = torch.optim.Muon([model.weight], lr=0.02)
    >>> adamw = torch.optim.AdamW([model.bias], lr=0.001)
    >>> run = Optimizers.of(model, [muon, adamw])
    >>> run.rule("weight").name, run.rate("bias"), run.held
    ('Muon', 0.001, {'weight': 0, 'bias': 1})
    """

    rules: tuple[UpdateRule, ...]
    learning_rates: tuple[float, ...]
    held: Mapping[str, int] = field(default_factory=dict)
    belongs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.rules or len(self.rules) != len(self.learning_rates):
            raise OptimizerError(
                f"{len(self.rules)} update rules and {len(self.learning_rates)} learning rates; "
                "expected one of each for every parameter group"
            )
        object.__setattr__(self, "belongs", self.belongs or tuple(range(len(self.rules))))
        owners = sorted({*self.belongs})
        if len(self.belongs) != len(self.rules) or owners != list(range(len(owners))):
            raise OptimizerError(
                f"{len(self.rules)} parameter groups belong to optimizers {self.belongs}; "
                "expected an index, counted from 0, for each of them"
            )
        for name, index in self.held.items():
            if not 0 <= index < len(self.rules):
                raise OptimizerError(
                    f"{name!r} is in parameter group {index!r}; there are {len(self.rules)}"
                )

    @classmethod
    def of(
        cls, model: nn.Module, optimizers: Sequence[Optimizer], lr: float | None = None
    ) -> "Optimizers":
        """Return the optimizers of a run at its present rates or, with ``lr``, in proportion to
        another rate.

        Args:
            model: whose parameters they train.
            optimizers: all of them.
            lr: the rate of the first optimizer's first group that has one above 0.

        Raises:
            InputError: nothing in the model is to be trained.
            OptimizerError: a trainable parameter that none or several of them hold, an optimizer
                that holds none, has no learning rate above 0, or cannot be built again or stepped.
        """
        _check_held_once(model, optimizers)
        names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        rules: list[UpdateRule] = []
        rates: list[float] = []
        belongs: list[int] = []
        held: dict[str, int] = {}
        for index, optimizer in enumerate(optimizers):
            by_kind: dict[str, tuple[UpdateRule, float, list[str]]] = {}
            for group in optimizer.param_groups:
                trained = [names[id(p)] for p in group["params"] if id(p) in names]
                if trained:
                    rule, rate = UpdateRule.of_group(optimizer, group), rate_of(optimizer, group)
                    _ = rule.has_eps  # measures how it steps, and raises if it cannot
                    by_kind.setdefault(f"{rate!r} {rule!r}", (rule, rate, []))[2].extend(trained)
            if not by_kind:
                raise OptimizerError(
                    f"{type(optimizer).__name__} holds no trainable parameter of the model; leave "
                    "it out of the list of optimizers"
                )
            kinds = sorted(by_kind.values(), key=lambda kind: not kind[1])
            if not any(rate for _, rate, _ in kinds) and not lr:
                raise OptimizerError(
                    f"{type(optimizer).__name__}'s learning rate is 0; expected one above 0, since "
                    "the unit update is the update divided by it: attach with the run's learning "
                    "rate set, or pass it to flerm_fx.record as lr=…"
                )
            for rule, rate, trained in kinds:
                held |= dict.fromkeys(trained, len(rules))
                rules.append(rule)
                rates.append(rate)
                belongs.append(index)
        order = {name: held[name] for name in names.values()}
        run = cls(tuple(rules), tuple(rates), order, tuple(belongs))
        return run if lr is None else replace(run, learning_rates=run.scaled_to(lr))

    @property
    def others(self) -> tuple[tuple[UpdateRule, float], ...]:
        """The rule and the learning rate of each group behind the first one."""
        return tuple(zip(self.rules[1:], self.learning_rates[1:], strict=True))

    @property
    def count(self) -> int:
        """How many optimizers there are."""
        return max(self.belongs) + 1

    def index(self, name: str) -> int:
        """Return which group a parameter is in."""
        return self.held.get(name, 0)

    def rule(self, name: str) -> UpdateRule:
        """Return the rule that trains a parameter."""
        return self.rules[self.index(name)]

    def rate(self, name: str) -> float:
        """Return the learning rate of a parameter."""
        return self.learning_rates[self.index(name)]

    def groups(self, optimizer: int) -> list[int]:
        """Return the indices of an optimizer's groups, the first of which has its own learning
        rate.
        """
        return [index for index, owner in enumerate(self.belongs) if owner == optimizer]

    def scaled_to(self, lr: float, group: int = 0) -> tuple[float, ...]:
        """Return the learning rates of all groups when that of one of them is ``lr``.

        They keep their proportions; where that one's is 0, as at the start of a warm-up, all are
        ``lr``.

        >>> rule = UpdateRule.from_name("SGD")
        >>> Optimizers((rule, rule), (0.25, 0.5)).scaled_to(1.0)
        (1.0, 2.0)
        """
        own = self.learning_rates[group]
        return tuple(rate * (lr / own) if own else lr for rate in self.learning_rates)

    def linear(self, factor: float) -> list[bool]:
        """Tell for each rule whether a first step at ``factor`` times its rate is as many times
        it.
        """
        return [
            is_linear(rule, rate or self.learning_rates[0], factor)
            for rule, rate in zip(self.rules, self.learning_rates, strict=True)
        ]

    def differing(self, optimizer: int) -> set[str]:
        """Return the settings that an optimizer's groups do not share, or that only groups can
        state.
        """
        rules = [self.rules[index] for index in self.groups(optimizer)]
        names = {name for rule in rules for name in rule.settings}
        shared = {
            name
            for name in names
            if all(
                name in rule.settings and rule.settings[name] == rules[0].settings.get(name)
                for rule in rules
            )
        }
        return names - shared | {name for rule in rules for name in rule.beyond}

    def built(self, groups: Mapping[int, list[dict[str, Any]]]) -> list[Optimizer]:
        """Return fresh optimizers over parameter groups, without weight decay.

        Args:
            groups: by the index of the run's group whose rule they have, each with its ``params``
                and learning rate.

        Raises:
            OptimizerError: one cannot be built.
        """
        optimizers = []
        for optimizer in range(self.count):
            kinds = [index for index in self.groups(optimizer) if groups.get(index)]
            stated = [
                {**self.rules[index].settings, **_undecayed(self.rules[index]), **group}
                for index in kinds
                for group in groups[index]
            ]
            if stated:  # groups state all; what one of them alone has is not for the others
                rule = self.rules[kinds[0]].without_own()
                lr = self.learning_rates[kinds[0]]
                optimizers.append(rule.build(stated, lr, weight_decay=0.0))
        return optimizers


def listed(optimizer: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    """Return a run's optimizers, out of the wrappers that Accelerate and Lightning put around them.

    Those pass each step on. A wrapper that changes the step, such as Lookahead, is the run's
    optimizer itself.

    Raises:
        InputError: something else, or none.
        OptimizerError: a wrapper that is unknown, and has no hooks to see its steps by.
    """
    given: list[Any] = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    optimizers = []
    for item in given:
        while _passes_on(item):
            item = item.optimizer
        if not isinstance(item, Optimizer):
            around = isinstance(getattr(item, "optimizer", None), Optimizer)
            raise InputError(
                "optimizer must be a torch.optim.Optimizer or a list of them, got "
                f"{described(item)}"
                + ("; pass its .optimizer, if it passes each step on as it is" if around else "")
            )
        if not has_step_hooks(item):
            raise OptimizerError(
                f"{type(item).__name__} has no step hooks, by which its steps could be seen, since "
                "its constructor does not call that of torch.optim.Optimizer; pass the optimizer "
                "inside of it, if it passes each step on as it is"
            )
        optimizers.append(item)
    if not optimizers:
        raise InputError("optimizer is an empty list; expected the optimizers of the run")
    return tuple(optimizers)


_PASS_ON = ("accelerate", "lightning", "pytorch_lightning", "transformers")
"""Packages whose wrappers, which keep an inner optimizer as ``.optimizer``, step as it does."""


def _passes_on(item: Any) -> bool:
    package = type(item).__module__.partition(".")[0]
    inner = getattr(item, "optimizer", None)
    return isinstance(inner, Optimizer) and package in _PASS_ON


def _check_held_once(model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    holders: dict[int, set[int]] = {}
    for index, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                holders.setdefault(id(parameter), set()).add(index)
    trained = {n: holders.get(id(p), set()) for n, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise InputError(NOTHING_TO_TRAIN)
    outside = [name for name, indices in trained.items() if not indices]
    if outside:
        raise OptimizerError(
            f"{len(outside)} trainable parameters are in no group of the optimizer: "
            f"{_some(outside)}; add them to it, or freeze them with requires_grad_(False)"
        )
    shared = [name for name, indices in trained.items() if len(indices) > 1]
    if shared:
        raise OptimizerError(
            f"{len(shared)} parameters are in several of the optimizers: {_some(shared)}; leave "
            "each to one"
        )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")


def rate_of(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """Return a group's learning rate in the run: its peak where a scheduler has told it.

    ``OneCycleLR`` sets ``initial_lr`` to a fraction of ``max_lr``.

    Raises:
        OptimizerError: it is no finite number of at least 0.
    """
    rate = group.get("max_lr", group.get("initial_lr", group.get("lr")))
    try:
        number = float(rate)
    except (TypeError, ValueError):
        raise OptimizerError(
            f"the learning rate of {type(optimizer).__name__} is {rate!r}; expected a number, "
            "since the unit update is the update divided by it: a rule that finds its own rate "
            "(Adafactor's relative steps) has to be given one"
        ) from None
    if not (math.isfinite(number) and number >= 0):
        raise OptimizerError(
            f"the learning rate of {type(optimizer).__name__} is {number:g}; expected a finite "
            "number above 0"
        )
    return number


def _undecayed(rule: UpdateRule) -> dict[str, float]:
    return {"weight_decay": 0.0} if "weight_decay" in rule.settings else {}
