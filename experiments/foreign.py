"""Models that this project did not write: transformers' Llama, GPT-2 and ViT, small.

Each begins with the initial weights that transformers gives it, of the same standard deviation at
every width, and returns an object with ``logits``. Heads keep their width as models grow.
"""

from collections.abc import Callable

from torch import nn

CONTEXT = 64
"""Bytes that a language model sees."""

HEADS = 4
"""Of a base model."""

STANDARD_DEVIATION = 0.02
"""Of initial weights, as in all of transformers' defaults."""


def llama(
    width: int,
    depth: int,
    *,
    width_multiplier: int = 1,
    depth_multiplier: int = 1,
    init_scale: float = 1.0,
) -> nn.Module:
    """``LlamaForCausalLM`` on bytes, its embedding and readout apart.

    The inner width is 8/3 of the width, as Llama's own is.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = HEADS * width_multiplier
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width * width_multiplier,
        intermediate_size=width * 8 // 3 * width_multiplier,
        num_hidden_layers=depth * depth_multiplier,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        initializer_range=STANDARD_DEVIATION * init_scale,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def gpt2(
    width: int,
    depth: int,
    *,
    width_multiplier: int = 1,
    depth_multiplier: int = 1,
    init_scale: float = 1.0,
) -> nn.Module:
    """``GPT2LMHeadModel`` on bytes, whose readout is its embedding; without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=256,
        n_positions=CONTEXT,
        n_embd=width * width_multiplier,
        n_layer=depth * depth_multiplier,
        n_head=HEADS * width_multiplier,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=STANDARD_DEVIATION * init_scale,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def vit(
    width: int,
    depth: int,
    *,
    width_multiplier: int = 1,
    depth_multiplier: int = 1,
    init_scale: float = 1.0,
) -> nn.Module:
    """``ViTForImageClassification`` on grey images of 28 by 28, in 16 patches, to ten classes."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=28,
        patch_size=7,
        num_channels=1,
        hidden_size=width * width_multiplier,
        intermediate_size=4 * width * width_multiplier,
        num_hidden_layers=depth * depth_multiplier,
        num_attention_heads=HEADS * width_multiplier,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=STANDARD_DEVIATION * init_scale,
    )
    config.num_labels = 10
    return ViTForImageClassification(config)


MODELS: dict[str, Callable[..., nn.Module]] = {"llama": llama, "gpt2": gpt2, "vit": vit}
"""By name."""
