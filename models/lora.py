"""Low-rank adaptation of a trained model's linear maps.

Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022, arXiv 2106.09685.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

BRANCHES = ("query", "key", "value", "output", "hidden")
"""Names of the linear maps in the blocks of :class:`models.transformer.Transformer`."""


class LoRALinear(nn.Module):
    r"""A frozen linear map with a trainable update of low rank.

    .. math:: y = W x + b + \frac{\alpha}{r} B A x, \quad
              A \in \mathbb{R}^{r \times d}, \; B \in \mathbb{R}^{k \times r}

    Initialisation: B is 0, so that the map is the frozen one and A has no gradient until B has
    moved. A is uniform in ±1/sqrt(d) (``"kaiming"``, variance 1/(3d)) or normal with standard
    deviation 1/r (``"gaussian"``); both are peft's.

    Args:
        linear: the map to adapt; its parameters are frozen.
        rank: r.
        alpha: the update is multiplied by alpha/rank.
        init: ``"kaiming"`` or ``"gaussian"``, see above.

    Raises:
        ValueError: for another ``init``, or a rank below 1.

    >>> import torch
    >>> linear = nn.Linear(6, 4)
    >>> adapted = LoRALinear(linear, rank=2)
    >>> x = torch.randn(3, 6)
    >>> bool(torch.equal(adapted(x), linear(x)))
    True
    >>> [name for name, p in adapted.named_parameters() if p.requires_grad]
    ['lora_a', 'lora_b']
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        alpha: float = 8.0,
        init: Literal["kaiming", "gaussian"] = "kaiming",
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank is {rank}; it must be at least 1")
        if init not in ("kaiming", "gaussian"):
            raise ValueError(f"init is {init!r}; it must be 'kaiming' or 'gaussian'")
        self.linear = linear.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        if init == "kaiming":
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        else:
            nn.init.normal_(self.lora_a, std=1 / rank)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., d) -> (..., k)."""
        low = F.linear(x, self.lora_a)  # (..., r)
        return self.linear(x) + self.scale * F.linear(low, self.lora_b)


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float = 8.0,
    names: Sequence[str] = BRANCHES,
    init: Literal["kaiming", "gaussian"] = "kaiming",
) -> nn.Module:
    """Freeze a model, and adapt those of its linear maps that are called by certain names.

    Args:
        model: changed in place.
        rank: of each update.
        alpha: each update is multiplied by alpha/rank.
        names: endings of module names, in whole parts: ``"output"`` means every ``….output``, and
            ``"attention.output"`` only those of attention.
        init: as for :class:`LoRALinear`.

    Returns:
        The model.

    Raises:
        ValueError: if a name is that of no linear map, and as for :class:`LoRALinear`.

    >>> from models.transformer import Transformer
    >>> model = add_lora(Transformer(vocab=17, width=16, depth=1), rank=2, names=["query"])
    >>> [name for name, p in model.named_parameters() if p.requires_grad]
    ['blocks.0.attention.query.lora_a', 'blocks.0.attention.query.lora_b']
    """
    adapted = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(_ends_in(path, name) for name in names)
    }
    for name in names:
        if not any(_ends_in(path, name) for path in adapted):
            raise ValueError(f"no linear map of the model is called {name!r}; see named_modules()")
    model.requires_grad_(False)
    for path, linear in adapted.items():
        model.set_submodule(path, LoRALinear(linear, rank, alpha, init))
    return model


def _ends_in(path: str, name: str) -> bool:
    return f".{path}".endswith(f".{name}")
