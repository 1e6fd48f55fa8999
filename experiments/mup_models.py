"""The same models in muP, by the package ``mup`` (Yang et al. 2022, arXiv 2203.03466)."""

import torch
from torch import nn
from torch.optim import Optimizer

from experiments.axes import Axis


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


def _with_readout(axis: Axis, scale: float) -> nn.Module:
    from mup import MuReadout

    model = axis.build(scale)
    name = "output" if axis.model == "resmlp" else "logits"
    last = model.get_submodule(name)
    assert isinstance(last, nn.Linear)
    readout = MuReadout(last.in_features, last.out_features)
    with torch.no_grad():
        readout.weight.copy_(last.weight)
        readout.bias.copy_(last.bias)
    model.set_submodule(name, readout)
    return model
