"""One run: a model, an optimizer with a rate for each parameter, and the loss it ends at."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.axes import Axis
from experiments.data import Data
from experiments.recipe import Recipe
from flerm_fx.model.inputs import device_of, to_device
from flerm_fx.recipe.multiplier import group_settings
from flerm_fx.recipe.update_rule import UpdateRule

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class Sign(Optimizer):
    """Sign descent: every weight moves by the rate, against the sign of its gradient."""

    def __init__(self, params: Params, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def _adam(params: Params, lr: float) -> Optimizer:
    return torch.optim.Adam(params, lr=lr, fused=True)


def _adamw(params: Params, lr: float) -> Optimizer:
    return torch.optim.AdamW(params, lr=lr, weight_decay=0.1, fused=True)


def _sgd(params: Params, lr: float) -> Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9, fused=True)


def _adagrad(params: Params, lr: float) -> Optimizer:
    return torch.optim.Adagrad(params, lr=lr)


def _adamax(params: Params, lr: float) -> Optimizer:
    return torch.optim.Adamax(params, lr=lr)


def _muon(params: Params, lr: float) -> Optimizer:
    return torch.optim.Muon(params, lr=lr, weight_decay=0.0)


def _adafactor(params: Params, lr: float) -> Optimizer:
    return torch.optim.Adafactor(params, lr=lr)


OPTIMIZERS: dict[str, Callable[[Params, float], Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
    "sign": Sign,
    "adagrad": _adagrad,
    "adamax": _adamax,
    "muon": _muon,
    "adafactor": _adafactor,
}
"""By name. Muon trains matrices, and Adam what is not one, if anything, at the same rate."""


def optimizers(
    name: str,
    model: nn.Module,
    lr: float,
    multipliers: Mapping[str, float] | None = None,
    swept: str | None = None,
    other_rate: float = 0.0,
    recipe: Recipe | None = None,
) -> list[Optimizer]:
    """Those of a run, with a multiplier of the rate for each parameter.

    With ``swept``, the parameters that have it in their names are trained at ``lr``, all others at
    ``other_rate``, by an optimizer each. A recipe has an optimizer of its own, whatever the name,
    of which ``lr`` is the peak.

    >>> model = nn.Linear(4, 2)
    >>> (adam,) = optimizers("adam", model, 0.1, {"weight": 0.5, "bias": 2.0})
    >>> [group["lr"] for group in adam.param_groups]
    [0.05, 0.2]
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if recipe is not None:
        return [recipe.optimizer(named, lr, multipliers)]
    parts: list[tuple[str, float, Mapping[str, Tensor]]] = [(name, lr, named)]
    if name == "muon":
        matrices, others = _split(named, lambda n: named[n].dim() == 2)
        parts = [("muon", lr, matrices), ("adam", lr, others)]
    if swept is not None:
        chosen, others = _split(named, lambda n: swept in n)
        parts = [(name, lr, chosen), (name, other_rate, others)]
    return [_grouped(OPTIMIZERS[kind], p, rate, multipliers) for kind, rate, p in parts if p]


def _split(
    named: Mapping[str, Tensor], first: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    chosen = {n: p for n, p in named.items() if first(n)}
    return chosen, {n: p for n, p in named.items() if n not in chosen}


def _grouped(
    factory: Callable[[Params, float], Optimizer],
    named: Mapping[str, Tensor],
    lr: float,
    multipliers: Mapping[str, float] | None,
) -> Optimizer:
    if multipliers is None:
        return factory(list(named.values()), lr)
    rule = UpdateRule.of(factory(list(named.values()), lr))
    groups: dict[float, list[Tensor]] = defaultdict(list)
    for name, parameter in named.items():
        groups[multipliers[name]].append(parameter)
    return factory(
        [{"params": p, **group_settings(rule, lr, m)} for m, p in groups.items()],
        lr,
    )


VALIDATIONS = 5
"""How many models of a run are validated, at most."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        loss: on the validation set, in nats, the mean over at most five models of the last tenth
            of the steps, equally far apart; infinite if the run diverged. At a constant rate one
            model's is noisier than what rates differ by near the best. Under a recipe, whose rate
            has decayed, it is the last model's.
        train_loss: mean over the last tenth of the steps.
        seconds: that it took.
    """

    loss: float
    train_loss: float
    seconds: float


def train(model: nn.Module, run: list[Optimizer], data: Data, axis: Axis, seed: int) -> Outcome:
    """Train for the axis's number of steps, by its recipe or else at a constant rate.

    Equal seeds see equal batches. A run whose loss is not finite, or ends above where it began, has
    diverged.
    """
    device = device_of(model)
    began, before = time.perf_counter(), validate(model, data)
    generator = torch.Generator().manual_seed(seed)
    tenth = max(axis.steps // 10, 1)
    every = -(-tenth // VALIDATIONS)
    recipe, validated = axis.recipe, tenth if axis.recipe is None else 1
    schedules = [] if recipe is None else [recipe.schedule(each, axis.steps) for each in run]
    last: list[float] = []
    validations: list[float] = []
    for step in range(axis.steps):
        inputs, targets = to_device(data.sample(axis.batch, generator), device)
        loss = data.loss(_logits(model(inputs)), targets)
        if not math.isfinite(loss.item()):
            return Outcome(math.inf, math.inf, time.perf_counter() - began)
        if step >= axis.steps - tenth:
            last.append(loss.item())
        for optimizer in run:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe is not None:
            recipe.limit(model.parameters())
        for optimizer in run:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        left = axis.steps - 1 - step
        if left < validated and left % every == 0:
            validations.append(validate(model, data))
    final, mean = sum(validations) / len(validations), sum(last) / len(last)
    return Outcome(final if final <= before else math.inf, mean, time.perf_counter() - began)


@torch.no_grad()
def validate(model: nn.Module, data: Data) -> float:
    """Mean loss over the validation set."""
    batches = to_device(data.validation, device_of(model))
    total = sum(data.loss(_logits(model(x)), y).item() * len(x) for x, y in batches)
    return total / sum(len(x) for x, _ in data.validation)


def _logits(output: Any) -> Tensor:
    """A model's logits, which transformers' models return among other things."""
    logits: Tensor = getattr(output, "logits", output)
    return logits
