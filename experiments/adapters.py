"""A Llama that was trained on English, frozen, with low-rank adapters of peft's in it.

It is small enough to be trained here, by the recipe, before its adapters are.
"""

import copy
import functools

import torch
from torch import nn

from experiments import data, foreign
from experiments.recipe import Recipe

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear maps that are adapted: all of a block's."""

WIDTH, DEPTH = 96, 2
SEED, RATE = 20_000, 2**-8
"""How the frozen weights were trained."""


def adapted_llama(rank: int) -> nn.Module:
    """The trained model, frozen, with adapters of this rank at peft's initial weights.

    A is normal with standard deviation 1/rank, B is 0, and the update is multiplied by alpha/rank
    with peft's alpha of 8.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=list(TARGETS))
    return get_peft_model(copy.deepcopy(_trained()), config)


@functools.cache
def _trained() -> nn.Module:
    """The model that is adapted, the same in every process: a run of the Llama's axis."""
    from experiments.axes import AXES  # which builds models of this file
    from experiments.training import train

    axis = AXES["llama-width"]
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = foreign.MODELS["llama"](width=WIDTH, depth=DEPTH)
    optimizer = Recipe().optimizer(dict(model.named_parameters()), RATE)
    train(model, [optimizer], data.load(axis.data), axis, SEED)
    return model
