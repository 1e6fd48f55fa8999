r"""CompleteP: rules for width and depth together (Dey et al. 2025, arXiv 2505.01618).

Table 1 of the paper, in its last column with :math:`\alpha = 1`, for AdamW and pre-norm
transformers; :math:`m_N` is the width multiplier and :math:`m_L` that of depth:

=============================  ================================  =================================
in the paper                   base                              model
=============================  ================================  =================================
embedding: variance, rate      :math:`\sigma^2`, :math:`\eta`    the base's
norms of blocks: rate          :math:`\eta`                      :math:`\eta\, m_L^{\alpha-1}`
hidden: variance at the start  :math:`\sigma^2`                  :math:`\sigma^2 / m_N`
hidden: rate                   :math:`\eta`                      :math:`\eta\,m_L^{\alpha-1}/m_N`
hidden: rate of biases         :math:`\eta`                      :math:`\eta\, m_L^{\alpha-1}`
hidden: decay                  :math:`\lambda`                   :math:`\lambda\, m_N`
attention and MLP              x + f(x)                          :math:`x + m_L^{-\alpha} f(x)`
final norm: rate               :math:`\eta`                      the base's
readout: variance, rate        :math:`\sigma^2`, :math:`\eta`    the base's
readout: logits                :math:`W x`                       :math:`W x / m_N`
blocks: AdamW's epsilon        :math:`\epsilon`                  :math:`\epsilon/(m_N m_L^\alpha)`
=============================  ================================  =================================

With :math:`\alpha = 1` depth leaves all rates alone. What the table does not say is taken from the
authors' implementation, the branch ``completep`` of EleutherAI/nanoGPT-mup: outside of blocks
epsilon is :math:`\epsilon / m_N` (equation 40 of the paper, as a comment there says of a version
that corrects an earlier one), a tied embedding is an embedding, and the matrices that end a branch
begin as the others do, whatever the depth. transformers' GPT-2 starts those smaller by the root of
the number of its branches; the base's standard deviation is kept here, as the table has no depth
in it. Other initial weights than those of hidden matrices are transformers' own. Attention scores,
which muP divides by the width of a head, are left as they are, since heads do not widen.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.axes import Axis
from experiments.rules_by_hand import roles

LAST = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "vit": ("attention.o_proj", "mlp.fc2"),
    "neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
"""The modules that end a branch: what they return is added to the residual stream."""

_READOUT = dict.fromkeys(LAST, "lm_head") | {"vit": "classifier"}

_SMALLER_WITH_DEPTH = ("gpt2",)
"""Architectures that begin the last matrix of a branch smaller by the root of the depth."""


def build(axis: Axis, scale: float, seed: int) -> nn.Module:
    """The model of a seed, with CompleteP's initial weights, branches and logits.

    At scale 1 it is the base itself.
    """
    torch.manual_seed(seed)
    model = axis.build(scale)
    width, depth = axis.width(scale), axis.depth(scale)
    ends = tuple(f"{last}.weight" for last in LAST[axis.model])
    found = roles(axis, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if found[name] != "hidden":
                continue
            parameter.div_(math.sqrt(width))
            if axis.model in _SMALLER_WITH_DEPTH and name.endswith(ends):
                parameter.mul_(math.sqrt(depth))
    for name, module in model.named_modules():
        if name.endswith(LAST[axis.model]):
            module.register_forward_hook(_outputs_over(depth))
    model.get_submodule(_READOUT[axis.model]).register_forward_pre_hook(_inputs_over(width))
    return model


def optimizer(axis: Axis, model: nn.Module, scale: float, lr: float) -> Optimizer:
    """The recipe's, with a group for each line of the table."""
    recipe = axis.recipe
    assert recipe is not None
    width, depth = axis.width(scale), axis.depth(scale)
    found = roles(axis, model)
    named = dict(model.named_parameters())

    def settings(name: str) -> dict[str, float]:
        hidden, inside = found[name] == "hidden", found[name] in ("hidden", "vector")
        decay, factor = recipe.decay_of(named[name]), axis.factor(name)
        return {
            "lr": factor * (lr / width if hidden else lr),
            "weight_decay": (decay * width if hidden else decay) / factor,
            "eps": recipe.eps / (width * depth if inside else width),
        }

    return recipe.grouped(named, lr, settings)


def _outputs_over(divisor: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, inputs, output: output / divisor


def _inputs_over(divisor: float) -> Callable[[nn.Module, Any], Any]:
    return lambda module, inputs: (inputs[0] / divisor, *inputs[1:])
