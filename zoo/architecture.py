"""One architecture of the zoo: how it is built at each size, and what it is trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flerm_fx.model.inputs import Inputs, OutputFn

Size = Literal["base", "wide", "deep"]
SIZES: tuple[Size, ...] = ("base", "wide", "deep")


@dataclass(frozen=True)
class Architecture:
    """A kind of model at up to three sizes, with a batch that fits all of them.

    Attributes:
        name: unique in the zoo.
        family: what it is listed under.
        build: a model of a size, at fresh random weights.
        inputs: the probe batch, seeded.
        targets: what the loss compares the output with.
        sizes: those that ``build`` knows.
        output_fn: picks the output tensor where the default choice is not meant.
        loss_fn: where the default for such targets is not meant.
        in_step: whether layer j of the deep model answers to layer i of the base if i/n <= j/m <
            (i+1)/n, as names tell; False where names do not tell.
        period: how many kinds of layers alternate; each answers to layers of its kind.
        one_to_one: whether names of the wide model's parameters are those of their counterparts.
        by_rows: whether it is held to the whole Jacobian, one backward pass for each number in the
            output: where a backward pass is not the forward's derivative, on purpose, or where
            forward mode fails and differences mislead: they are noise where parts stay in float32,
            and too long where a norm divides by next to nothing.
        detaches: whether some of the output's dependence on parameters is detached on purpose.
        note: why something in it is not as usual.
    """

    name: str
    family: str
    build: Callable[[Size], nn.Module]
    inputs: Callable[[], Inputs]
    targets: Callable[[], Any]
    sizes: tuple[Size, ...] = SIZES
    output_fn: OutputFn | None = None
    loss_fn: Callable[[Any, Any], Tensor] | str | None = None
    in_step: bool = True
    period: int = 1
    one_to_one: bool = True
    by_rows: bool = False
    detaches: bool = False
    note: str = ""

    def make(self, size: Size = "base", seed: int = 0) -> nn.Module:
        """A seeded model of a size, in training mode."""
        torch.manual_seed(seed)
        return self.build(size).train()
