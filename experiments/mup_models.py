"""The same models in muP, by the package ``mup`` (Yang et al. 2022, arXiv 2203.03466)."""

import torch
from torch import nn
from torch.optim import Optimizer

from experiments.axes import Axis

_READOUTS = {"resmlp": "output", "transformer": "logits"}


def build(axis: Axis, scale: float, seed: int) -> nn.Module:
    """A model with ``MuReadout`` as its last layer, and base shapes from the axis's base.

    All else of muP is a matter of shapes: initialisation, which ``set_base_shapes`` rescales, and
    rates, which ``MuAdam`` divides by the width. Heads stay 16 wide, so that their scores need no
    other scale.
    """
    from mup import set_base_shapes

    base, delta = _with_readout(axis, 1), _with_readout(axis, 2)
    torch.manual_seed(seed)
    model = _with_readout(axis, scale)
    set_base_shapes(model, base, delta=delta)
    return model


def optimizer(model: nn.Module, lr: float) -> Optimizer:
    """``MuAdam``."""
    from mup import MuAdam

    adam: Optimizer = MuAdam(model.parameters(), lr=lr)
    return adam


def rates(axis: Axis, scale: float) -> dict[str, float]:
    r"""Multipliers that muP's rates come to on a model as it is, its initial weights included.

    ``MuAdam`` divides the rate of a weight between two widths by the width multiplier w. A readout
    reads its input over w, so that its step, by Adam's full rate, moves the function 1/w as far.
    """
    found = {}
    model = build(axis, scale, seed=0)
    for group in optimizer(model, 1.0).param_groups:
        found.update({id(parameter): group["lr"] for parameter in group["params"]})
    named = {name: found[id(parameter)] for name, parameter in model.named_parameters()}
    readout = f"{_READOUTS[axis.model]}.weight"
    return {**named, readout: named[readout] / scale}


def _with_readout(axis: Axis, scale: float) -> nn.Module:
    from mup import MuReadout

    model = axis.build(scale)
    name = _READOUTS[axis.model]
    last = model.get_submodule(name)
    assert isinstance(last, nn.Linear)
    readout = MuReadout(last.in_features, last.out_features)
    with torch.no_grad():
        readout.weight.copy_(last.weight)
        readout.bias.copy_(last.bias)
    model.set_submodule(name, readout)
    return model
