"""Models that this project did not write: transformers' Llama, GPT-2, ViT and two more, small.

Each begins with the initial weights that transformers gives it, of the same standard deviation at
every width, and returns an object with ``logits``. Heads keep their width as models grow.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

CONTEXT = 64
"""Bytes that a language model sees."""

HEADS = 4
"""Of a base model."""

STANDARD_DEVIATION = 0.02
"""Of initial weights, as in all of transformers' defaults."""


@dataclass(frozen=True)
class Size:
    """What differs between the models of a family: width, blocks, heads, and initial weights."""

    width: int
    layers: int
    heads: int
    deviation: float


def build(
    make: Callable[[Size], nn.Module],
    width: int,
    depth: int,
    *,
    width_multiplier: int = 1,
    depth_multiplier: int = 1,
    init_scale: float = 1.0,
) -> nn.Module:
    """A model of a family, so many times as wide, as deep, and with such initial weights."""
    return make(
        Size(
            width=width * width_multiplier,
            layers=depth * depth_multiplier,
            heads=HEADS * width_multiplier,
            deviation=STANDARD_DEVIATION * init_scale,
        )
    )


def llama(size: Size) -> nn.Module:
    """``LlamaForCausalLM`` on bytes, its embedding and readout apart.

    The inner width is 8/3 of the width, as Llama's own is.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=size.width,
        intermediate_size=size.width * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=CONTEXT,
        initializer_range=size.deviation,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def gpt2(size: Size) -> nn.Module:
    """``GPT2LMHeadModel`` on bytes, whose readout is its embedding; without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=256,
        n_positions=CONTEXT,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=size.deviation,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def vit(size: Size) -> nn.Module:
    """``ViTForImageClassification`` on grey images of 28 by 28, in 16 patches, to ten classes."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=28,
        patch_size=7,
        num_channels=1,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=size.deviation,
    )
    config.num_labels = 10
    return ViTForImageClassification(config)


def neox(size: Size) -> nn.Module:
    """``GPTNeoXForCausalLM`` on bytes: attention and MLP side by side, LayerNorm, biases, rotary.

    Half of a head is rotated: a quarter, as in its own default, is no even number of these.
    """
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=256,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=CONTEXT,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
        },
        initializer_range=size.deviation,
        use_cache=False,
    )
    return GPTNeoXForCausalLM(config)


def olmo2(size: Size) -> nn.Module:
    """``Olmo2ForCausalLM`` on bytes: norms behind branches and of queries and keys.

    Two heads share a key and a value.
    """
    from transformers import Olmo2Config, Olmo2ForCausalLM

    config = Olmo2Config(
        vocab_size=256,
        hidden_size=size.width,
        intermediate_size=size.width * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2,
        max_position_embeddings=CONTEXT,
        initializer_range=size.deviation,
        pad_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    return Olmo2ForCausalLM(config)


MODELS: dict[str, Callable[..., nn.Module]] = {
    make.__name__: functools.partial(build, make) for make in (llama, gpt2, vit, neox, olmo2)
}
"""By name."""
