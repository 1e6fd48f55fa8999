"""Training as people do it: AdamW, decay of matrices, clipping, a warm-up and a cosine."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flerm_fx.recipe.multiplier import group_settings
from flerm_fx.recipe.update_rule import UpdateRule


@dataclass(frozen=True)
class Recipe:
    """What a run does with its gradients and its rate; the rate of an axis's grid is its peak.

    Attributes:
        betas: of AdamW.
        eps: of AdamW.
        decay: of matrices, embeddings among them; what has fewer than two dimensions has none.
        clip: the norm of all gradients together that a step has at most.
        warmup: the share of the steps over which the rate rises, in a line from exactly 0.
        floor: the share of the peak to which the rate falls, along half a cosine.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    decay: float = 0.1
    clip: float = 1.0
    warmup: float = 0.1
    floor: float = 0.1

    def share(self, step: int, steps: int) -> float:
        """The rate of a step, as a share of the peak.

        >>> [Recipe().share(step, 400) for step in (0, 20, 40, 400)]
        [0.0, 0.5, 1.0, 0.1]
        """
        rising = round(self.warmup * steps)
        if step < rising:
            return step / rising
        done = (step - rising) / (steps - rising)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))

    def schedule(self, optimizer: Optimizer, steps: int) -> LambdaLR:
        """Set an optimizer, at its peak rates, to the first step of so many."""
        return LambdaLR(optimizer, lambda step: self.share(step, steps))

    def limit(self, parameters: Iterable[Tensor]) -> None:
        """Clip the gradients."""
        torch.nn.utils.clip_grad_norm_(parameters, self.clip)

    def decay_of(self, parameter: Tensor) -> float:
        """The decay that a parameter has, before any multiplier."""
        return self.decay if parameter.dim() >= 2 else 0.0

    def optimizer(
        self,
        named: Mapping[str, Tensor],
        lr: float,
        multipliers: Mapping[str, float] | None = None,
    ) -> Optimizer:
        """AdamW with a group for each multiplier and decay.

        A multiplier leaves what a step decays as it is: it divides the decay that it multiplies.

        >>> named = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
        >>> adamw = Recipe().optimizer(named, 0.5, {"weight": 0.25, "bias": 1.0})
        >>> [(group["lr"], group["weight_decay"]) for group in adamw.param_groups]
        [(0.125, 0.4), (0.5, 0.0)]
        """
        rule = UpdateRule.of(AdamW([torch.zeros(1)], lr, self.betas, self.eps, self.decay))

        def settings(name: str) -> dict[str, float]:
            multiplier = 1.0 if multipliers is None else multipliers[name]
            return group_settings(rule, lr, multiplier, self.decay_of(named[name]))

        return self.grouped(named, lr, settings)

    def grouped(
        self,
        named: Mapping[str, Tensor],
        lr: float,
        settings: Callable[[str], Mapping[str, float]],
    ) -> Optimizer:
        """AdamW with a group for all parameters of equal settings."""
        groups: dict[tuple[tuple[str, float], ...], list[Tensor]] = defaultdict(list)
        for name, parameter in named.items():
            groups[tuple(settings(name).items())].append(parameter)
        return AdamW(
            [{"params": p, **dict(key)} for key, p in groups.items()],
            lr,
            self.betas,
            self.eps,
            weight_decay=0.0,
            fused=True,
        )


PAPER = Recipe(betas=(0.9, 0.999), decay=0.0, clip=math.inf, warmup=0.0, floor=0.0)
"""Adam with the paper's scheduler: half a cosine from the first step on, to 1e-6 there and 0 here
(``transformer_schedulerpostnormpreresnormalisedwidth.sh`` of the authors' repository)."""
