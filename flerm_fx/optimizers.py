"""The optimizers of a run: their rules, their rates, and which of them trains each parameter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flerm_fx.errors import InputError, OptimizerError
from flerm_fx.update_rule import UpdateRule, is_linear

OptimizerLike = Optimizer | type[Optimizer] | Callable[..., Optimizer]


@dataclass(frozen=True)
class Optimizers:
    """Rules and learning rates of a run's optimizers.

    Attributes:
        rules: one for each optimizer.
        learning_rates: of each, before any scheduler.
        held: the index of the optimizer that trains a parameter, by canonical name; those that are
            missing are the first one's.

    >>> import torch
    >>> model = nn.Linear(4, 3)
    >>> muon = torch.optim.Muon([model.weight], lr=0.02)
    >>> adamw = torch.optim.AdamW([model.bias], lr=0.001)
    >>> found = Optimizers.of(model, [muon, adamw])
    >>> found.rule("weight").name, found.rate("bias"), found.held
    ('Muon', 0.001, {'weight': 0, 'bias': 1})
    """

    rules: tuple[UpdateRule, ...]
    learning_rates: tuple[float, ...]
    held: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rules or len(self.rules) != len(self.learning_rates):
            raise OptimizerError(
                f"{len(self.rules)} update rules and {len(self.learning_rates)} learning rates; "
                "expected one of each for every optimizer"
            )
        for name, index in self.held.items():
            if not 0 <= index < len(self.rules):
                raise OptimizerError(
                    f"parameter {name!r} is held by optimizer {index}, of {len(self.rules)}"
                )

    @classmethod
    def of(cls, model: nn.Module, optimizers: Sequence[Optimizer]) -> "Optimizers":
        """Those of a run.

        Raises:
            OptimizerError: a trainable parameter that none or several of them hold, a learning
                rate that is not above 0, or an optimizer that cannot be rebuilt.
        """
        return cls(
            tuple(UpdateRule.of(optimizer) for optimizer in optimizers),
            tuple(map(_rate, optimizers)),
            _held_by(model, optimizers),
        )

    def index(self, name: str) -> int:
        """Which optimizer trains a parameter."""
        return self.held.get(name, 0)

    def rule(self, name: str) -> UpdateRule:
        """The rule that trains a parameter."""
        return self.rules[self.index(name)]

    def rate(self, name: str) -> float:
        """The learning rate of a parameter."""
        return self.learning_rates[self.index(name)]

    def linear(self, factor: float) -> list[bool]:
        """For each rule, whether a first step at ``factor`` times its rate is as many times it."""
        return [
            is_linear(rule, rate, factor)
            for rule, rate in zip(self.rules, self.learning_rates, strict=True)
        ]


def listed(optimizer: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    """The optimizers of a run, out of the wrappers that Accelerate and Lightning put around them.

    Raises:
        InputError: something else, or none.
    """
    given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    found = []
    for item in given:
        while isinstance(inner := getattr(item, "optimizer", None), Optimizer):
            item = inner
        if not isinstance(item, Optimizer):
            raise InputError(
                "optimizer must be a torch.optim.Optimizer or a list of them, got "
                f"{type(item).__name__}"
            )
        found.append(item)
    if not found:
        raise InputError("optimizer is an empty list; expected the optimizers of the run")
    return tuple(found)


def _held_by(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, int]:
    holders: dict[int, set[int]] = {}
    for index, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                holders.setdefault(id(parameter), set()).add(index)
    trained = {n: holders.get(id(p), set()) for n, p in model.named_parameters() if p.requires_grad}
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
    return {name: index for name, (index,) in trained.items()}


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")


def _rate(optimizer: Optimizer) -> float:
    """A run's learning rate: that of the first group, before any scheduler."""
    group: Mapping[str, Any] = optimizer.param_groups[0]
    rate = float(group.get("initial_lr", group["lr"]))
    if not rate > 0:
        raise OptimizerError(
            f"the optimizer's learning rate is {rate:g}; expected one above 0, since the unit "
            "update is the update divided by it: attach with the run's learning rate set"
        )
    return rate
